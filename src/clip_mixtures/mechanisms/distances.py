"""How far the domains lie from each other in the embedding, and along which dimensions.

Features are scaled to unit length first, so a distance lies between 0 and 2. A mean of n images
strays from the true one, and straying lengthens a distance: with n images on either side, its
square is too large by the sum of the two variances over n on average. Compare distances that rest
on like numbers of images; where classes have few, prefer the numbers of
``clip_mixtures.mechanisms.separation``, which do not suffer from this.

Source: the study's analysis of the embedding around Figure 5 (heat maps of the distance of domain
means, overall and class by class; mean difference by dimension).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clip_mixtures.errors import unknown
from clip_mixtures.mechanisms.class_bootstrap import bootstrap_over_classes
from clip_mixtures.mechanisms.embedding import Features, IntArray, group_codes, unit_features

FloatArray = npt.NDArray[np.float64]


def domain_distances(features: Features, domains: npt.ArrayLike) -> pd.DataFrame:
    """Measure the Euclidean distance between the means of every two domains.

    There is no interval: images drawn anew would stray further from the observed means, and every
    resampled distance would be too long.

    Args:
        features: image embeddings, shape (N, D), scaled to unit length inside.
        domains: the domain of each image, shape (N,), names or ids.

    Returns:
        A row a pair of domains, in the order in which they first appear: ``domain_a``,
        ``domain_b``, ``distance``, ``images_a`` and ``images_b`` (int64). No rows with a single
        domain.

    Raises:
        ValueError: unusable features, or not one domain an image.
    """
    rows = unit_features(features)
    codes, names = group_codes(domains, len(rows), "domain")
    means, images = group_means(rows, codes)
    pairs = list(itertools.combinations(range(len(names)), 2))
    return pd.DataFrame(
        {
            "domain_a": [names[a] for a, _ in pairs],
            "domain_b": [names[b] for _, b in pairs],
            "distance": np.array([np.linalg.norm(means[a] - means[b]) for a, b in pairs]),
            "images_a": np.array([images[a] for a, _ in pairs], dtype=np.int64),
            "images_b": np.array([images[b] for _, b in pairs], dtype=np.int64),
        }
    )


def class_distances(
    features: Features,
    domains: npt.ArrayLike,
    classes: npt.ArrayLike,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how far two domains lie apart class by class, on average over classes.

    For each class that both domains have, the Euclidean distance between the means of its images
    in the one and in the other. A domain may thus lie on top of another as a whole while their
    classes lie apart.

    Args:
        features: image embeddings, shape (N, D), scaled to unit length inside.
        domains: the domain of each image, shape (N,), names or ids.
        classes: the class of each image, shape (N,), names or ids.
        resamples: number of bootstrap resamples.
        confidence: coverage aimed at, between 0 and 1.
        seed: seed of the bootstrap.

    Returns:
        A row a pair of domains, in the order in which they first appear: ``domain_a``,
        ``domain_b``, ``distance``, ``low`` and ``high`` (bootstrap over classes), ``classes``
        (int64, how many both have). Without a class in common the distance is NaN; with one,
        ``low`` and ``high`` are. No rows with a single domain.

    Raises:
        ValueError: unusable features, labels that do not match, or an option out of its range.
    """
    rows = unit_features(features)
    domain_codes, names = group_codes(domains, len(rows), "domain")
    class_codes, class_names = group_codes(classes, len(rows), "class")
    means = _means_by_domain(rows, domain_codes, class_codes, len(class_names))
    found = []
    for a, b in itertools.combinations(range(len(names)), 2):
        both = sorted(means[a].keys() & means[b].keys())
        record = {"domain_a": names[a], "domain_b": names[b], "distance": math.nan}
        record |= {"low": math.nan, "high": math.nan, "classes": len(both)}
        if both:
            lengths = np.array([np.linalg.norm(means[a][c] - means[b][c]) for c in both])
            interval = bootstrap_over_classes(
                lengths,
                np.arange(len(both)),
                resamples=resamples,
                confidence=confidence,
                seed=seed,
            )
            record |= {"distance": interval.estimate, "low": interval.low, "high": interval.high}
        found.append(record)
    columns = ["domain_a", "domain_b", "distance", "low", "high", "classes"]
    return pd.DataFrame(found, columns=columns)


def mean_difference(
    features: Features, domains: npt.ArrayLike, domain: Any, other: Any = None
) -> pd.DataFrame:
    """Compare the mean of a domain with that of another, dimension by dimension.

    Args:
        features: image embeddings, shape (N, D), scaled to unit length inside.
        domains: the domain of each image, shape (N,), names or ids.
        domain: the domain to describe.
        other: the domain to compare with; None for all others, the mean of their means, so that
            a large domain does not stand for all of them.

    Returns:
        A row a dimension, by falling difference: ``dimension`` (int64, from 0), ``difference``
        (float64, mean of ``domain`` minus mean of ``other``).

    Raises:
        UserError: no image is of ``domain`` or of ``other``.
        ValueError: unusable features, not one domain an image, or nothing to compare with.
    """
    rows = unit_features(features)
    codes, names = group_codes(domains, len(rows), "domain")
    for name in (domain,) if other is None else (domain, other):
        if name not in names:
            raise unknown("domain", name, names, "the mean difference")
    means, _ = group_means(rows, codes)
    if len(names) == 1 or other == domain:
        raise ValueError(f"there is no domain to compare {domain!r} with; give another one")
    place = names.index(domain)
    others = np.delete(means, place, axis=0) if other is None else means[[names.index(other)]]
    difference = means[place] - others.mean(axis=0)
    order = np.argsort(-difference, kind="stable")
    return pd.DataFrame({"dimension": order.astype(np.int64), "difference": difference[order]})


def top_dimensions(
    features: Features, domains: npt.ArrayLike, domain: Any, other: Any = None
) -> pd.DataFrame:
    """Return the two dimensions along which a domain's mean differs most, for a scatter plot.

    Args:
        features: image embeddings, shape (N, D) with D at least 2, scaled to unit length inside.
        domains: the domain of each image, shape (N,), names or ids.
        domain: the domain to describe.
        other: the domain to compare with; None for all others, see ``mean_difference``.

    Returns:
        A row an image: ``domain`` and one column for each of the two, named by its number, as in
        ``dimension_17``. The larger difference in absolute value comes first.

    Raises:
        UserError: no image is of ``domain`` or of ``other``.
        ValueError: see ``mean_difference``; or the features have a single dimension.
    """
    rows = unit_features(features)
    if rows.shape[1] < 2:
        raise ValueError("features have a single dimension; a scatter plot takes two")
    differences = mean_difference(features, domains, domain, other)
    by_size = differences["difference"].abs().sort_values(ascending=False, kind="stable").index
    chosen = [int(dimension) for dimension in differences["dimension"].loc[by_size[:2]]]
    columns = {f"dimension_{dimension}": rows[:, dimension] for dimension in chosen}
    return pd.DataFrame({"domain": np.asarray(domains), **columns})


def group_means(rows: FloatArray, codes: IntArray) -> tuple[FloatArray, IntArray]:
    """Average the rows of every group.

    Args:
        rows: shape (N, D), float64.
        codes: number of each row's group, shape (N,), from 0 without a gap.

    Returns:
        Means by group, shape (G, D), float64, and rows of each group, shape (G,), int64.
    """
    order = np.argsort(codes, kind="stable")
    images = np.bincount(codes).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(images)[:-1]])
    return np.add.reduceat(rows[order], starts, axis=0) / images[:, None], images


def _means_by_domain(
    rows: FloatArray, domains: IntArray, classes: IntArray, class_count: int
) -> list[dict[int, FloatArray]]:
    """Return for each domain the mean of each class that it has."""
    present, codes = np.unique(domains * class_count + classes, return_inverse=True)
    means, _ = group_means(rows, codes.astype(np.int64))
    found: list[dict[int, FloatArray]] = [{} for _ in range(int(domains.max()) + 1)]
    for cell, mean in zip(present.tolist(), means, strict=True):
        found[cell // class_count][cell % class_count] = mean
    return found
