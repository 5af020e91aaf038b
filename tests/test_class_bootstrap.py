"""The bootstrap over classes: what is resampled, how far out its ends lie, how often they hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clip_mixtures.mechanisms.class_bootstrap import (
    bootstrap_over_classes,
    expanded_ends,
    expanded_tail,
)


def test_the_mean_is_over_images_or_by_weight() -> None:
    values, classes = np.array([1.0, 0, 0, 1]), np.array([0, 0, 0, 1])
    assert bootstrap_over_classes(values, classes).estimate == 0.5
    weighted = bootstrap_over_classes(values, classes, weights=np.array([1.0, 1, 1, 3]))
    assert weighted.estimate == pytest.approx(4 / 6)
    assert weighted.n == 4
    # Two classes: a resample is one, the other or both, so the ends are the class means.
    assert [weighted.low, weighted.high] == pytest.approx([1 / 3, 1])


def test_a_class_of_many_images_weighs_more_in_a_resample() -> None:
    # One image that is right, three of another class that are not. Half of the resamples have both
    # classes, with a mean of 1/4 over images; the middle third of all are of this kind.
    values, classes = np.array([1.0, 0, 0, 0]), np.array([0, 1, 1, 1])
    found = bootstrap_over_classes(values, classes, confidence=0.2)
    assert [found.low, found.estimate, found.high] == pytest.approx([0.25] * 3)


def test_images_of_a_class_stay_together() -> None:
    # Ten classes wholly right or wrong vary as ten coins do, however many images they have.
    values = np.repeat(np.arange(10) % 2, 100).astype(np.float64)
    together = bootstrap_over_classes(values, np.repeat(np.arange(10), 100))
    apart = bootstrap_over_classes(values, np.arange(1000))
    # The standard error is 0.5 / sqrt(10), its multiple 2.38 by sqrt(10 / 9) of Student's 2.26.
    assert together.high - together.low == pytest.approx(2 * 2.38 * 0.158, abs=0.11)
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(1000), rel=0.15)


def test_one_class_gives_no_interval() -> None:
    found = bootstrap_over_classes(np.array([1.0, 0]), np.array([0, 0]))
    assert found.estimate == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="values is empty"):
        bootstrap_over_classes(np.array([]), np.array([], dtype=np.int64))


def share_of_intervals_that_hold(truth: float, classes: int, studies: int) -> float:
    """Simulate studies of normal values of the classes."""
    values = truth + np.random.default_rng(7).normal(size=(studies, classes))
    numbers = np.arange(classes)
    held = 0
    for study, of_class in enumerate(values):
        found = bootstrap_over_classes(of_class, numbers, seed=study)
        held += found.low <= truth <= found.high
    return held / studies


def test_intervals_of_few_classes_hold_the_truth_as_often_as_they_say() -> None:
    # 3,000 studies: a standard error of 0.4 points. Plain percentiles hold it in 91.8 %.
    assert share_of_intervals_that_hold(0.3, 15, 3000) == pytest.approx(0.95, abs=0.012)


def test_the_tail_is_the_one_of_students_interval() -> None:
    # t of 14 degrees of freedom is 2.14479; times the root of 15 / 14 it is 2.22008.
    assert expanded_tail(15, 0.95) == pytest.approx(stats.norm.cdf(-2.22008), rel=1e-4)


@given(st.integers(2, 400), st.floats(0.05, 0.995))
@settings(max_examples=60, deadline=None)
def test_the_tail_grows_with_the_classes_up_to_that_of_percentiles(
    groups: int, confidence: float
) -> None:
    tail = expanded_tail(groups, confidence)
    assert 0 <= tail < expanded_tail(groups + 1, confidence) < (1 - confidence) / 2


def test_of_many_classes_the_interval_is_that_of_percentiles() -> None:
    assert expanded_tail(100_000, 0.95) == pytest.approx(0.025, rel=1e-3)
    resampled = np.random.default_rng(0).normal(size=10_000)
    wide = expanded_ends(resampled, 0.0, 100_000, 0.95)
    assert wide == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=2e-3)


def test_the_interval_of_fewer_classes_is_the_longer_one() -> None:
    resampled = np.random.default_rng(0).normal(size=10_000)
    lengths = [
        high - low
        for low, high in (expanded_ends(resampled, 0.0, n, 0.95) for n in (3, 5, 15, 50, 500))
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) == 5


def test_ends_include_the_estimate() -> None:
    resampled = np.array([1.0, 2.0, 3.0])
    assert expanded_ends(resampled, 0.5, 20, 0.95)[0] == 0.5
    assert expanded_ends(resampled, 9.0, 20, 0.95)[1] == 9.0


def test_it_is_classes_and_not_images_that_count() -> None:
    """Two classes of a thousand images: the ends are the means of the one and of the other."""
    values = np.repeat([0.2, 0.6], 1000)
    found = bootstrap_over_classes(values, np.repeat([0, 1], 1000))
    assert (found.low, found.high) == pytest.approx((0.2, 0.6))


def test_what_has_no_tail_is_refused() -> None:
    with pytest.raises(ValueError, match="groups is 1"):
        expanded_tail(1, 0.95)
    with pytest.raises(ValueError, match=r"confidence is 1\.5"):
        expanded_tail(10, 1.5)
