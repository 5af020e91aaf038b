"""Intervals against hand-computed values, known properties and simulated coverage."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.evaluation.statistics import (
    Average,
    Interval,
    bootstrap_accuracy,
    bootstrap_over_seeds,
    mean_over_seeds,
    paired_difference,
    paired_over_seeds,
)

AVERAGES: tuple[Average, ...] = ("balanced", "micro")

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)
triples = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40
)


def from_counts(correct: Any, images: Any) -> tuple[Any, Any]:
    """Make labels and predictions with the given counts a class; -1 is a wrong answer."""
    labels = np.repeat(np.arange(len(images)), images)
    within = np.concatenate([np.arange(n) for n in images])
    return labels, np.where(within < np.repeat(correct, images), labels, -1)


@pytest.mark.parametrize(("average", "expected"), [("balanced", 0.625), ("micro", 0.4)])
def test_estimate_is_the_accuracy_itself(average: Average, expected: float) -> None:
    labels, predictions = from_counts([2, 2], [2, 8])  # 2 of 2 and 2 of 8
    interval = bootstrap_accuracy(labels, predictions, average=average)
    assert interval.estimate == pytest.approx(expected)
    assert interval.n == 10
    assert interval.low < expected < interval.high


@given(images=pairs, average=st.sampled_from(AVERAGES))
@settings(max_examples=50, deadline=None)
def test_interval_holds_the_estimate_within_zero_and_one(
    images: list[tuple[int, int]], average: Average
) -> None:
    labels, predictions = np.array(images).T
    interval = bootstrap_accuracy(labels, predictions, average=average, resamples=50)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert interval.low < interval.high


@given(images=pairs, order=st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_images_does_not_matter(images: list[tuple[int, int]], order: Any) -> None:
    shuffled = order.sample(images, len(images))
    first, second = (
        bootstrap_accuracy(*np.array(rows).T, average="balanced", resamples=50)
        for rows in (images, shuffled)
    )
    assert first == second


def test_a_seed_fixes_the_interval_and_another_changes_it() -> None:
    labels, predictions = from_counts([3, 5, 1, 9], [10, 10, 10, 10])
    first = bootstrap_accuracy(labels, predictions, average="micro", seed=1)
    assert first == bootstrap_accuracy(labels, predictions, average="micro", seed=1)
    assert first != bootstrap_accuracy(labels, predictions, average="micro", seed=2)
    assert paired_difference(
        labels, predictions, labels, average="micro", seed=1
    ) == paired_difference(labels, predictions, labels, average="micro", seed=1)


def test_one_class_gives_the_binomial_interval() -> None:
    # With one class only images are drawn, so the ends are quantiles of Binomial(100, 0.3) / 100,
    # which a table gives as 0.21 and 0.39.
    labels, predictions = from_counts([30], [100])
    interval = bootstrap_accuracy(labels, predictions, average="micro", resamples=20_000)
    assert [interval.low, interval.high] == pytest.approx([0.21, 0.39])


@pytest.mark.parametrize(
    ("confidence", "low", "high"),
    [(0.98, 0.0, 1.0), (0.95, 0.25, 1.0), (0.8, 0.5, 1.0), (0.3, 0.75, 1.0)],
)
def test_both_stages_by_hand(confidence: float, low: float, high: float) -> None:
    # Two classes, 2 of 2 and 1 of 2 right. The classes drawn are AA (1/4; accuracy 1), AB (1/2;
    # 0.5, 0.75, 1 with 1/4, 1/2, 1/4) or BB (1/4; Binomial(4, 1/2) / 4). Together, in 64ths:
    # 0: 1, 0.25: 4, 0.5: 14, 0.75: 20, 1: 25, so the shares up to each are 0.016, 0.08, 0.30, 0.61.
    interval = bootstrap_accuracy(
        *from_counts([2, 1], [2, 2]), average="balanced", resamples=20_000, confidence=confidence
    )
    assert [interval.low, interval.high] == pytest.approx([low, high])


def test_agreement_inside_classes_widens_the_interval() -> None:
    # Both have 50 of 100 images correct; in one of them whole classes fail together.
    mixed = bootstrap_accuracy(*from_counts([5] * 10, [10] * 10), average="micro")
    clustered = bootstrap_accuracy(*from_counts([10, 0] * 5, [10] * 10), average="micro")
    assert clustered.high - clustered.low > 2 * (mixed.high - mixed.low)


@pytest.mark.parametrize("average", AVERAGES)
def test_none_or_all_correct_gives_the_wilson_interval(average: Average) -> None:
    # Upper end for 0 of n: z^2 / (n + z^2), with z = 1.959964.
    limit = 1.959964**2 / (20 + 1.959964**2)
    none = bootstrap_accuracy(*from_counts([0, 0], [5, 15]), average=average)
    every = bootstrap_accuracy(*from_counts([5, 15], [5, 15]), average=average)
    assert (none.estimate, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(limit, abs=1e-6)
    assert (every.estimate, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(1 - limit, abs=1e-6)


def coverage(within_only: bool) -> float:
    """Share of simulated studies whose 90 % interval holds the mean of the class distribution."""
    generator = np.random.default_rng(5)
    hits = 0
    studies = 200
    for study in range(studies):
        correct = generator.binomial(20, generator.beta(1, 3, size=25))
        labels, predictions = from_counts(correct, [20] * 25)
        if within_only:  # one class holds all images: the bootstrap cannot see the classes
            predictions = np.where(labels == predictions, 0, -1)
            labels = np.zeros_like(labels)
        interval = bootstrap_accuracy(
            labels, predictions, average="balanced", resamples=200, confidence=0.9, seed=study
        )
        hits += interval.low <= 0.25 <= interval.high
    return hits / studies


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    assert 0.85 <= coverage(within_only=False) <= 0.97


def test_without_the_class_level_the_coverage_would_be_far_too_low() -> None:
    assert coverage(within_only=True) < 0.75


def test_mean_over_seeds_by_hand() -> None:
    # Mean 0.3, standard deviation 0.1, t(2 degrees of freedom, 0.975) = 4.302653.
    interval = mean_over_seeds([0.2, 0.3, 0.4])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert interval.estimate == pytest.approx(0.3)
    assert interval.low == pytest.approx(0.3 - half, abs=1e-6)
    assert interval.high == pytest.approx(0.3 + half, abs=1e-6)
    assert interval.n == 3


def test_one_seed_has_a_mean_but_no_interval() -> None:
    interval = mean_over_seeds([0.25])
    assert (interval.estimate, interval.n) == (0.25, 1)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert json.loads(json.dumps(interval.as_dict(), allow_nan=False)) == {
        "estimate": 0.25,
        "low": None,
        "high": None,
        "n": 1,
    }


@pytest.mark.parametrize(
    ("confidence", "low", "high"),
    [
        # The 27 draws have means from 0.2 to 0.4 in steps of 1/30, 1, 3, 6, 7, 6, 3, 1 times: the
        # share at 0.2 is 0.037, up to 0.2333 it is 0.148, up to 0.2667 it is 0.370.
        (0.95, 0.2, 0.4),
        (0.8, 0.2 + 1 / 30, 0.4 - 1 / 30),
        (0.5, 0.2 + 2 / 30, 0.4 - 2 / 30),
    ],
)
def test_bootstrap_over_seeds_by_hand(confidence: float, low: float, high: float) -> None:
    interval = bootstrap_over_seeds([0.2, 0.3, 0.4], resamples=20_000, confidence=confidence)
    assert interval.estimate == pytest.approx(0.3)
    assert [interval.low, interval.high] == pytest.approx([low, high])
    assert interval.n == 3


def test_bootstrap_over_seeds_has_a_seed_and_no_order() -> None:
    values = [0.21, 0.35, 0.3, 0.42, 0.28]
    first = bootstrap_over_seeds(values, resamples=50, seed=1)
    assert first == bootstrap_over_seeds(values[::-1], resamples=50, seed=1)
    assert first != bootstrap_over_seeds(values, resamples=50, seed=2)


def test_bootstrap_over_few_seeds_is_shorter_than_the_t_interval() -> None:
    values = [0.2, 0.3, 0.4]
    resampled, normal = bootstrap_over_seeds(values), mean_over_seeds(values)
    assert normal.low < resampled.low < resampled.high < normal.high


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [1 / 3, 0.1 + 7 / 30]])
def test_seeds_that_agree_show_no_scatter(values: list[float]) -> None:
    for interval in (mean_over_seeds(values), bootstrap_over_seeds(values)):
        assert interval.estimate == pytest.approx(values[0])
        assert interval.n == len(values)
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
    # The least that accuracies differ by is seen: an image of a class, averaged over classes.
    least = mean_over_seeds([0.5, 0.5 + 1 / (345 * 1000)])
    assert least.low < least.estimate < least.high


def test_one_run_has_no_interval_by_any_method() -> None:
    for interval in (bootstrap_over_seeds([0.25]), paired_over_seeds({7: 0.5}, {7: 0.75})):
        assert (interval.estimate, interval.n) == (0.25, 1)
        assert interval.as_dict()["low"] is None
        assert interval.as_dict()["high"] is None


def test_paired_over_seeds_by_hand() -> None:
    # Differences 0.1, 0.2, 0.3 by seed: mean 0.2, standard deviation 0.1, t = 4.302653. The
    # mixtures list their seeds in different orders.
    interval = paired_over_seeds({0: 0.2, 1: 0.5, 2: 0.3}, {2: 0.6, 0: 0.3, 1: 0.7})
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert interval.estimate == pytest.approx(0.2)
    assert interval.low == pytest.approx(0.2 - half, abs=1e-6)
    assert interval.high == pytest.approx(0.2 + half, abs=1e-6)
    assert interval.n == 3


def test_pairing_over_seeds_gains_from_what_a_seed_does_to_both() -> None:
    first = {0: 0.2, 1: 0.5, 2: 0.8}
    second = {seed: value + 0.1 + seed / 1000 for seed, value in first.items()}
    interval = paired_over_seeds(first, second)
    half = 4.302653 * 0.001 / math.sqrt(3)
    assert [interval.low, interval.high] == pytest.approx([0.101 - half, 0.101 + half])
    assert mean_over_seeds(list(second.values())).low < 0


def test_seeds_of_one_mixture_only_are_refused() -> None:
    with pytest.raises(ValueError, match=r"only one of the two has seeds \[0, 3\]"):
        paired_over_seeds({0: 0.1, 1: 0.2}, {1: 0.3, 3: 0.4})
    with pytest.raises(ValueError, match="at least one"):
        paired_over_seeds({}, {})
    with pytest.raises(ValueError, match="finite"):
        paired_over_seeds({0: 0.1}, {0: math.inf})


@given(images=triples, average=st.sampled_from(AVERAGES))
@settings(max_examples=50, deadline=None)
def test_difference_is_that_of_the_two_accuracies(
    images: list[tuple[int, int, int]], average: Average
) -> None:
    labels, first, second = np.array(images).T
    interval = paired_difference(labels, first, second, average=average, resamples=50)
    accuracy_a, accuracy_b = (
        bootstrap_accuracy(labels, predictions, average=average, resamples=1).estimate
        for predictions in (first, second)
    )
    assert interval.estimate == pytest.approx(accuracy_b - accuracy_a)
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
    assert interval.low < interval.high


def test_difference_from_a_model_that_is_always_wrong_is_the_accuracy() -> None:
    labels, predictions = from_counts([3, 6, 9, 1], [10, 12, 9, 8])
    alone = bootstrap_accuracy(labels, predictions, average="balanced", resamples=4000)
    wrong = np.full_like(labels, -1)
    paired = paired_difference(labels, wrong, predictions, average="balanced", resamples=4000)
    assert paired.estimate == pytest.approx(alone.estimate)
    assert paired.low == pytest.approx(alone.low, abs=0.03)
    assert paired.high == pytest.approx(alone.high, abs=0.03)


@pytest.mark.parametrize(("confidence", "low", "high"), [(0.8, -1, 1), (0.4, 0, 0)])
def test_both_models_see_the_same_classes_by_hand(
    confidence: float, low: float, high: float
) -> None:
    # Model a knows the one class, b the other: of the classes drawn, -1, 0 and 1 come out with
    # 1/4, 1/2, 1/4. Classes drawn for each model alone would give -1 and 1 with 1/16 only.
    labels = np.array([0, 0, 1, 1])
    interval = paired_difference(
        labels,
        np.array([0, 0, 0, 0]),
        np.array([1, 1, 1, 1]),
        average="balanced",
        resamples=4000,
        confidence=confidence,
    )
    assert [interval.low, interval.estimate, interval.high] == [low, 0, high]


def test_both_models_see_the_same_images_by_hand() -> None:
    # The same within one class: of two images a has the one right and b the other.
    interval = paired_difference(
        np.array([0, 0]),
        np.array([0, 1]),
        np.array([1, 0]),
        average="micro",
        resamples=4000,
        confidence=0.8,
    )
    assert [interval.low, interval.estimate, interval.high] == [-1, 0, 1]


def test_pairing_gains_from_errors_in_common() -> None:
    # Model b is right wherever a is, and on one image more in each class.
    labels, first = from_counts([10, 0] * 10, [10] * 20)
    _, second = from_counts([10, 1] * 10, [10] * 20)
    paired = paired_difference(labels, first, second, average="micro")
    alone = bootstrap_accuracy(labels, first, average="micro")
    assert paired.low > 0
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_swapping_the_models_changes_the_sign() -> None:
    labels, first = from_counts([3, 6, 2], [10, 10, 10])
    _, second = from_counts([7, 1, 5], [10, 10, 10])
    there = paired_difference(labels, first, second, average="micro", resamples=4000)
    back = paired_difference(labels, second, first, average="micro", resamples=4000)
    assert there.estimate == pytest.approx(-back.estimate)
    assert there.low == pytest.approx(-back.high, abs=0.03)
    assert there.high == pytest.approx(-back.low, abs=0.03)


def test_models_that_never_differ_still_have_an_uncertain_difference() -> None:
    labels, predictions = from_counts([3, 6], [10, 10])
    limit = 1.959964**2 / (20 + 1.959964**2)
    same = paired_difference(labels, predictions, predictions, average="micro")
    assert [same.low, same.estimate, same.high] == pytest.approx([-limit, 0, limit], abs=1e-6)
    worse = paired_difference(labels, labels, np.full_like(labels, -1), average="balanced")
    assert (worse.low, worse.estimate) == (-1.0, -1.0)
    assert worse.high == pytest.approx(-1 + 2 * limit, abs=1e-6)


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    labels, predictions = from_counts([3, 5, 1, 9], [10, 10, 10, 10])

    def width(confidence: float) -> float:
        found = bootstrap_accuracy(labels, predictions, average="micro", confidence=confidence)
        return found.high - found.low

    assert width(0.5) < width(0.9) < width(0.99)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "macro"}, "'macro'; choose 'balanced' or 'micro'"),
        ({"average": "micro", "resamples": 0}, "resamples is 0"),
        ({"average": "micro", "confidence": 95}, "confidence is 95"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    labels = np.array([0, 1])
    with pytest.raises(ValueError, match=message):
        bootstrap_accuracy(labels, labels, **options)
    with pytest.raises(ValueError, match=message):
        paired_difference(labels, labels, labels, **options)


def test_arrays_that_do_not_fit_are_refused() -> None:
    labels = np.array([0, 1])
    with pytest.raises(ValueError, match="no images"):
        bootstrap_accuracy(labels[:0], labels[:0], average="micro")
    with pytest.raises(ValueError, match="2 labels but 1 predictions"):
        paired_difference(labels, labels, labels[:1], average="micro")
    with pytest.raises(ValueError, match="at least one"):
        mean_over_seeds([])
    with pytest.raises(ValueError, match="finite"):
        mean_over_seeds([0.1, math.nan])
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_over_seeds([])
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap_over_seeds([0.1, 0.2], resamples=0)
    with pytest.raises(ValueError, match="confidence is 95"):
        bootstrap_over_seeds([0.1, 0.2], confidence=95)


def test_an_interval_cannot_be_changed() -> None:
    interval = Interval(0.5, 0.4, 0.6, 10)
    with pytest.raises(AttributeError):
        interval.low = 0.0  # type: ignore[misc]
