"""The sample of images, their maps and distances: hand answers, properties and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.distances import (
    class_distances,
    domain_distances,
    mean_difference,
    top_dimensions,
)
from clip_mixtures.mechanisms.embedding import (
    domain_maps,
    group_codes,
    subsample,
    umap_projection,
    unit_features,
)

# Unit vectors along the axes of the plane, and a longer one that points up as well.
RIGHT, UP, LEFT, DOWN, FAR_UP = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 5.0]


def rows(*vectors: list[float]) -> npt.NDArray[np.float32]:
    return np.array(vectors, dtype=np.float32)


def clusters(images: int, centres: npt.NDArray[Any], seed: int = 0) -> npt.NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=(len(centres) * images, centres.shape[1]))
    return (np.repeat(centres, images, axis=0) + 0.3 * noise).astype(np.float32)


# Features and labels


def test_rows_get_unit_length_and_keep_their_direction() -> None:
    found = unit_features(np.array([[3, 4], [0, -2]], dtype=np.float16))
    assert found == pytest.approx(np.array([[0.6, 0.8], [0, -1]]))
    assert found.dtype == np.float64


def test_features_are_not_changed_in_place() -> None:
    features = np.array([[3.0, 4.0]])
    unit_features(features)
    assert features.tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones(3), r"shape \(3,\); give one row an image"),
        (np.ones((0, 3)), r"shape \(0, 3\)"),
        (np.array([[1.0, np.nan], [np.inf, 1], [1, 1]]), "2 of 3 images are not finite"),
        (np.array([[0.0, 0.0], [1, 1]]), "1 of 2 images are all zero"),
    ],
)
def test_unusable_features_are_refused(features: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unit_features(features)


def test_groups_are_numbered_by_first_appearance() -> None:
    codes, names = group_codes(["sketch", "clipart", "sketch"], 3, "domain")
    assert codes.tolist() == [0, 1, 0]
    assert names == ["sketch", "clipart"]


def test_a_category_without_an_image_is_no_group() -> None:
    domains = pd.Categorical(["a", "b", "a"], categories=["c", "b", "a"])
    assert group_codes(domains, 3, "domain")[1] == ["a", "b"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b"], r"domain labels have shape \(2,\); give one an image, \(3,\)"),
        (np.array(["a", None, None], dtype=object), "2 of 3 images have no domain"),
        (np.array([0, np.nan, 1.0]), "1 of 3 images have no domain"),
    ],
)
def test_labels_that_do_not_match_are_refused(labels: npt.ArrayLike, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_codes(labels, 3, "domain")


# The sample


@given(
    domains=st.lists(st.sampled_from("abc"), min_size=1, max_size=40),
    per_domain=st.integers(1, 12),
    seed=st.integers(0, 9),
)
@settings(max_examples=50, deadline=None)
def test_the_sample_is_balanced_rising_and_without_repeats(
    domains: list[str], per_domain: int, seed: int
) -> None:
    drawn = subsample(domains, per_domain, seed)
    assert (np.diff(drawn) > 0).all()
    taken = np.array(domains)[drawn].tolist()
    assert {name: taken.count(name) for name in set(domains)} == {
        name: min(per_domain, domains.count(name)) for name in set(domains)
    }
    assert drawn.tolist() == subsample(domains, per_domain, seed).tolist()


def test_another_seed_draws_another_sample() -> None:
    domains = ["a"] * 100
    assert subsample(domains, 10, 0).tolist() != subsample(domains, 10, 1).tolist()


def test_every_image_of_a_domain_is_drawn_about_as_often() -> None:
    times = np.zeros(20)
    for seed in range(400):
        times[subsample(["a"] * 20, 5, seed)] += 1
    # 400 draws with probability 1/4: mean 100, standard deviation below 9.
    assert times.min() > 60
    assert times.max() < 140


def test_the_draw_of_a_domain_does_not_depend_on_the_others() -> None:
    alone = subsample(["a"] * 50, 7, 3)
    with_another = subsample(["a"] * 50 + ["b"] * 20, 7, 3)
    assert with_another[:7].tolist() == alone.tolist()


@pytest.mark.parametrize(
    ("domains", "per_domain", "message"),
    [
        (["a"], 0, "per_domain is 0"),
        ([], 5, "domains is empty"),
        (np.array(["a", None], dtype=object), 5, "1 of 2 images have no domain"),
    ],
)
def test_a_sample_that_cannot_be_drawn_is_refused(
    domains: npt.ArrayLike, per_domain: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        subsample(domains, per_domain, 0)


# Maps


DOMAINS = np.repeat(["clipart", "real", "quickdraw"], 12)
FEATURES = clusters(12, np.random.default_rng(5).normal(size=(3, 8)))
SETTINGS: dict[str, Any] = {"neighbours": 4, "per_domain": 10, "seed": 1}


# UMAP compiles for seconds in each process, so the tests share its results.
@pytest.fixture(scope="module")
def maps() -> pd.DataFrame:
    return domain_maps(FEATURES, DOMAINS, without="quickdraw", **SETTINGS)


def test_both_maps_show_the_same_images_but_for_the_domain_left_out(maps: pd.DataFrame) -> None:
    assert list(maps.columns) == ["map", "row", "domain", "x", "y"]
    every, rest = (maps[maps["map"] == name] for name in ("all", "without"))
    assert every["row"].tolist() == subsample(DOMAINS, 10, 1).tolist()
    assert rest["row"].tolist() == every[every["domain"] != "quickdraw"]["row"].tolist()
    assert set(rest["domain"]) == {"clipart", "real"}
    assert (maps["domain"] == DOMAINS[maps["row"]]).all()


def test_clusters_stay_together_on_the_map(maps: pd.DataFrame) -> None:
    every = maps[maps["map"] == "all"]
    places = every[["x", "y"]].to_numpy()
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    nearest = every["domain"].to_numpy()[gaps.argmin(axis=1)]
    assert (nearest == every["domain"]).all()


def test_the_same_seed_gives_the_same_map_bit_for_bit(maps: pd.DataFrame) -> None:
    drawn = maps[maps["map"] == "all"]["row"].to_numpy()
    # Whatever their length: only the direction of the features counts.
    lengthened = FEATURES[drawn] * 4
    again = umap_projection(lengthened, seed=1, neighbours=4)
    assert again.dtype == np.float32
    assert again.tobytes() == (
        maps[maps["map"] == "all"][["x", "y"]].to_numpy(dtype=np.float32).tobytes()
    )
    other = umap_projection(lengthened, seed=2, neighbours=4)
    assert not np.allclose(other, again)


def test_a_map_without_an_unknown_domain_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown domain 'quickdrew'; did you mean 'quickdraw'"):
        domain_maps(FEATURES, DOMAINS, without="quickdrew", **SETTINGS)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (FEATURES[:15], {}, "15 images are too few for a map with 15 neighbours, which takes 16"),
        (FEATURES[:3], {"neighbours": 2}, "3 images are too few"),
        (FEATURES, {"neighbours": 1}, "neighbours is 1; a map needs at least 2"),
        (np.full((30, 8), np.nan), {}, "30 of 30 images are not finite"),
        (np.full((30, 8), 0.3), {}, "all 30 images have the same features"),
    ],
)
def test_a_map_that_cannot_be_drawn_is_refused(
    features: npt.NDArray[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        umap_projection(features, **options)


# Distances


def test_domain_distances_by_hand() -> None:
    # Means: a (1/2, 1/2), b (0, 1), c (-1, 0).
    found = domain_distances(rows(RIGHT, UP, FAR_UP, LEFT), ["a", "a", "b", "c"])
    assert found.drop(columns="distance").to_numpy().tolist() == [
        ["a", "b", 2, 1],
        ["a", "c", 2, 1],
        ["b", "c", 1, 1],
    ]
    expected = [np.sqrt(0.5), np.sqrt(2.5), np.sqrt(2)]
    assert found["distance"].tolist() == pytest.approx(expected)


def test_class_distances_by_hand() -> None:
    # Domains a and b have the same mean, and their classes lie opposite each other.
    features = rows(RIGHT, LEFT, LEFT, RIGHT, UP)
    domains, classes = ["a", "a", "b", "b", "c"], [7, 3, 7, 3, 3]
    overall = domain_distances(features, domains)
    assert overall["distance"][0] == pytest.approx(0)
    found = class_distances(features, domains, classes)
    assert found[["domain_a", "domain_b"]].to_numpy().tolist() == [[*"ab"], [*"ac"], [*"bc"]]
    # c has class 3 alone, at a right angle to class 3 of either.
    assert found["distance"].tolist() == pytest.approx([2, np.sqrt(2), np.sqrt(2)])
    assert found["classes"].tolist() == [2, 1, 1]
    # Both classes lie equally far apart; one class gives no interval.
    for end in ("low", "high"):
        assert found[end].tolist() == pytest.approx([2, np.nan, np.nan], nan_ok=True)


def test_a_class_mean_comes_before_the_distance() -> None:
    # The mean of right and up is (1/2, 1/2); to the right it is sqrt(1/2), not the mean of 0
    # and sqrt(2).
    found = class_distances(rows(RIGHT, UP, RIGHT), ["a", "a", "b"], [0, 0, 0])
    assert found["distance"].tolist() == pytest.approx([np.sqrt(0.5)])


def test_domains_without_a_class_in_common_have_no_class_distance() -> None:
    found = class_distances(rows(RIGHT, UP), ["a", "b"], ["ant", "bee"])
    assert found["classes"].tolist() == [0]
    assert np.isnan(found[["distance", "low", "high"]].to_numpy()).all()


def test_the_interval_over_classes_holds_the_distance_and_hangs_on_the_seed() -> None:
    features = clusters(4, np.random.default_rng(1).normal(size=(16, 5)))
    domains, classes = np.repeat(["a", "b"], 32), np.tile(np.repeat(np.arange(8), 4), 2)
    (first,) = class_distances(features, domains, classes).to_dict("records")
    assert first["low"] < first["distance"] < first["high"]
    assert class_distances(features, domains, classes).to_dict("records") == [first]
    (other,) = class_distances(features, domains, classes, seed=1).to_dict("records")
    assert other["distance"] == first["distance"]
    assert other["low"] != first["low"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"resamples": 0}, "resamples is 0"), ({"confidence": 1.0}, "confidence is 1.0")],
)
def test_bootstrap_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_distances(rows(RIGHT, UP), ["a", "b"], [0, 0], **options)


def test_a_single_domain_has_no_distances_but_all_columns() -> None:
    found = domain_distances(rows(RIGHT, UP), ["a", "a"])
    assert (len(found), "distance" in found) == (0, True)
    found = class_distances(rows(RIGHT, UP), ["a", "a"], [0, 1])
    assert (len(found), "distance" in found) == (0, True)


def test_constant_features_are_at_no_distance() -> None:
    same = np.full((6, 3), 0.7, dtype=np.float32)
    domains, classes = list("aaabbb"), [0, 1, 2, 0, 1, 2]
    assert domain_distances(same, domains)["distance"].tolist() == [0]
    found = class_distances(same, domains, classes)[["distance", "low", "high"]]
    assert found.to_numpy().tolist() == [[0, 0, 0]]


# Mean difference


def test_mean_difference_by_hand() -> None:
    features, domains = rows(RIGHT, UP, UP, DOWN, LEFT), ["a", "a", "b", "b", "c"]
    # Mean of a (1/2, 1/2), of b (0, 0), of c (-1, 0): each of the others counts once.
    found = mean_difference(features, domains, "a")
    assert found.to_numpy().tolist() == [[0, 1.0], [1, 0.5]]
    found = mean_difference(features, domains, "c", "a")
    assert found.to_numpy().tolist() == [[1, -0.5], [0, -1.5]]


def test_top_dimensions_are_those_of_the_largest_difference_of_either_sign() -> None:
    features = np.eye(4, dtype=np.float32)[[2, 2, 2, 1, 1, 0, 3, 3]]
    # b minus a: dimension 1 by 2/5, dimension 0 by 1/5, dimension 2 by -1, dimension 3 by 2/5.
    found = top_dimensions(features, list("aaabbbbb"), "b")
    assert list(found.columns) == ["domain", "dimension_2", "dimension_1"]
    assert found["dimension_2"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert found["domain"].tolist() == list("aaabbbbb")


def test_a_domain_that_is_not_there_is_named() -> None:
    for domain, other in (("d", None), ("a", "d")):
        with pytest.raises(UserError, match="unknown domain 'd'; allowed: a, b"):
            mean_difference(rows(RIGHT, UP), ["a", "b"], domain, other)


def test_a_domain_is_not_compared_with_itself() -> None:
    with pytest.raises(ValueError, match="no domain to compare 'a' with"):
        mean_difference(rows(RIGHT, UP), ["a", "a"], "a")
    with pytest.raises(ValueError, match="no domain to compare 'a' with"):
        mean_difference(rows(RIGHT, UP), ["a", "b"], "a", "a")


def test_top_dimensions_of_a_single_one_are_refused() -> None:
    with pytest.raises(ValueError, match="single dimension"):
        top_dimensions(np.ones((2, 1)), ["a", "b"], "a")


def test_a_map_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' is the only domain"):
        domain_maps(FEATURES, ["a"] * len(FEATURES), without="a", **SETTINGS)
