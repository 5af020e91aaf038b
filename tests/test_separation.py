"""Separation of domains and classes: hand answers, scikit-learn's, properties and bad input."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import NearestNeighbors

from clip_mixtures.mechanisms.embedding import unit_features
from clip_mixtures.mechanisms.neighbours import neighbour_shares, purity, purity_by_chance
from clip_mixtures.mechanisms.separation import linear_probe, separation, silhouettes

Labelled = tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[Any]]


def at_angles(*degrees: float) -> npt.NDArray[np.float64]:
    turns = np.radians(degrees)
    return np.stack([np.cos(turns), np.sin(turns)], axis=1)


def made_up(
    domain_scale: float, class_scale: float, *, per_cell: int = 5, seed: int = 0
) -> Labelled:
    """Make images of 6 domains and 35 classes around centres at the given distances."""
    generator = np.random.default_rng(seed)
    domains = np.repeat(np.arange(6), 35 * per_cell)
    classes = np.tile(np.repeat(np.arange(35), per_cell), 6)
    features = generator.normal(size=(len(domains), 128))
    features += domain_scale * generator.normal(size=(6, 128))[domains]
    features += class_scale * generator.normal(size=(35, 128))[classes]
    return features.astype(np.float32), np.array([f"domain {n}" for n in domains]), classes


def by_measure(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, float]]:
    return {
        (str(row["measure"]), str(row["of"])): {str(key): row[key] for key in row}
        for row in table.to_dict("records")
    }


# Silhouette


def test_silhouette_by_hand() -> None:
    # Cosine distances: 0 to the copy, 1 to both of the other group, 2 between those two.
    rows, codes = at_angles(0, 0, 90, -90), np.array([0, 0, 1, 1])
    assert silhouettes(rows, codes) == pytest.approx([1, 1, -0.5, -0.5])


def test_silhouettes_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    rows = unit_features(generator.normal(size=(60, 5)))
    codes = np.r_[generator.integers(4, size=55), np.arange(5)]  # group 4 has one image
    expected = silhouette_samples(rows, codes, metric="cosine")
    np.testing.assert_allclose(silhouettes(rows, codes), expected, atol=1e-12)


def test_equal_features_are_neither_inside_nor_outside_their_group() -> None:
    rows = unit_features(np.full((40, 7), 0.3, dtype=np.float32))
    assert silhouettes(rows, np.arange(40) % 3).tolist() == [0] * 40


def test_a_single_group_has_no_silhouette() -> None:
    assert np.isnan(silhouettes(at_angles(0, 90), np.zeros(2, dtype=np.int64))).all()


# Neighbours


def test_purity_by_hand() -> None:
    rows, codes = at_angles(0, 10, 30, 45), np.array([0, 1, 0, 0])
    (shares,) = neighbour_shares(rows, [codes], 2)
    # Nearest two: of 0 those at 10, 30; of 10 those at 0, 30; of 30 those at 10, 45; of 45 those
    # at 10, 30.
    assert purity(shares, codes).tolist() == [0.5, 0, 0.5, 0.5]
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_neighbours_that_are_equally_far_share_the_last_place() -> None:
    rows, codes = at_angles(0, 5, 20, -20), np.array([0, 1, 0, 1])
    (shares,) = neighbour_shares(rows, [codes], 2)
    # One place goes to the image at 5 degrees; those at 20 and -20 take half of the other each.
    assert shares[0].tolist() == [0.25, 0.75]


def test_neighbours_are_those_of_scikit_learn_in_every_block() -> None:
    generator = np.random.default_rng(1)
    rows = unit_features(generator.normal(size=(1100, 16)))  # more than two blocks
    codes = generator.integers(3, size=1100)
    (shares,) = neighbour_shares(rows, [codes], 7)
    found = NearestNeighbors(n_neighbors=7, metric="cosine").fit(rows)
    places = found.kneighbors(return_distance=False)
    expected = np.stack([(codes[places] == group).mean(axis=1) for group in range(3)], axis=1)
    # Single precision may swap two neighbours that are all but equally far.
    assert (np.abs(shares - expected) > 1e-9).any(axis=1).mean() < 0.01


def test_equal_features_are_exactly_as_pure_as_by_chance() -> None:
    features, domains, classes = np.ones((30, 4)), np.arange(30) % 2, np.arange(30) % 5
    found = by_measure(separation(features, domains, classes))
    for of, expected in (("domain", 14 / 29), ("class", 5 / 29)):
        row = found["neighbour_purity", of]
        assert row["estimate"] == pytest.approx(expected)
        assert row["chance"] == pytest.approx(expected)
    assert found["linear_probe", "domain"]["estimate"] == pytest.approx(0.5)
    assert found["silhouette", "domain"]["estimate"] == 0


def test_purity_by_chance_by_hand() -> None:
    # Class 0 has two images of domain 0 and one of domain 1; class 1 one of each.
    domains, classes = np.array([0, 0, 1, 0, 1]), np.array([0, 0, 0, 1, 1])
    # Two of class 0 agree with probability 1/3, two of class 1 never, and one of either class
    # with 2/3 x 1/2 + 1/3 x 1/2 = 1/2.
    in_class_0 = np.array([[1.0, 0]] * 5)
    expected = [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2]
    assert purity_by_chance(in_class_0, domains, classes) == pytest.approx(expected)
    in_both = np.array([[0.5, 0.5]] * 5)
    expected = [5 / 12, 5 / 12, 5 / 12, 1 / 4, 1 / 4]
    assert purity_by_chance(in_both, domains, classes) == pytest.approx(expected)


@given(
    labels=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=3, max_size=6),
    seed=st.integers(0, 5),
)
@settings(max_examples=50, deadline=None)
def test_purity_by_chance_is_the_mean_over_all_deals(
    labels: list[tuple[int, int]], seed: int
) -> None:
    domains, classes = (
        np.unique(part, return_inverse=True)[1] for part in zip(*labels, strict=True)
    )
    everyone = np.arange(len(labels))
    rows = unit_features(np.random.default_rng(seed).normal(size=(len(labels), 3)))
    weights, by_class = neighbour_shares(rows, [everyone, classes], 2)
    orders = np.array(list(itertools.permutations(everyone)))
    dealt = domains[orders[(classes[orders] == classes).all(axis=1)]]
    agree = dealt[:, :, None] == dealt[:, None, :]
    expected = (weights * agree).sum(axis=(1, 2)).mean() / len(labels)
    assert purity_by_chance(by_class, domains, classes).mean() == pytest.approx(expected)


# The table


def test_separated_domains_are_pure_and_found() -> None:
    found = by_measure(separation(*made_up(4, 0.5)))
    assert found["neighbour_purity", "domain"]["estimate"] == pytest.approx(1)
    assert found["linear_probe", "domain"]["estimate"] == 1
    assert found["silhouette", "domain"]["estimate"] > 0.8


def test_separated_classes_are_pure_and_their_domains_at_chance() -> None:
    found = by_measure(separation(*made_up(0, 2)))
    # A class has 30 images, enough for 10 neighbours.
    assert found["neighbour_purity", "class"]["estimate"] == pytest.approx(1)
    assert found["silhouette", "class"]["estimate"] > 0.5
    chance = found["neighbour_purity", "domain"]["chance"]
    assert chance == pytest.approx(4 / 29)


@pytest.mark.parametrize("class_scale", [0, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_domains_of_one_distribution_are_at_chance(class_scale: float, seed: int) -> None:
    features, domains, classes = made_up(0, class_scale, seed=seed)
    table = separation(features, domains, classes, confidence=0.99)
    found = by_measure(table)
    for measure in ("neighbour_purity", "linear_probe"):
        row = found[measure, "domain"]
        assert row["low"] < row["chance"] < row["high"], measure
    assert abs(found["silhouette", "domain"]["estimate"]) < 0.02


def test_the_table_has_one_row_a_measure() -> None:
    table = separation(*made_up(0.3, 0.4, per_cell=2))
    assert list(table.columns) == ["measure", "of", "estimate", "low", "high", "chance", "n"]
    assert table[["measure", "of"]].to_numpy().tolist() == [
        ["silhouette", "domain"],
        ["silhouette", "class"],
        ["neighbour_purity", "domain"],
        ["neighbour_purity", "class"],
        ["linear_probe", "domain"],
    ]
    assert (table["low"] < table["high"]).all()
    assert table["estimate"].between(table["low"], table["high"]).all()
    assert set(table["n"]) == {420}
    assert table["chance"].iloc[-1] == pytest.approx(1 / 6)


def test_a_seed_fixes_the_table_and_another_changes_it() -> None:
    images = made_up(0.2, 0.4, per_cell=2)
    pd.testing.assert_frame_equal(separation(*images, seed=3), separation(*images, seed=3))
    other = separation(*images, seed=4)
    assert (separation(*images, seed=3)["low"] != other["low"]).all()


def test_the_length_of_features_does_not_matter() -> None:
    features, domains, classes = made_up(0.3, 1, per_cell=1)
    lengths = np.random.default_rng(0).uniform(0.5, 9, size=(len(features), 1))
    pd.testing.assert_frame_equal(
        separation(features, domains, classes),
        separation(features * lengths, domains, classes),
        rtol=1e-4,
    )


def test_the_numbers_of_a_sample_take_a_moment() -> None:
    images = made_up(0.3, 1)
    assert images[0].shape == (1050, 128)
    # On the processor's clock, for other work on the machine is not ours.
    start = time.process_time()
    separation(*images)
    assert time.process_time() - start < 3


@given(
    labels=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=3, max_size=25),
    folds=st.integers(2, 6),
)
@settings(max_examples=40, deadline=None)
def test_any_labels_give_a_whole_table(labels: list[tuple[int, int]], folds: int) -> None:
    domains, classes = np.array(labels).T
    features = np.random.default_rng(0).normal(size=(len(labels), 4))
    found = separation(features, domains, classes, neighbours=2, folds=folds, resamples=20)
    assert len(found) == 5
    assert found["chance"].between(0, 1).all()
    known = found.dropna(subset="estimate")
    assert known["estimate"].between(-1, 1).all()
    one_class = len(set(classes.tolist())) == 1
    assert (known["low"].isna() == one_class).all()


def test_a_single_domain_leaves_the_classes_to_measure() -> None:
    features, _, classes = made_up(0, 1, per_cell=1)
    found = by_measure(separation(features, ["real"] * len(features), classes))
    assert math.isnan(found["silhouette", "domain"]["estimate"])
    assert math.isnan(found["linear_probe", "domain"]["estimate"])
    assert found["neighbour_purity", "domain"]["estimate"] == pytest.approx(1)
    assert found["neighbour_purity", "domain"]["chance"] == pytest.approx(1)
    assert found["silhouette", "class"]["low"] > 0


def test_a_class_of_one_domain_tells_nothing_of_domains() -> None:
    # Two classes far apart, each in a domain of its own: domains are pure, by their classes alone.
    features = np.vstack([at_angles(*range(12)), at_angles(*range(90, 102))])
    labels = np.repeat([0, 1], 12)
    found = by_measure(separation(features, labels, labels, neighbours=3))
    row = found["neighbour_purity", "domain"]
    assert [row["estimate"], row["chance"]] == pytest.approx([1, 1])
    # The probe never sees the class it is asked about, so it cannot know the domain either.
    assert found["linear_probe", "domain"]["estimate"] == 0


def test_every_domain_counts_the_same_for_the_probe() -> None:
    # Nothing tells the domains apart, and four images in five are of the first.
    domains, classes = np.tile([0, 0, 0, 0, 1], 5), np.repeat(np.arange(5), 5)
    found = by_measure(separation(np.ones((25, 3)), domains, classes))
    assert found["linear_probe", "domain"]["estimate"] == pytest.approx(0.5)
    assert found["linear_probe", "domain"]["chance"] == 0.5


def test_the_probe_finds_a_small_domain_as_well_as_a_large_one() -> None:
    # Nine images of the first domain to one of the second, a standard deviation apart.
    generator = np.random.default_rng(0)
    codes, classes = np.tile([0] * 9 + [1], 100), np.repeat(np.arange(10), 100)
    rows = generator.normal(size=(1000, 4)) + codes[:, None] * np.array([1.0, 0, 0, 0])
    hits = linear_probe(rows, codes, classes, folds=5, seed=0)
    for domain in (0, 1):
        # Half a standard deviation on either side of the boundary: 69 % are on their own side.
        assert hits[codes == domain].mean() == pytest.approx(0.69, abs=0.1)


def test_a_domain_of_one_image_cannot_be_probed() -> None:
    rows, classes = at_angles(0, 10, 20, 30), np.array([0, 1, 0, 1])
    assert np.isnan(linear_probe(rows, np.array([0, 0, 0, 1]), classes, folds=2, seed=0)).all()
    assert not np.isnan(linear_probe(rows, np.array([0, 0, 1, 1]), classes, folds=2, seed=0)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neighbours": 0}, "neighbours is 0 but there are 6 images"),
        ({"neighbours": 6}, "neighbours is 6 but there are 6 images"),
        ({"folds": 1}, "folds is 1"),
        ({"resamples": 0}, "resamples is 0"),
        ({"confidence": 0.0}, "confidence is 0.0"),
        ({"features": np.full((6, 2), np.nan)}, "6 of 6 images are not finite"),
        ({"features": np.zeros((6, 2))}, "6 of 6 images are all zero"),
        ({"domains": ["a", "b"]}, "domain labels have shape"),
        ({"classes": [1, 2]}, "class labels have shape"),
        ({"classes": [None, *range(5)]}, "1 of 6 images have no class"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "features": at_angles(0, 10, 20, 30, 40, 50),
        "domains": list("ababab"),
        "classes": [0, 0, 1, 1, 2, 2],
        "neighbours": 2,
    }
    separation(**arguments)
    with pytest.raises(ValueError, match=message):
        separation(**{**arguments, **change})
