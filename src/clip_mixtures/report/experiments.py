"""Experiments side by side: what each changed, and what that did to the accuracy.

The difference to the baseline is that of two estimates with an interval each. Its own interval is
Newcombe's, which puts the two together without assuming that they are symmetric; it treats the runs
as independent, though they are tested on the same images, and is wider than a paired one would be
(the report has those, for the cells of one experiment).

Source:
    Newcombe, R. G. (1998). Interval estimation for the difference between independent proportions.
        Statistics in Medicine 17. (method 10)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from clip_mixtures.report.document import MISSING, Column, Entry, Table
from clip_mixtures.report.matrix import averaged_over_seeds
from clip_mixtures.report.tables import percent

_KEYS = ["mixture", "model"]
# Entries of a list that a table has room for.
_SHOWN = 6


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment of DVC's, or what it is compared with.

    Attributes:
        name: of the experiment, branch or commit.
        state: what DVC says of it, such as Success, Failed or Queued.
        params: dotted key to value.
        summary: the cells of its metrics/summary.json; None where it has none.
        data: a hash of its data.
    """

    name: str
    state: str
    params: Mapping[str, Any]
    summary: Sequence[Mapping[str, Any]] | None
    data: str = ""

    def tested_on(self, mixture: str) -> dict[str, Any]:
        """Return what the accuracies of a mixture are of: data, corpus, domain and classes."""
        found = {key: value for key, value in self.params.items() if key.startswith("corpus.")}
        for name in ("test_domain", "held_out"):
            own = self.params.get(f"mixtures.{mixture}.{name}")
            found[name] = own if own is not None else self.params.get(f"test.{name}")
        return {**found, "data": self.data}


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested parameters by dotted keys; lists and empty mappings are values."""
    found: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def changes(of: Experiment, against: Experiment) -> dict[str, tuple[Any, Any]]:
    """Return the parameters that differ: key to its value in ``against`` and in ``of``.

    A parameter that one of them lacks is None there.
    """
    keys = list(dict.fromkeys([*against.params, *of.params]))
    values = {key: (against.params.get(key), of.params.get(key)) for key in keys}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def experiments_frame(experiments: Sequence[Experiment]) -> pd.DataFrame:
    """Tabulate the accuracies of experiments and their differences to the first one's.

    Args:
        experiments: the baseline first; those without results have no rows.

    Returns:
        A row an experiment, mixture, model and measure: ``experiment``, ``mixture``, ``model``,
        ``seeds``, ``measure`` (such as "Held-out, sketch"), ``estimate``, ``low``, ``high``
        (fractions; see :func:`matrix.averaged_over_seeds`), and ``difference``,
        ``difference_low``, ``difference_high`` to the same cell of the baseline, NaN where that has
        none or was tested on something else.

    Raises:
        UserError: a summary is unusable.
    """
    parts = [
        averaged_over_seeds(list(one.summary)).assign(experiment=one.name)
        for one in experiments
        if one.summary
    ]
    if not parts:
        return pd.DataFrame()
    found = pd.concat(parts, ignore_index=True)
    columns = [*_KEYS, "measure"]
    first = found[found["experiment"] == experiments[0].name]
    base = {tuple(row[name] for name in columns): row for row in first.to_dict("records")}
    known = {one.name: one for one in experiments}
    rows: list[dict[Any, Any]] = []
    for row in found.to_dict("records"):
        here = known[row["experiment"]].tested_on(row["mixture"])
        alike = here == experiments[0].tested_on(row["mixture"])
        other = base.get(tuple(row[name] for name in columns)) if alike else None
        rows.append({**row, **_difference(row, other)})
    order = ["experiment", *_KEYS, "seeds", "measure", "estimate", "low", "high"]
    ends = ["difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows)[[*order, *ends]]


def _difference(of: Mapping[Any, Any], against: Mapping[Any, Any] | None) -> dict[str, float]:
    names = ("difference", "difference_low", "difference_high")
    if against is None:
        return dict.fromkeys(names, math.nan)
    middle = of["estimate"] - against["estimate"]
    below = math.hypot(of["estimate"] - of["low"], against["high"] - against["estimate"])
    above = math.hypot(of["high"] - of["estimate"], against["estimate"] - against["low"])
    return dict(zip(names, (middle, middle - below, middle + above), strict=True))


def experiments_table(experiments: Sequence[Experiment], measures: Sequence[str]) -> Table:
    """Return a table of experiments, a row an experiment, mixture and model.

    Args:
        experiments: the baseline first.
        measures: beginnings of the names of measures to show, such as "Held-out".

    Raises:
        UserError: a summary is unusable.
    """
    found = experiments_frame(experiments)
    shown = (
        [name for name in dict.fromkeys(found["measure"]) if name.startswith(tuple(measures))]
        if len(found)
        else []
    )
    baseline = experiments[0].name
    columns = [Column("Experiment", heads_row=True), Column("Mixture"), Column("Model")]
    columns.append(Column("Seeds", is_number=True))
    for measure in shown:
        columns += [Column(measure, is_number=True), Column("to baseline", is_number=True)]
    rows: list[tuple[Entry, ...]] = []
    for one in experiments:
        if not one.summary:
            rest = [Entry(MISSING)] * (len(columns) - 2)
            rows.append((Entry(one.name), Entry(one.state or "no results"), *rest))
            continue
        part = found[found["experiment"] == one.name]
        for (mixture, model), cells in part.groupby(_KEYS, sort=False):
            by_measure = cells.set_index("measure").to_dict("index")
            entries = [Entry(one.name), Entry(str(mixture)), Entry(str(model))]
            entries.append(Entry(str(cells["seeds"].iloc[0])))
            for measure in shown:
                entries += _entries(by_measure.get(measure), one.name == baseline)
            rows.append(tuple(entries))
    caption = (
        "Accuracy in percent with 95 % intervals, averaged over seeds, and points of difference to "
        f"{baseline}; the runs are taken for independent. Without a difference are those that it "
        "has no match for, or one with other data, another test domain or other held-out classes."
    )
    return Table("Experiments", caption, tuple(columns), tuple(rows))


def _entries(row: Mapping[Any, Any] | None, is_baseline: bool) -> list[Entry]:
    if row is None:
        return [Entry(MISSING), Entry(MISSING)]
    accuracy = Entry(percent(row["estimate"]), note=_ends(row["low"], row["high"]))
    if is_baseline or math.isnan(row["difference"]):
        return [accuracy, Entry(MISSING)]
    note = _ends(row["difference_low"], row["difference_high"])
    return [accuracy, Entry(f"{100 * row['difference']:+.1f}", note=note)]


def _ends(low: float, high: float) -> str:
    return "" if math.isnan(low) or math.isnan(high) else f"[{percent(low)}, {percent(high)}]"


def changes_table(experiments: Sequence[Experiment]) -> Table:
    """Return a table of what each experiment changed in the parameters of the first one."""
    base = experiments[0]
    rows = [
        (Entry(one.name), Entry(key), Entry(_value(before)), Entry(_value(after)))
        for one in experiments[1:]
        for key, (before, after) in changes(one, base).items()
    ]
    columns = (
        Column("Experiment", heads_row=True),
        Column("Parameter"),
        Column(base.name),
        Column("Here"),
    )
    return Table("Parameters", f"What differs from {base.name}.", columns, tuple(rows))


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > _SHOWN:
        return f"{', '.join(map(str, value[:_SHOWN]))}, ... ({len(value)})"
    return MISSING if value is None else str(value)
