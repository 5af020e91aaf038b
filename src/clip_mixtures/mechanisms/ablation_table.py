"""Means over images and classes of what ablations do, with intervals and beside random units.

See ``ablation`` for what is ablated and what the measures mean.

Sources:
    Cochran, W. (1977). Sampling Techniques. Wiley, chapter 6. (ratio of means)
    Hesterberg, T. C. (2015). What teachers should know about the bootstrap. The American
        Statistician 69, 371-386, section 3. (expanded percentile interval)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from clip_mixtures.evaluation.statistics import Interval
from clip_mixtures.mechanisms.ablation import CELL, FOUND, IN_SAMPLE
from clip_mixtures.mechanisms.class_bootstrap import bootstrap_over_classes, expanded_ends
from clip_mixtures.mechanisms.similarity import class_groups

KINDS = ("circuit", "random", "difference")
# Drops of the columns that ablation_effects returns, and what is left of the margin.
_DROPS = {"cosine_drop": "cosine", "margin_drop": "margin", "accuracy_drop": "correct"}
MEASURES = (*_DROPS, "recovered")

FloatArray: TypeAlias = npt.NDArray[np.float64]


def ablation_table(
    effects: pd.DataFrame,
    held_out: Collection[int] = (),
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Average the effects of ablations over images and classes.

    Random draws are averaged image by image, then images class by class; every class counts alike.
    The interval is a bootstrap over classes, or over the images of a single class, with expanded
    percentiles (``class_bootstrap``); it knows nothing of the choice of random units.
    ``recovered`` is a ratio of means over classes.

    Args:
        effects: as of ``ablation.ablation_effects``, of one class or several.
        held_out: class ids of the group ``held_out``; the others are ``seen``.
        resamples: bootstrap resamples.
        confidence: coverage aimed at.
        seed: of the resampling.

    Returns:
        A row for each ``source``, ``target``, ``layer``, ``mode``, ``group`` of classes ("all",
        "held_out", "seen"), ``kind`` and ``measure``, with ``estimate``, ``low``, ``high``,
        ``classes``, ``images`` and ``in_sample``, those of the images that the circuit was found
        on: it has an advantage over others on these. Kinds are "circuit", "random" and, paired by
        image, "difference", circuit less random. Measures are "cosine_drop", "margin_drop" and
        "accuracy_drop", intact less after, and "recovered", see ``ablation``; the latter is NaN
        where the margin of the intact network is no larger than with nothing left. Ends are NaN
        with one class of one image.

    Raises:
        ValueError: no rows, the same intervention twice, or see ``bootstrap_over_classes``.
    """
    by_image = [*CELL, "kind", "class_id", "image"]
    if effects.empty or effects.duplicated([*by_image, "draw"]).any():
        raise ValueError(
            f"a table of {len(effects)} effects is empty or has an intervention twice; give each "
            "class once, as ablation_effects returns it"
        )
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    means = effects.groupby(by_image, sort=False)[[*FOUND, IN_SAMPLE]].mean().reset_index()
    rows = []
    for cell, part in means.groupby(CELL, sort=False):
        for group, chosen in class_groups(part["class_id"], held_out):
            of_group = part[chosen]
            circuits = of_group[of_group["kind"] == "circuit"]
            counts = {
                "classes": of_group["class_id"].nunique(),
                "images": len(circuits),
                "in_sample": int(circuits[IN_SAMPLE].sum()),
            }
            for kind, measure, found in _intervals(of_group, options):
                named = dict(zip(CELL, cell, strict=True))
                ends = {"estimate": found.estimate, "low": found.low, "high": found.high}
                rows.append(
                    {**named, "group": group, "kind": kind, "measure": measure, **ends, **counts}
                )
    return pd.DataFrame(rows)


def _intervals(
    rows: pd.DataFrame, options: Mapping[str, Any]
) -> Iterator[tuple[str, str, Interval]]:
    """Yield kind, measure and interval; ``rows`` has a row a kind, class and image."""
    level = ["class_id"] if rows["class_id"].nunique() > 1 else ["image"]
    found = {kind: part.groupby(level)[FOUND].mean() for kind, part in rows.groupby("kind")}
    intact = found["circuit"]
    floor, full = (intact[f"{name}_margin"].to_numpy() for name in ("nothing", "intact"))
    after = {kind: found[kind] for kind in KINDS if kind in found}
    drops = {
        (kind, measure): (of_kind[f"intact_{name}"] - of_kind[name]).to_numpy()
        for kind, of_kind in after.items()
        for measure, name in _DROPS.items()
    }
    left = {(kind, "recovered"): after[kind]["margin"].to_numpy() - floor for kind in after}
    values = {**drops, **left}
    if "random" in after:
        for measure in MEASURES:
            values["difference", measure] = values["circuit", measure] - values["random", measure]
    for kind in KINDS:
        for measure in MEASURES:
            if (kind, measure) not in values:
                continue
            array = values[kind, measure]
            if measure == "recovered":
                yield kind, measure, _ratio(array, full - floor, **options)
            else:
                numbers = np.arange(len(array))
                yield kind, measure, bootstrap_over_classes(array, numbers, **options)


def _ratio(
    above: FloatArray, below: FloatArray, *, resamples: int, confidence: float, seed: int
) -> Interval:
    """Divide two means over the same items, with a bootstrap interval over these."""
    if below.sum() <= 0:
        return Interval(math.nan, math.nan, math.nan, len(above))
    estimate = float(above.sum() / below.sum())
    drawn = np.random.default_rng(seed).integers(len(above), size=(resamples, len(above)))
    tops, bottoms = above[drawn].sum(axis=1), below[drawn].sum(axis=1)
    if len(above) == 1 or (bottoms <= 0).any():
        return Interval(estimate, math.nan, math.nan, len(above))
    low, high = expanded_ends(tops / bottoms, estimate, len(above), confidence)
    return Interval(estimate, low, high, len(above))
