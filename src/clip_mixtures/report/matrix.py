"""The matrix at a glance: what every mixture and model reaches, averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clip_mixtures.evaluation.statistics import Interval, mean_over_seeds
from clip_mixtures.report.document import MISSING, Bar, Column, Entry, Table
from clip_mixtures.report.tables import (
    AVERAGE,
    GROUP_WORDS,
    REFERENCE_DOMAIN,
    Cell,
    Summary,
    check_summary,
    distinct,
    percent,
)

IMAGENET = "ImageNet"
GROUP_KEYS = ["test_domain", "mixture", "model"]


def averaged_over_seeds(summary: Summary, *, reference: str = REFERENCE_DOMAIN) -> pd.DataFrame:
    """Average the accuracies of every mixture and model over the seeds that it was trained with.

    Args:
        summary: the cells, see :mod:`clip_mixtures.report.tables`; a cell that was tested on
            ImageNet's validation set has ``imagenet``: average to estimate, low, high and n.
        reference: the domain of natural images.

    Returns:
        A row an accuracy, in the order of the summary: ``test_domain``, ``mixture``, ``model``,
        ``seeds`` (number), ``train_images``, ``measure`` (such as "Held-out, sketch", or
        "ImageNet"), ``estimate``, ``low``, ``high`` (fractions, within 0 and 1). With one seed the
        interval is that of the run, over classes and test images; with more it is Student's t over
        the seeds (:func:`clip_mixtures.evaluation.statistics.mean_over_seeds`), NaN where seeds
        agree.

    Raises:
        UserError: the summary is unusable.
    """
    check_summary(summary)
    rows = []
    for key in distinct(tuple(cell[name] for name in GROUP_KEYS) for cell in summary):
        cells = [cell for cell in summary if tuple(cell[name] for name in GROUP_KEYS) == key]
        found = [_accuracies(cell, reference) for cell in cells]
        for measure in distinct(name for one in found for name in one):
            interval = _together([one[measure] for one in found if measure in one])
            rows.append(
                {
                    **dict(zip(GROUP_KEYS, key, strict=True)),
                    "seeds": len(cells),
                    "train_images": cells[0].get("train_images"),
                    "measure": measure,
                    "estimate": interval.estimate,
                    "low": max(interval.low, 0.0),
                    "high": min(interval.high, 1.0),
                }
            )
    return pd.DataFrame(rows)


def summary_over_seeds(summary: Summary) -> list[dict[str, Any]]:
    """Put one cell in the place of those that differ in nothing but the seed.

    Args:
        summary: the cells, see :mod:`clip_mixtures.report.tables`.

    Returns:
        Cells whose balanced accuracies are means over seeds with Student's t intervals, within 0
        and 1, NaN where seeds agree; cells of a single seed as they are.
    """
    cells = []
    for key in distinct(tuple(cell[name] for name in GROUP_KEYS) for cell in summary):
        same = [cell for cell in summary if tuple(cell[name] for name in GROUP_KEYS) == key]
        first = dict(same[0])
        if len(same) > 1:
            first["accuracies"] = {
                domain: {
                    group: {AVERAGE: _mean([cell["accuracies"][domain][group] for cell in same])}
                    for group in groups
                }
                for domain, groups in first["accuracies"].items()
            }
        cells.append(first)
    return cells


def _mean(averages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = mean_over_seeds([one[AVERAGE]["estimate"] for one in averages])
    images = averages[0][AVERAGE]["n"]
    ends = {"low": max(found.low, 0.0), "high": min(found.high, 1.0)}
    return {"estimate": found.estimate, **ends, "n": images}


def _accuracies(cell: Cell, reference: str) -> dict[str, Interval]:
    domains = distinct([cell["test_domain"], reference])
    found = {
        f"{GROUP_WORDS[group].capitalize()}, {domain}": groups[group].get(AVERAGE)
        for domain in domains
        for groups in [cell["accuracies"].get(domain, {})]
        for group in ("held_out", "seen")
        if group in groups
    }
    found[IMAGENET] = (cell.get("imagenet") or {}).get(AVERAGE)
    return {name: _interval(value) for name, value in found.items() if value is not None}


def _interval(found: Mapping[str, Any]) -> Interval:
    low, high = (math.nan if found[end] is None else float(found[end]) for end in ("low", "high"))
    return Interval(float(found["estimate"]), low, high, int(found["n"]))


def _together(intervals: list[Interval]) -> Interval:
    if len(intervals) == 1:
        return intervals[0]
    return mean_over_seeds([one.estimate for one in intervals])


def matrix_tables(averaged: pd.DataFrame) -> Iterator[Table]:
    """Tabulate the matrix, a table for each test domain.

    Args:
        averaged: of :func:`averaged_over_seeds`.
    """
    for domain, part in averaged.groupby("test_domain", sort=False):
        measures = distinct(part["measure"])
        models, seeds = distinct(part["model"]), distinct(part["seeds"])
        scale = float(np.nanmax(part[["estimate", "high"]].to_numpy())) or 1.0
        columns = [
            Column("Mixture", heads_row=True),
            *([Column("Model")] if len(models) > 1 else []),
            *([Column("Seeds", is_number=True)] if seeds != [1] else []),
            Column("Train images", is_number=True),
            *(Column(measure, is_number=True) for measure in measures),
        ]
        rows = []
        for (mixture, model), found in part.groupby(["mixture", "model"], sort=False):
            first = found.iloc[0]
            numbers = found.set_index("measure").to_dict("index")
            rows.append(
                (
                    Entry(str(mixture)),
                    *([Entry(str(model))] if len(models) > 1 else []),
                    *([_count(first["seeds"])] if seeds != [1] else []),
                    _count(first["train_images"]),
                    *(accuracy_entry(numbers.get(measure), scale) for measure in measures),
                )
            )
        yield Table(
            f"The matrix, test domain {domain}",
            f"{_over(seeds)} Test domain: {domain}.",
            tuple(columns),
            tuple(rows),
        )


def _over(seeds: list[int]) -> str:
    if seeds == [1]:
        over = "over classes and test images, of one run"
    else:
        over = "over seeds (Student's t; none where seeds agree)"
        if 1 in seeds:
            over += "; of a single seed, over classes and test images"
    return f"Accuracy in percent, averaged over classes; in brackets its 95 % interval {over}."


def _count(value: Any) -> Entry:
    if value is None or pd.isna(value):
        return Entry(MISSING)
    return Entry(f"{int(value):,}", order=float(value))


def accuracy_entry(found: Mapping[Any, Any] | None, scale: float) -> Entry:
    """Return an accuracy in percent with its interval, and a bar of it.

    Args:
        found: ``estimate``, ``low`` and ``high`` as fractions; None for a dash.
        scale: the accuracy at which bars of the table are full.
    """
    if found is None:
        return Entry(MISSING)
    low, high = found["low"], found["high"]
    note = "" if math.isnan(low) or math.isnan(high) else f"[{percent(low)}, {percent(high)}]"
    bar = Bar(low / scale, found["estimate"] / scale, high / scale)
    return Entry(percent(found["estimate"]), round(100 * found["estimate"], 4), note, bar)
