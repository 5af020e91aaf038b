"""Curves over the layers of a network, and the checks of the tables that they are drawn from."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from clip_mixtures.errors import UserError
from clip_mixtures.report.cka_figures import short_layer
from clip_mixtures.report.figures import LINE_STYLES, MARKERS
from clip_mixtures.report.style import COLUMN_WIDTH, NEUTRAL, OKABE_ITO
from clip_mixtures.report.tables import GROUP_WORDS

LEGEND_ROW = 0.17  # inches
TITLE_LINE = 0.125  # inches

_DOT = 2.5  # points
_PANEL = 1.25  # inches: height of a panel
_FRAME = 0.95  # inches for the names of layers and one row of the legend
_TITLE_WIDTH = 46  # characters of a title over a column
_MOST_TICKS = 24  # names of layers that fit side by side


def checked_table(table: pd.DataFrame, columns: Sequence[str], what: str) -> pd.DataFrame:
    """Return the table with rows numbered anew.

    Raises:
        UserError: it lacks a column or has no rows; the message names the table as ``what``.
    """
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(
            f"table of {what}: no column {', '.join(missing)}; found {list(table.columns)}"
        )
    if table.empty:
        raise UserError(f"table of {what}: there are no rows; compute it first")
    return table.reset_index(drop=True)


def classes_title(group: str, classes: pd.Series[int], run: str = "") -> str:
    """Say which classes a panel is about, how many, and of which run if one is named."""
    counts = " to ".join(str(number) for number in sorted({classes.min(), classes.max()}))
    words = f"{GROUP_WORDS.get(group, group)} classes ({counts})"
    words = f"{run}: {words}" if run else words[0].upper() + words[1:]
    return "\n".join(textwrap.wrap(words, _TITLE_WIDTH))


def curve_panels(
    titles: Sequence[str], legend: Sequence[Artist], columns: int = 2
) -> tuple[Figure, list[Axes]]:
    """Stack panels a column wide, with one legend of so many columns below."""
    rows = math.ceil(len(legend) / columns)
    height = _FRAME + (rows - 1) * LEGEND_ROW
    height += sum(_PANEL + title.count("\n") * TITLE_LINE for title in titles)
    figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
    axes = figure.subplots(len(titles), 1, sharex=True, sharey=True, squeeze=False)[:, 0].tolist()
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
        ax.grid(axis="y")
    figure.legend(handles=list(legend), loc="outside lower center", ncols=columns)
    return figure, axes


def draw_curves(
    ax: Axes, lines: Mapping[str, pd.DataFrame], column: str, layers: Sequence[str]
) -> None:
    """Draw the mean of each line by layer, and a band from its least to its largest value.

    Args:
        ax: to draw on.
        lines: name to rows with ``layer`` and the column; looks go by the order.
        column: with the values.
        layers: from left to right; where a line has no rows it has a gap.
    """
    places = np.arange(len(layers))
    for line, look in _looks(list(lines)):
        by_layer = lines[line].groupby("layer", sort=False)[column]
        found = by_layer.agg(["mean", "min", "max"]).reindex(list(layers)).astype(float)
        shade = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
        ax.fill_between(places, found["min"], found["max"], **shade)
        ax.plot(places, found["mean"], **look)


def curve_legend(lines: Sequence[str], band: str) -> list[Artist]:
    """Make the legend of :func:`draw_curves`; ``band`` says what the band is."""
    handles: list[Artist] = [Line2D([], [], label=line, **look) for line, look in _looks(lines)]
    return [*handles, Patch(facecolor=NEUTRAL, alpha=0.4, linewidth=0, label=band)]


def name_layers(ax: Axes, layers: Sequence[str]) -> None:
    """Write the names of layers below an axis, some of them if there are many."""
    every = math.ceil(len(layers) / _MOST_TICKS)
    shown = range(0, len(layers), every)
    ax.set_xticks(shown, [short_layer(layers[place]) for place in shown], rotation=90)
    ax.set_xlim(-0.5, len(layers) - 0.5)


def _looks(lines: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    looks = zip(lines, OKABE_ITO, LINE_STYLES, MARKERS, strict=False)
    for line, colour, style, marker in looks:
        yield line, {"color": colour, "linestyle": style, "marker": marker, "ms": _DOT}
