"""Sharing of units between domains: published matrices, ties, zeros, scores, faults."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.mechanisms.sae import SparseAutoencoder, from_published
from clip_mixtures.mechanisms.sharing import (
    KS,
    chance_matrix,
    chance_score,
    feature_histograms,
    histograms,
    mean_shared,
    score,
    sharing_matrix,
    sharing_table,
)

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
OTHER = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 1.0]])

counts_of_units = st.lists(st.integers(0, 4), min_size=22, max_size=30)


def published(shared_file: Callable[[str], Path]) -> tuple[Any, dict[str, Any], SparseAutoencoder]:
    answers = np.load(shared_file("oracle/numerics/sae_sharing.npz"))
    facts = json.loads(shared_file("oracle/numerics/sae_sharing.json").read_text())
    names = ("tied_bias", "encoder._weight", "encoder._bias", "decoder._weight")
    model = from_published({name: torch.from_numpy(answers["sae/" + name]) for name in names})
    return answers, facts, model


def test_histograms_and_matrices_are_the_published_ones(
    shared_file: Callable[[str], Path],
) -> None:
    answers, facts, model = published(shared_file)
    classes = [name.removeprefix("hist/") for name in answers if name.startswith("hist/")]
    labels = [LABELS[name] for name in classes]
    found = feature_histograms(
        model, answers["img_feat"], answers["labels"], answers["domain_ids"], labels, range(6)
    )
    matrices = []
    for name, counts in zip(classes, found, strict=True):
        expected = answers[f"hist/{name}"]
        # The published arrays are as wide as the full autoencoder, zero beyond the small one.
        assert np.array_equal(counts, expected[:, : model.units]), name
        assert not expected[:, model.units :].any()
        matrix = sharing_matrix(expected, protocol="published")
        assert np.array_equal(matrix, facts["result"][name]["mpct_shared@20"]), name
        matrices.append(matrix)
    assert np.allclose(np.mean(matrices, axis=0), facts["result"]["avg"]["mpct_shared@20"])
    for domain in ("clipart", "sketch"):  # the last row, whichever is asked for
        found_score = score(np.stack(matrices), DOMAINS, domain, "published").estimate
        assert found_score == pytest.approx(facts["result"]["score"]["mpct_shared@20"], abs=1e-12)


LABELS = {"aircraft carrier": 0, "axe": 11, "banana": 13, "barn": 15}


def test_corrected_differs_from_published_where_there_are_ties(
    shared_file: Callable[[str], Path],
) -> None:
    answers, _, _ = published(shared_file)
    counts = answers["hist/axe"]
    difference = sharing_matrix(counts) - sharing_matrix(counts, protocol="published")
    assert 0 < np.abs(difference).max() < 0.2


def test_histogram_by_hand() -> None:
    codes = np.array(
        [
            [3.0, 2.0, 1.0, 0.0],  # the two strongest: 0 and 1
            [0.0, 0.0, 5.0, 0.0],  # only one is positive
            [1.0, 4.0, 0.5, 2.0],  # 1 and 3, in the other domain
            [9.0, 9.5, 9.0, 9.5],  # of a class that is not asked for
        ]
    )
    found = histograms(
        codes, [7, 7, 7, 8], ["real", "real", "sketch", "real"], [7], ["sketch", "real"], top=2
    )
    assert found.dtype == np.int64
    assert found.tolist() == [[[0, 1, 0, 1], [1, 1, 1, 0]]]


def test_images_with_fewer_units_than_asked_for_count_all_that_fire() -> None:
    found = histograms(torch.tensor([[0.0, 2.0, 1.0]]), [0], [0], [0], [0], top=20)
    assert found.tolist() == [[[0, 1, 1]]]


def test_histograms_of_features_are_those_of_their_codes() -> None:
    model = SparseAutoencoder(8, 4, generator=torch.Generator().manual_seed(0)).eval()
    features = torch.randn((60, 8), generator=torch.Generator().manual_seed(1)).half()
    classes, domains = np.arange(60) % 3, np.array(["real", "sketch"])[np.arange(60) // 30]
    with torch.inference_mode():
        codes = model.encode(features)
    asked: dict[str, Any] = {"classes": [2, 0], "domains": ["sketch", "real"], "top": 5}
    expected = histograms(codes, classes, domains, **asked)
    found = feature_histograms(model, features.numpy(), classes, domains, batch_size=7, **asked)
    assert np.array_equal(found, expected)
    # Forty images of two classes, five units each.
    assert found.shape == (2, 2, 32)
    assert found.sum() == 200


@pytest.mark.parametrize(
    ("first", "second", "k", "shared"),
    [
        # The two most frequent are {0, 1} and {0, 3}.
        ([9, 8, 1, 0], [9, 0, 1, 8], 2, 1 / 2),
        # Only one unit of each was ever seen; the second places stay empty.
        ([9, 0, 0, 0], [5, 0, 0, 0], 2, 1 / 2),
        # Units 1, 2 and 3 have a third of the second place; the other's second place is 2.
        ([9, 1, 1, 1], [9, 0, 5, 0], 2, (1 + 1 / 3) / 2),
        # Ties at the same units are shared whole.
        ([3, 3, 3, 0], [1, 1, 1, 0], 2, 1),
        # Nothing fires.
        ([0, 0, 0, 0], [0, 0, 0, 0], 2, 0),
    ],
)
def test_corrected_sharing_by_hand(
    first: list[int], second: list[int], k: int, shared: float
) -> None:
    found = mean_shared(np.array(first), np.array(second), ks=(k,))
    assert found == pytest.approx(shared, abs=1e-12)


def test_published_sharing_calls_units_shared_that_never_fire() -> None:
    first, second = np.array([9, 0, 0, 0]), np.array([5, 0, 0, 0])
    assert mean_shared(first, second, ks=(3,), protocol="published") == 1
    assert mean_shared(first, second, ks=(3,)) == pytest.approx(1 / 3)


def test_the_mean_is_over_all_k() -> None:
    # Of the first only unit 0 is common, of the first two both.
    assert mean_shared(np.array([5, 4, 1]), np.array([4, 5, 1]), ks=(1, 2)) == 0.5


@given(first=counts_of_units, second=counts_of_units, order=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_sharing_is_symmetric_and_no_order_of_units_matters(
    first: list[int], second: list[int], order: Any
) -> None:
    units = min(len(first), len(second))
    a, b = np.array(first[:units]), np.array(second[:units])
    shared = mean_shared(a, b)
    assert 0 <= shared <= 1
    assert mean_shared(b, a) == pytest.approx(shared, abs=1e-12)
    places = order.sample(range(units), units)
    assert mean_shared(a[places], b[places]) == pytest.approx(shared, abs=1e-12)


@given(counts=counts_of_units)
@settings(max_examples=40, deadline=None)
def test_a_histogram_shares_as_many_places_with_itself_as_it_fills(counts: list[int]) -> None:
    fired = sum(count > 0 for count in counts)
    expected = np.mean([min(fired, k) / k for k in KS])
    assert mean_shared(np.array(counts), np.array(counts)) == pytest.approx(expected, abs=1e-12)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_without_ties_and_zeros_both_protocols_agree(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = (generator.permutation(np.arange(1, 41)) for _ in range(2))
    both = mean_shared(a, b), mean_shared(a, b, protocol="published")
    assert both[0] == pytest.approx(both[1], abs=1e-12)
    assert both[0] == pytest.approx(by_sets(a, b))


def by_sets(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> float:
    def best(counts: npt.NDArray[np.int64], k: int) -> set[int]:
        return set(np.argsort(-counts)[:k].tolist())

    return float(np.mean([len(best(a, k) & best(b, k)) / k for k in KS]))


def test_a_table_lists_every_pair_of_every_class() -> None:
    counts = np.array([[[2, 1, 0], [0, 1, 2]], [[2, 1, 0], [2, 1, 0]]])
    table = sharing_table(counts, ["axe", "barn"], ["real", "sketch"], ks=(1,))
    assert table.columns.tolist() == ["class", "domain_a", "domain_b", "shared", "chance"]
    assert table["shared"].tolist() == [1, 0, 0, 1, 1, 1, 1, 1]
    # An axe is most often unit 0 when real and 2 when sketched, a barn unit 0 in both.
    assert table["chance"].tolist() == [1, 1, 0, 0, 1, 0, 1, 0]
    assert table.iloc[1].tolist() == ["axe", "real", "sketch", 0.0, 1.0]
    with pytest.raises(ValueError, match=r"expected \(1, 2, units\)"):
        sharing_table(counts, ["axe"], ["real", "sketch"])


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_chance_is_the_sharing_of_a_class_with_all_others_one_by_one(protocol: str) -> None:
    stream = np.random.default_rng(3)
    # Many zeros and ties; a unit that fires for everything; one class without a single unit.
    counts = stream.poisson(0.8, size=(5, 3, 30))
    counts[:, :, 7] += 9
    counts[4, 1] = 0
    found = chance_matrix(counts, protocol=protocol)
    for c, a, b in np.ndindex(5, 3, 3):
        others = [
            mean_shared(counts[c, a], counts[other, b], protocol=protocol)
            for other in range(5)
            if other != c
        ]
        assert found[c, a, b] == pytest.approx(np.mean(others), abs=1e-12)
    assert np.allclose(found.mean(axis=0), found.mean(axis=0).T)


def test_units_that_fire_for_everything_are_shared_by_chance_and_those_of_a_class_are_not() -> None:
    # Five units that all images have, and five of each class.
    counts = np.zeros((4, 2, 25), dtype=np.int64)
    counts[:, :, :5] = 9
    for c in range(4):
        counts[c, :, 5 * (c + 1) :][:, :5] = 8
    names, ks = ("real", "sketch"), (10,)
    chances = chance_matrix(counts, ks)
    assert score(sharing_matrix(counts, ks), names, "real").estimate == 1
    assert chance_score(chances, names, "real") == pytest.approx(0.5)
    # Nothing but what all images have: the score says nothing, and chance says so.
    common = counts[:, :, :5]
    assert score(sharing_matrix(common, (5,)), names, "real").estimate == 1
    assert chance_score(chance_matrix(common, (5,)), names, "real") == 1


def test_the_chance_level_is_of_the_domain_whose_score_it_is() -> None:
    chances = np.stack([OTHER, OTHER])
    names = ("clipart", "real", "sketch")
    for domain in names:
        for protocol in ("corrected", "published"):
            expected = score(chances, names, domain, protocol).estimate
            assert chance_score(chances, names, domain, protocol) == expected
    with pytest.raises(ValueError, match="'moon' is not among clipart, real, sketch"):
        chance_score(chances, names, "moon")


def test_a_single_class_has_no_chance_level() -> None:
    alone = chance_matrix(np.ones((1, 2, 30), dtype=np.int64))
    assert alone.shape == (1, 2, 2)
    assert math.isnan(chance_score(alone, ("real", "sketch"), "real"))


def test_the_chance_level_does_not_depend_on_the_order_of_classes() -> None:
    counts = np.random.default_rng(0).poisson(0.5, size=(7, 3, 40))
    order = np.random.default_rng(1).permutation(7)
    assert np.allclose(chance_matrix(counts[order]), chance_matrix(counts)[order])


def test_counts_without_a_chance_level_are_refused() -> None:
    counts = np.ones((2, 2, 30), dtype=np.int64)
    with pytest.raises(ValueError, match=r"\(2, 30\); give \(classes, domains, units\)"):
        chance_matrix(counts[0])
    with pytest.raises(ValueError, match="ks is"):
        chance_matrix(counts, ks=(31,))
    with pytest.raises(ValueError, match="protocol is 'new'"):
        chance_matrix(counts, protocol="new")
    with pytest.raises(ValueError, match="not one of counts"):
        chance_matrix(-counts)


def test_the_score_is_of_the_domain_that_was_asked_for() -> None:
    matrices = np.stack([OTHER, OTHER])
    names = ("clipart", "real", "sketch")
    assert score(matrices, names, "clipart").estimate == 0.25
    assert score(matrices, names, "real").estimate == 0.375
    assert score(matrices, names, "clipart", "published").estimate == 0.125


def test_the_interval_is_over_classes() -> None:
    names = ("clipart", "real", "sketch")
    matrices = np.stack([OTHER * scale for scale in (0.2, 0.6, 1.0)])
    found = score(matrices, names, "real", resamples=20_000)
    # Three draws of 0.075, 0.225 and 0.375: the lowest mean has a share of 1/27 > 2.5 %.
    assert [found.low, found.estimate, found.high] == pytest.approx([0.075, 0.225, 0.375])
    assert found.n == 3
    alone = score(matrices[:1], names, "real")
    assert math.isnan(alone.low)
    assert alone.estimate == pytest.approx(0.075)


def test_a_domain_without_images_of_a_class_is_named() -> None:
    with pytest.raises(ValueError, match="class 'axe' has no images in domain 'sketch'"):
        histograms(
            np.ones((3, 2)), ["axe", "axe", "barn"], ["real", "real", "sketch"], ["axe"],
            ["real", "sketch"],
        )  # fmt: skip


def test_an_autoencoder_of_another_width_is_refused() -> None:
    model = SparseAutoencoder(4)
    with pytest.raises(ValueError, match=r"\(2, 5\), but the autoencoder takes \(images, 4\)"):
        feature_histograms(model, np.zeros((2, 5), dtype=np.float32), [0, 0], [0, 0], [0], [0])


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ([1, 2], [1, 2, 3], {"ks": (1,)}, "histograms of 2 and 3 units"),
        ([1, 2], [1, 2], {}, r"ks is \(5, 10, 15, 20\); allowed: from 1 to .* 2"),
        ([1, 2], [1, 2], {"ks": ()}, "ks is"),
        ([1, -2], [1, 2], {"ks": (1,)}, "not one of counts"),
        ([1, math.nan], [1, 2], {"ks": (1,)}, "not one of counts"),
        ([[1, 2]], [[1, 2]], {"ks": (1,)}, "not one of counts"),
        (
            [1, 2],
            [1, 2],
            {"protocol": "new"},
            "protocol is 'new'; choose one of published, corrected",
        ),
    ],
)
def test_histograms_that_cannot_be_compared_are_refused(
    first: Any, second: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mean_shared(np.array(first), np.array(second), **options)


def test_arrays_that_do_not_match_are_refused() -> None:
    codes = np.ones((3, 4))
    with pytest.raises(ValueError, match="3 images but 2 domain ids"):
        histograms(codes, [0, 0, 0], [0, 0], [0], [0])
    with pytest.raises(ValueError, match="none or repeated"):
        histograms(codes, [0, 0, 0], [0, 0, 0], [0, 0], [0])
    with pytest.raises(ValueError, match=r"\(3,\); give \(images, units\)"):
        histograms(codes[:, 0], [0, 0, 0], [0, 0, 0], [0], [0])
    with pytest.raises(ValueError, match="NaN"):
        histograms(np.full((1, 4), math.nan), [0], [0], [0], [0])
    with pytest.raises(ValueError, match="top is 0"):
        histograms(codes, [0, 0, 0], [0, 0, 0], [0], [0], top=0)
    with pytest.raises(ValueError, match="'moon' is not among clipart, real, sketch"):
        score(OTHER[None], ("clipart", "real", "sketch"), "moon")
    with pytest.raises(ValueError, match=r"\(3, 3\); expected \(classes, 3, 3\)"):
        score(OTHER, ("clipart", "real", "sketch"), "real")
    with pytest.raises(ValueError, match=r"give \(\.\.\., domains, units\)"):
        sharing_matrix(np.ones(30, dtype=np.int64))
