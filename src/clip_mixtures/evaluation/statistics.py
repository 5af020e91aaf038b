"""Uncertainty of accuracies: over images and classes, over seeds, and between two models.

The bootstrap has two levels because the images of a class succeed and fail together: a model that
misses a held-out class tends to miss most of its images. Resampling images alone would treat them
as independent and give intervals that are far too short.

Sources:
    Efron, B. and Tibshirani, R. J. (1993). An Introduction to the Bootstrap. Chapman & Hall.
        (percentile interval)
    Davison, A. C. and Hinkley, D. V. (1997). Bootstrap Methods and their Application. Cambridge
        University Press, section 3.8. (resampling of hierarchical data)
    Wilson, E. B. (1927). Probable inference, the law of succession, and statistical inference.
        Journal of the American Statistical Association 22, 209-212. (score interval)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from clip_mixtures.evaluation.accuracy import check_predictions, per_class_accuracy

Average = Literal["balanced", "micro"]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Seeds whose accuracies differ by less agree: one image of any test set is more.
_AGREEING = 1e-9


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval.

    Attributes:
        estimate: the value itself.
        low: lower end; NaN where the data allow no interval.
        high: upper end; NaN where the data allow no interval.
        n: how many observations it rests on (images or seeds, see the function that made it).
    """

    estimate: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the fields for JSON, with None in place of NaN, which JSON cannot hold."""
        return {
            "estimate": _or_none(self.estimate),
            "low": _or_none(self.low),
            "high": _or_none(self.high),
            "n": self.n,
        }


def bootstrap_accuracy(
    labels: IntArray,
    predictions: IntArray,
    *,
    average: Average,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Estimate the accuracy with a two-level bootstrap interval.

    Each resample draws as many classes as there are, with replacement, and then the images of
    each drawn class with replacement. For a class with k of n images correct, the number correct
    among n images drawn with replacement follows Binomial(n, k/n) exactly, so one binomial draw
    stands for the images. The ends are percentiles of the resampled accuracies (Efron and
    Tibshirani 1993), widened to include the estimate should they miss it.

    Redrawing the images within the drawn classes counts the variation inside a class twice (the
    spread of the observed class accuracies holds it already), so the interval errs on the side of
    being wide when classes have few images; see Davison and Hinkley 1997, section 3.8.

    With no image correct, or all of them, every resample repeats the estimate and the percentile
    interval would claim certainty. The Wilson (1927) score interval for n images takes its place;
    it knows nothing of classes, hence it is rather short when they are few. With a single class
    the interval covers the choice of images only.

    Args:
        labels: true class ids, shape (N,), integer.
        predictions: predicted class ids, shape (N,), integer.
        average: ``"balanced"`` (mean of the class accuracies) or ``"micro"`` (mean over images).
        resamples: number of bootstrap resamples, at least 1.
        confidence: coverage aimed at, between 0 and 1.
        seed: seed of the random generator; the same seed gives the same interval.

    Returns:
        Accuracy and interval as fractions in [0, 1]; ``n`` is the number of images.

    Raises:
        ValueError: the arrays are empty or do not match, or an option is out of its range.
    """
    _check_options(average, resamples, confidence)
    classes = per_class_accuracy(labels, predictions)
    correct = classes["correct"].to_numpy(dtype=np.int64)
    images = classes["images"].to_numpy(dtype=np.int64)
    total = int(images.sum())
    estimate = float(_averaged(correct, images, average))
    if correct.sum() in (0, total):
        return _around(estimate, *_wilson(int(correct.sum()), total, confidence), total)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(classes), size=(resamples, len(classes)))
    redrawn = generator.binomial(images[drawn], (correct / images)[drawn])
    return _percentile(estimate, _averaged(redrawn, images[drawn], average), confidence, total)


def paired_difference(
    labels: IntArray,
    predictions_a: IntArray,
    predictions_b: IntArray,
    *,
    average: Average,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Estimate accuracy(b) - accuracy(a) on the same images with a two-level bootstrap interval.

    An image has one of four outcomes: both right, only a right, only b right, both wrong. The
    resampling is that of ``bootstrap_accuracy``, with a multinomial draw over the four outcomes of
    a class in place of the binomial one. What the two models get right or wrong together thus
    stays together, and the interval is shorter than one from two separate bootstraps.

    If the two are right on exactly the same images, or one is right wherever the other is wrong,
    no resample differs from the estimate. The Wilson (1927) limit u on the share of images with
    an outcome that was never observed then bounds the difference: [-u, u] around zero, and
    1 - 2u at the inner end of a difference of one.

    Args:
        labels: true class ids, shape (N,), integer.
        predictions_a: class ids predicted by model a, shape (N,), integer.
        predictions_b: class ids predicted by model b for the same images, shape (N,), integer.
        average: ``"balanced"`` or ``"micro"``.
        resamples: number of bootstrap resamples, at least 1.
        confidence: coverage aimed at, between 0 and 1.
        seed: seed of the random generator; the same seed gives the same interval.

    Returns:
        Difference and interval as fractions in [-1, 1]; ``n`` is the number of images.

    Raises:
        ValueError: the arrays are empty or do not match, or an option is out of its range.
    """
    _check_options(average, resamples, confidence)
    check_predictions(labels, predictions_a)
    check_predictions(labels, predictions_b)
    outcomes = _joint_outcomes(labels, predictions_a, predictions_b)
    images = outcomes.sum(axis=1)
    total = int(images.sum())
    gained = outcomes[:, 2] - outcomes[:, 1]
    estimate = float(_averaged(gained, images, average))
    only_a, only_b = int(outcomes[:, 1].sum()), int(outcomes[:, 2].sum())
    if only_a + only_b == 0 or total in (only_a, only_b):
        unseen = _wilson(0, total, confidence)[1]
        reach = unseen if only_a + only_b == 0 else 2 * unseen
        return _around(estimate, max(estimate - reach, -1.0), min(estimate + reach, 1.0), total)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(images), size=(resamples, len(images)))
    shares = outcomes / images[:, None]
    redrawn = generator.multinomial(images[drawn], shares[drawn])
    differences = _averaged(redrawn[..., 2] - redrawn[..., 1], images[drawn], average)
    return _percentile(estimate, differences, confidence, total)


def mean_over_seeds(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Average one number over training seeds, with Student's t interval.

    The interval assumes that the seeds' values scatter normally; it is not cut at 0 or 1, so that
    it serves differences as well as accuracies. It speaks of the choice of seed only, for the
    test images are the same throughout.

    Args:
        values: one finite number a seed, at least one.
        confidence: coverage aimed at, between 0 and 1.

    Returns:
        Mean and interval in the unit of ``values``; ``n`` is the number of seeds. One seed, or
        seeds that agree to the last image, show nothing of the scatter: ``low`` and ``high`` are
        NaN.

    Raises:
        ValueError: no values, a value that is not finite, or a confidence out of range.
    """
    _check_confidence(confidence)
    array = _one_a_seed(values)
    mean = float(array.mean())
    if _show_no_scatter(array):
        return Interval(mean, math.nan, math.nan, array.size)
    quantile = float(stats.t.ppf(0.5 + confidence / 2, df=array.size - 1))
    half = quantile * float(array.std(ddof=1)) / math.sqrt(array.size)
    return Interval(mean, mean - half, mean + half, array.size)


def bootstrap_over_seeds(
    values: Sequence[float], *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Average one number over training seeds, with a bootstrap interval over the runs.

    Each resample draws as many runs as there are, with replacement; the ends are percentiles of
    the resampled means. Nothing is assumed of the scatter, but n runs show only (n - 1) / n of its
    variance and their mean cannot leave the range of the values, so the interval is too short for
    few seeds. Below about ten, prefer ``mean_over_seeds``.

    Args:
        values: one finite number a seed, at least one.
        resamples: number of bootstrap resamples, at least 1.
        confidence: coverage aimed at, between 0 and 1.
        seed: seed of the random generator, not of training; the same seed gives the same interval.

    Returns:
        Mean and interval in the unit of ``values``; ``n`` is the number of seeds. One seed, or
        seeds that agree to the last image, show nothing of the scatter: ``low`` and ``high`` are
        NaN.

    Raises:
        ValueError: no values, a value that is not finite, or an option out of its range.
    """
    _check_resampling(resamples, confidence)
    # By value, so that the draws do not depend on the order of runs.
    array = np.sort(_one_a_seed(values))
    mean = float(array.mean())
    if _show_no_scatter(array):
        return Interval(mean, math.nan, math.nan, array.size)
    drawn = np.random.default_rng(seed).integers(array.size, size=(resamples, array.size))
    return _percentile(mean, array[drawn].mean(axis=1), confidence, array.size)


def paired_over_seeds(
    values_a: Mapping[int, float], values_b: Mapping[int, float], *, confidence: float = 0.95
) -> Interval:
    """Average b - a over training seeds that both mixtures have, with Student's t interval.

    Runs of one architecture with the same seed start from the same weights, and what those do to
    both runs cancels in their difference. The interval is that of ``mean_over_seeds`` of the
    differences: it speaks of the choice of seed only, not of the test images.

    Args:
        values_a: training seed to the number of mixture a, each finite.
        values_b: the same seeds to the number of mixture b.
        confidence: coverage aimed at, between 0 and 1.

    Returns:
        Mean difference and interval; ``n`` is the number of seeds. With one seed, or where
        all differ by the same, ``low`` and ``high`` are NaN.

    Raises:
        ValueError: seeds that only one of the two has, no seeds, a value that is not finite, or a
            confidence out of range.
    """
    alone = sorted(values_a.keys() ^ values_b.keys())
    if alone:
        raise ValueError(
            f"only one of the two has seeds {alone}; train the other or leave them out"
        )
    differences = [values_b[seed] - values_a[seed] for seed in sorted(values_a)]
    return mean_over_seeds(differences, confidence=confidence)


def _show_no_scatter(array: FloatArray) -> bool:
    return array.size == 1 or bool(np.ptp(array) < _AGREEING)


def _one_a_seed(values: Sequence[float]) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"values has shape {array.shape}; give one number a seed, at least one")
    if not np.isfinite(array).all():
        raise ValueError(f"values {array.tolist()} must be finite; leave out the failed seeds")
    return array


def _joint_outcomes(labels: IntArray, first: IntArray, second: IntArray) -> IntArray:
    """Count both, only first, only second, neither right in each class, shape (classes, 4)."""
    classes, positions = np.unique(labels, return_inverse=True)
    outcome = np.where(labels == first, 0, 2) + np.where(labels == second, 0, 1)
    # Bits count misses: 0 both right, 1 only the first, 2 only the second, 3 neither.
    counts = np.bincount(positions * 4 + outcome, minlength=4 * len(classes))
    return counts.reshape(len(classes), 4).astype(np.int64)


def _averaged(hits: IntArray, images: IntArray, average: Average) -> FloatArray:
    """Average hits over the last axis, which runs over classes."""
    if average == "balanced":
        return np.asarray((hits / images).mean(axis=-1), dtype=np.float64)
    return np.asarray(hits.sum(axis=-1) / images.sum(axis=-1), dtype=np.float64)


def _percentile(estimate: float, values: FloatArray, confidence: float, n: int) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return _around(estimate, float(low), float(high), n)


def _around(estimate: float, low: float, high: float, n: int) -> Interval:
    return Interval(estimate, min(low, estimate), max(high, estimate), n)


def _wilson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _check_options(average: str, resamples: int, confidence: float) -> None:
    if average not in ("balanced", "micro"):
        raise ValueError(f"average is {average!r}; choose 'balanced' or 'micro'")
    _check_resampling(resamples, confidence)


def _check_resampling(resamples: int, confidence: float) -> None:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; draw at least 1 (1000 is a good start)")
    _check_confidence(confidence)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a fraction between 0 and 1, as 0.95")


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
