"""Effective robustness of every checkpoint of a study, against models of natural images alone.

A model of natural images that gets better on them gets better in other domains, too. Whether images
of other domains help beyond that shows against the line that the natural-only checkpoints follow:
accuracy on held-out classes in the test domain against accuracy on seen classes in natural images,
both on the logit scale (see :mod:`clip_mixtures.evaluation.robustness`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.robustness import FloatArray, robustness_table
from clip_mixtures.report.document import MISSING, Column, Entry, Paragraph, Table
from clip_mixtures.report.tables import (
    REFERENCE_DOMAIN,
    Cell,
    Summary,
    check_summary,
    distinct,
    interval_of,
    percent,
)

# A line and the scatter around it take three points.
FEWEST = 3
# Checkpoints that agree in these were tested on the same images.
TESTED = ["test_domain", "held_out_list", "in_images", "out_images"]
_IN, _OUT = "in_distribution", "out_of_distribution"
_OF_LINE = ["predicted", "effective_robustness", "low", "high"]
_OWN = ["out_low", "out_high"]  # the ends of the held-out accuracy's own interval
_HEADER = (
    "Seen, natural", "Held-out, test domain", "Line of natural-only", "Effective robustness",
)  # fmt: skip
_COLUMNS = [*TESTED, "run", "mixture", "model", "last", _IN, _OUT, *_OF_LINE, "baseline", "note"]


def robustness_of_cells(
    summary: Summary,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    held_out: Mapping[str, frozenset[int]],
    baseline_mixtures: Collection[str],
    *,
    reference: str = REFERENCE_DOMAIN,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how far every checkpoint lies above the line of the natural-only ones.

    Accuracies are averaged over classes. The line is fitted to the trained checkpoints (epoch 1 or
    later) of the baseline mixtures, for each set of test images apart. Accuracies of 0 and 1 are
    taken to be half an image away from it.

    The intervals put two errors together, that of the held-out accuracy and that of the line, as
    Newcombe (1998, Statistics in Medicine 17, 873-890) does for a difference of two proportions.
    The accuracy's is that of its own interval, over classes and test images; where a checkpoint has
    none, the line's alone is left. The line's comes from a bootstrap over the checkpoints of the
    baseline; those of one run resemble each other, so it is too small rather than too large.

    Args:
        summary: the cells, see :mod:`clip_mixtures.report.tables`.
        histories: for each run its evaluated checkpoints, mappings with ``epoch`` (int) and
            ``accuracies`` (nested as in a cell), in any order.
        held_out: the class ids that each mixture holds out.
        baseline_mixtures: the mixtures of natural images alone.
        reference: the domain of natural images.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        A row a checkpoint, runs in the order of the summary, epochs rising: ``run``, ``mixture``,
        ``model``, ``seed``, ``test_domain``, ``epoch``, ``last`` (whether it is the run's last),
        ``in_distribution`` (seen classes, natural images), ``out_of_distribution`` (held-out
        classes, test domain), ``held_out_list`` (from 0: checkpoints with the same number hold the
        same classes out), ``in_images``, ``out_images``, ``predicted`` (by the line),
        ``effective_robustness``, ``low``, ``high`` (fractions; NaN where there is no line),
        ``baseline`` (whether the line is fitted to it) and ``note`` (why there is no line, or
        nothing).

    Raises:
        UserError: the summary is unusable, or a run has no history or a checkpoint of it not both
            accuracies.
    """
    check_summary(summary)
    lists = distinct(held_out[cell["mixture"]] for cell in summary)
    table = pd.DataFrame(
        {**row, "held_out_list": lists.index(held_out[row["mixture"]])}
        for cell in summary
        for row in _rows(cell, histories, reference)
    )
    table["baseline"] = table["mixture"].isin(list(baseline_mixtures)) & (table["epoch"] > 0)
    parts = [_against_line(part, resamples, seed) for _, part in table.groupby(TESTED, sort=False)]
    return pd.concat(parts).sort_index().drop(columns=_OWN)


def _rows(
    cell: Cell, histories: Mapping[str, Sequence[Mapping[str, Any]]], reference: str
) -> Iterator[dict[str, Any]]:
    run = cell["run"]
    points = sorted(histories.get(run, ()), key=lambda point: int(point["epoch"]))
    if not points:
        raise UserError(f"run {run!r}: no history; train and evaluate it again")
    for number, point in enumerate(points):
        inside = interval_of(point["accuracies"], reference, "seen")
        outside = interval_of(point["accuracies"], cell["test_domain"], "held_out")
        if inside is None or outside is None:
            what = f"seen classes in {reference}" if inside is None else "held-out classes"
            raise UserError(
                f"run {run!r}, epoch {point['epoch']}: no accuracy on {what}; evaluate it again"
            )
        yield {
            **{key: cell[key] for key in ("run", "mixture", "model", "seed", "test_domain")},
            "epoch": int(point["epoch"]),
            "last": number + 1 == len(points),
            _IN: inside["estimate"],
            _OUT: outside["estimate"],
            "in_images": inside["n"],
            "out_images": outside["n"],
            **{name: outside.get(end) for name, end in zip(_OWN, ("low", "high"), strict=True)},
        }


def _against_line(part: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Add the columns of the line to checkpoints that were tested on the same images."""
    baseline = part.index[part["baseline"]]
    note = "" if len(baseline) >= FEWEST else _too_few(len(baseline))
    if not note:
        try:
            found = _table(part, list(baseline), resamples, seed)
            return _with_own_error(part.join(found[_OF_LINE])).assign(note="")
        except UserError as error:
            # The accuracies of the baseline determine no line.
            note = str(error)
    return part.assign(**dict.fromkeys(_OF_LINE, math.nan), note=note)


def _with_own_error(part: pd.DataFrame) -> pd.DataFrame:
    """Put the error of each held-out accuracy to that of the line."""
    middle, own = part["effective_robustness"], part[_OUT]
    low, high = (part[name].astype(float).fillna(own) for name in _OWN)
    return part.assign(
        low=middle - np.hypot(middle - part["low"], own - low),
        high=middle + np.hypot(part["high"] - middle, high - own),
    )


def _table(
    part: pd.DataFrame, baseline: Sequence[Hashable], resamples: int, seed: int
) -> pd.DataFrame:
    counts = {_IN: int(part["in_images"].iloc[0]), _OUT: int(part["out_images"].iloc[0])}
    return robustness_table(part, _OUT, [_IN], baseline, resamples, seed, counts=counts)


def robustness_blocks(table: pd.DataFrame) -> tuple[Table | Paragraph, ...]:
    """Tabulate the last checkpoint of every run, in percent and percentage points.

    Args:
        table: of :func:`robustness_of_cells`.

    Returns:
        The table, and why runs have no line where they have none.

    Raises:
        UserError: the table lacks a column or has no rows.
    """
    check_robustness(table)
    last = table[table["last"]]
    columns = (
        Column("Run", heads_row=True),
        *(Column(name, is_number=True) for name in _HEADER),
    )
    rows = tuple((Entry(row["run"]), *_numbers(row)) for row in last.to_dict("records"))
    caption = (
        "Accuracy in percent on seen classes in natural images and on held-out classes in the test "
        "domain; what the line through the natural-only checkpoints gives a model that is as good "
        "on natural images; and how many points the model lies above it, with a 95 % interval over "
        "classes and test images and over the checkpoints of the line."
    )
    return (Table("Effective robustness by run", caption, columns, rows), *_missing_lines(last))


def _missing_lines(last: pd.DataFrame) -> Iterator[Paragraph]:
    """Say why there is no line; where there are several sets of test images, of which."""
    tested = [part.iloc[0] for _, part in last.groupby(TESTED, sort=False)]
    for first in tested:
        if first["note"]:
            among = f" for {images_of(first, tested)} in {first['test_domain']}"
            yield Paragraph(f"No line{among if len(tested) > 1 else ''}: {first['note']}.")


def images_of(one: pd.Series, tested: Sequence[pd.Series]) -> str:
    """Name a set of test images among several: by its size, and by its list if that is not enough.

    Args:
        one: any row of the set.
        tested: a row of every set, this one included.
    """
    name = f"{int(one['out_images']):,} held-out images"
    lists = {
        other["held_out_list"]
        for other in tested
        if all(other[key] == one[key] for key in ("test_domain", "out_images"))
    }
    return name if len(lists) == 1 else f"{name} of list {one['held_out_list'] + 1}"


def _numbers(row: Mapping[Hashable, Any]) -> list[Entry]:
    found = [_percent(row[_IN]), _percent(row[_OUT])]
    if row["note"]:
        return [*found, Entry(MISSING), Entry(MISSING)]
    middle, low, high = (100 * float(row[k]) for k in ("effective_robustness", "low", "high"))
    note = f"[{low:+.1f}, {high:+.1f}]"
    return [*found, _percent(row["predicted"]), Entry(f"{middle:+.1f}", round(middle, 4), note)]


def _percent(fraction: float) -> Entry:
    return Entry(percent(fraction), round(100 * float(fraction), 4))


def line_of(
    part: pd.DataFrame, at: FloatArray, *, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame | None:
    """Return the line of the natural-only checkpoints, with its bootstrap band.

    Args:
        part: rows of :func:`robustness_of_cells` that were tested on the same images.
        at: in-distribution accuracies, fractions, shape (k,).
        resamples: of the bootstrap.
        seed: of the bootstrap; with those of the table, the band is the line's part of its
            intervals.

    Returns:
        ``in_distribution`` (as given), ``predicted``, ``low``, ``high``; None where there is no
        line.
    """
    if part["note"].any():
        return None
    baseline = part[part["baseline"]]
    # What lies below the line by all of it is a model that is always wrong.
    wrong = pd.DataFrame({_IN: at, _OUT: 0.0}).assign(**dict(part[TESTED].iloc[0]))
    both = pd.concat([baseline, wrong], keys=["baseline", "line"])
    rows = [label for label in both.index if label[0] == "baseline"]
    found = _table(both, rows, resamples, seed).loc["line"]
    return pd.DataFrame(
        {
            _IN: at,
            "predicted": found["predicted"],
            "low": -found["high"],
            "high": -found["low"],
        }
    )


def check_robustness(table: pd.DataFrame) -> None:
    """Refuse a table that :func:`robustness_of_cells` did not make.

    Raises:
        UserError: naming the column that is missing.
    """
    for column in _COLUMNS:
        if column not in table:
            raise UserError(f"table of robustness: no column {column!r}; make it anew")
    if table.empty:
        raise UserError("table of robustness: it has no rows; evaluate at least one run first")


def _too_few(points: int) -> str:
    if points == 0:
        return "no checkpoint of a natural-only mixture was tested on the same images"
    counted = "1 checkpoint" if points == 1 else f"{points} checkpoints"
    return f"{counted} of natural-only mixtures; a line takes {FEWEST}"
