"""How well domains and classes are told apart in the embedding, in numbers with intervals.

A map pleases the eye and can mislead it; these numbers belong beside it. An embedding that
generalises over domains has its classes apart and its domains mixed.

- *Silhouette*: is an image nearer to its own group than to the nearest other one? From -1 to 1,
  0 where both are equally far.
- *Neighbour purity*: what share of the nearest neighbours of an image are of its own group?
- *Linear probe*: how often does a linear classifier find the domain of an image from a class it
  was not fitted to? It finds directions that carry the domain even where clusters do not show it.

Domains and classes get in each other's way. Where classes cluster, an image has few neighbours of
its own domain, for it is itself one of the few images that its class has there; and a probe that
has seen the rest of a class knows which domain is missing. Either would show domains less apart
than by chance. So chance for the purity deals out domains within classes (and classes within
domains), and the folds of the probe hold out whole classes.

Sources:
    Rousseeuw, P. J. (1987). Silhouettes: a graphical aid to the interpretation and validation of
        cluster analysis. Journal of Computational and Applied Mathematics 20, 53-65.
    Alain, G. and Bengio, Y. (2017). Understanding intermediate layers using linear classifier
        probes. ICLR workshop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clip_mixtures.mechanisms.class_bootstrap import bootstrap_over_classes
from clip_mixtures.mechanisms.distances import group_means
from clip_mixtures.mechanisms.embedding import Features, IntArray, group_codes, unit_features
from clip_mixtures.mechanisms.neighbours import neighbour_shares, purity, purity_by_chance

FloatArray = npt.NDArray[np.float64]

_ROUNDING = 1e-12  # distances of unit vectors in double precision that are zero but for rounding
# Standardised features of unit vectors separate easily; this holds the weights of the probe in
# check, so that a few dozen steps find them.
_PROBE_C = 0.01
_PROBE_STEPS = 1000


@dataclass(frozen=True)
class _Measure:
    """One value an image, its weight in the mean (None for equal ones), and the mean by chance."""

    name: str
    of: str
    values: FloatArray
    chance: float
    weights: FloatArray | None = None


def separation(
    features: Features,
    domains: npt.ArrayLike,
    classes: npt.ArrayLike,
    *,
    neighbours: int = 10,
    folds: int = 5,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how well domains and classes are told apart in the embedding.

    The intervals are from a bootstrap over classes (``bootstrap_over_classes``) with clusters,
    neighbours and probes held as they are: they speak of the choice of classes, not of training.
    Purity compares every image with every other one, so its cost grows with the square of N; draw
    a sample first (``subsample``) where N is well above 12 000.

    Args:
        features: image embeddings, shape (N, D), scaled to unit length inside.
        domains: the domain of each image, shape (N,), names or ids.
        classes: the class of each image, shape (N,), names or ids.
        neighbours: nearest neighbours for the purity, from 1 to N - 1.
        folds: folds of the probe's cross-validation, at least 2; fewer where there are fewer
            classes, or images of a domain.
        resamples: number of bootstrap resamples.
        confidence: coverage aimed at, between 0 and 1.
        seed: seed of the folds and of the bootstrap, not negative.

    Returns:
        A row a measure: ``measure`` (``silhouette``, ``neighbour_purity`` or ``linear_probe``),
        ``of`` (``domain`` or ``class``; the probe is of domains only), ``estimate``, ``low``,
        ``high``, ``chance`` (what an embedding without a trace of the group gives on average; for
        the silhouette a little less than the 0 stated, as the nearest of several groups counts)
        and ``n`` (int64, images). A measure that the images do not allow is NaN: the silhouette of
        a single group, the probe of a single domain, class or image of a domain.

    Raises:
        ValueError: unusable features, labels that do not match, or an option out of its range.
    """
    rows = unit_features(features)
    codes = {
        "domain": group_codes(domains, len(rows), "domain")[0],
        "class": group_codes(classes, len(rows), "class")[0],
    }
    if not 1 <= neighbours < len(rows):
        raise ValueError(
            f"neighbours is {neighbours} but there are {len(rows)} images; "
            "choose from 1 to one less than images"
        )
    if folds < 2:
        raise ValueError(f"folds is {folds}; cross-validation takes at least 2")
    found = []
    for one in _measures(rows, codes["domain"], codes["class"], neighbours, folds, seed):
        low = high = estimate = math.nan
        if np.isfinite(one.values).all():
            interval = bootstrap_over_classes(
                one.values,
                codes["class"],
                weights=one.weights,
                resamples=resamples,
                confidence=confidence,
                seed=seed,
            )
            estimate, low, high = interval.estimate, interval.low, interval.high
        found.append((one.name, one.of, estimate, low, high, one.chance, len(rows)))
    columns = ["measure", "of", "estimate", "low", "high", "chance", "n"]
    return pd.DataFrame(found, columns=columns)


def silhouettes(rows: FloatArray, codes: IntArray) -> FloatArray:
    """Compute the silhouette of every image by cosine distance, exactly and without all pairs.

    With a the mean distance to the other images of the own group and b that to the images of the
    nearest other group, the silhouette is (b - a) / max(a, b). The mean cosine distance of a unit
    vector x to a group is 1 - x . mean of the group, so that the means are enough.

    Args:
        rows: unit vectors, shape (N, D), float64.
        codes: number of each image's group, shape (N,), from 0 without a gap.

    Returns:
        Silhouettes from -1 to 1, shape (N,). Zero for an image that is alone in its group, and
        where a and b are both zero; NaN throughout with a single group.
    """
    means, images = group_means(rows, codes)
    if len(means) == 1:
        return np.full(len(rows), np.nan)
    distances = 1 - rows @ means.T
    everyone = np.arange(len(rows))
    own_size = images[codes]
    # The mean distance to the own group counts the image itself, at distance 0; leave it out.
    within = distances[everyone, codes] * own_size / np.maximum(own_size - 1, 1)
    distances[everyone, codes] = np.inf
    nearest = distances.min(axis=1)
    scale = np.maximum(within, nearest)
    apart = (own_size > 1) & (scale > _ROUNDING)
    return np.where(apart, (nearest - within) / np.where(apart, scale, 1.0), 0.0)


def linear_probe(
    rows: FloatArray, codes: IntArray, held_together: IntArray, *, folds: int, seed: int
) -> FloatArray:
    """Find each image's group with a linear classifier that was fitted to other images.

    Logistic regression on standardised features, with groups weighted the same, in stratified
    cross-validation that never divides the images of a class.

    Args:
        rows: features, shape (N, D), float64.
        codes: number of each image's group, shape (N,), from 0 without a gap.
        held_together: number of each image's class, shape (N,), likewise.
        folds: number of folds, at least 2; as many as classes, or images of the smallest group,
            if those are fewer.
        seed: seed of the division into folds.

    Returns:
        1.0 where the group was found and 0.0 where not, shape (N,); NaN throughout with a single
        group, a group of one image or a single class.
    """
    counts = np.bincount(codes)
    folds = min(folds, int(counts.min()), int(held_together.max()) + 1)
    if len(counts) < 2 or folds < 2:
        return np.full(len(rows), np.nan)
    division = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    found = np.empty(len(rows), dtype=np.int64)
    for fitted, tested in division.split(rows, codes, held_together):
        if len(np.unique(codes[fitted])) == 1:
            # The classes of all other groups are held out, and nothing is left to tell apart.
            found[tested] = codes[fitted][0]
            continue
        probe = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=_PROBE_C, class_weight="balanced", max_iter=_PROBE_STEPS),
        )
        found[tested] = probe.fit(rows[fitted], codes[fitted]).predict(rows[tested])
    return np.asarray(found == codes, dtype=np.float64)


def _measures(
    rows: FloatArray,
    domains: IntArray,
    classes: IntArray,
    neighbours: int,
    folds: int,
    seed: int,
) -> Iterator[_Measure]:
    """Yield the measures in the order of the table."""
    yield _Measure("silhouette", "domain", silhouettes(rows, domains), chance=0.0)
    yield _Measure("silhouette", "class", silhouettes(rows, classes), chance=0.0)
    by_domain, by_class = neighbour_shares(rows, [domains, classes], neighbours)
    chance = float(purity_by_chance(by_class, domains, classes).mean())
    yield _Measure("neighbour_purity", "domain", purity(by_domain, domains), chance)
    chance = float(purity_by_chance(by_domain, classes, domains).mean())
    yield _Measure("neighbour_purity", "class", purity(by_class, classes), chance)
    images = np.bincount(domains)
    hits = linear_probe(rows, domains, classes, folds=folds, seed=seed)
    # Every domain counts the same, so that a guess is right as often as there are domains to one.
    yield _Measure("linear_probe", "domain", hits, 1 / len(images), weights=1 / images[domains])
