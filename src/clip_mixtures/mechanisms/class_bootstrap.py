"""Interval of a mean over images when the images of a class belong together.

The images of a class lie near each other in an embedding and are right or wrong together, so that
the classes, and not the images, are what another study would draw anew. Each resample draws as
many classes as there are, with replacement, and takes all images of a drawn class.

Sources:
    Davison, A. C. and Hinkley, D. V. (1997). Bootstrap Methods and their Application. Cambridge
        University Press, section 3.8. (resampling whole groups)
    Efron, B. and Tibshirani, R. J. (1993). An Introduction to the Bootstrap. Chapman & Hall.
        (percentile interval)
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from clip_mixtures.evaluation.statistics import Interval


def bootstrap_over_classes(
    values: npt.NDArray[np.float64],
    classes: npt.NDArray[np.int64],
    *,
    weights: npt.NDArray[np.float64] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Average one value an image, with a bootstrap interval over classes.

    Args:
        values: one value an image, shape (N,), finite.
        classes: number of each image's class, shape (N,), integers from 0 without a gap.
        weights: weight of each image in the mean, shape (N,), positive; None for equal ones.
        resamples: number of bootstrap resamples, at least 1.
        confidence: coverage aimed at, between 0 and 1.
        seed: seed of the random generator; the same seed gives the same interval.

    Returns:
        Weighted mean in the unit of ``values``; ``n`` is the number of images. The interval is
        widened to include the estimate should the percentiles miss it. One class alone shows
        nothing of how classes differ: ``low`` and ``high`` are NaN.

    Raises:
        ValueError: no values, or an option out of its range.
    """
    if len(values) == 0:
        raise ValueError("values is empty; there is nothing to average")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; draw at least 1 (1000 is a good start)")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a fraction between 0 and 1, as 0.95")
    shares = np.ones(len(values)) if weights is None else weights
    sums = np.bincount(classes, weights=values * shares)
    totals = np.bincount(classes, weights=shares)
    estimate = float(sums.sum() / totals.sum())
    if len(sums) == 1:
        return Interval(estimate, math.nan, math.nan, len(values))
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / totals[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), len(values))
