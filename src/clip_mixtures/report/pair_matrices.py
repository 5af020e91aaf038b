"""Numbers of every two domains as a matrix: its lower half, coloured, with the numbers written in.

A table has a row a pair of domains: columns ``domain_a``, ``domain_b`` and the number, and perhaps
``low`` and ``high``, which are then written below it, and ``chance``, which is then written below
these in brackets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from clip_mixtures.report.tables import distinct

_CELL = 0.42  # inches: a side of a cell
_NAMES = 0.55  # inches for the slanted names below
_LEAST_CELLS = 3  # as many as the label of the colour bar is high
_DARK = 0.62  # share of the colour scale above which white letters are easier to read
_ENDS_SIZE = 5.5  # points
_LINE = 0.22  # of a cell, for a line of that size


def pair_names(table: pd.DataFrame) -> list[Any]:
    """List the domains of a table in the order in which they first appear."""
    return distinct([*table["domain_a"], *table["domain_b"]])


def common_scale(tables: Iterable[pd.DataFrame], column: str) -> float:
    """Return the largest number of all tables, where the colours end; they begin at zero."""
    values = itertools.chain.from_iterable(table[column] for table in tables)
    return float(np.nanmax([0.0, *values])) or 1.0


def matrix_height(tables: Iterable[pd.DataFrame]) -> float:
    """Return the height in inches of the largest of the matrices, with its names, untitled."""
    cells = max(len(pair_names(table)) - 1 for table in tables)
    return _CELL * max(cells, _LEAST_CELLS) + _NAMES


def draw_pair_matrix(ax: Axes, table: pd.DataFrame, column: str, highest: float) -> None:
    """Draw the lower half of a matrix, darker the larger the number.

    Args:
        ax: to draw on.
        table: each pair once; a number that is NaN leaves its cell grey.
        column: with the numbers.
        highest: where the scale of colours ends.
    """
    names = pair_names(table)
    matrix = np.full((len(names), len(names)), np.nan)
    for pair in table.to_dict("records"):
        places = names.index(pair["domain_a"]), names.index(pair["domain_b"])
        row, across = max(places), min(places)
        matrix[row, across] = pair[column]
        _write(ax, row - 1, across, pair, column, dark=pair[column] > _DARK * highest)
    # The first row and the last column of the lower half would be empty.
    below = np.ma.masked_invalid(matrix[1:, :-1])
    ax.imshow(below, cmap="Blues", vmin=0, vmax=highest)
    ax.set_xticks(range(len(names) - 1), names[:-1], rotation=35, ha="right")
    ax.set_yticks(range(len(names) - 1), names[1:])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def add_colour_bar(figure: Figure, axes: Sequence[Axes], label: str) -> None:
    """Put one scale of colours beside all matrices of a figure; the last thing to do to it."""
    bar = figure.colorbar(axes[0].images[0], ax=list(axes), fraction=0.03, pad=0.02, aspect=25)
    bar.set_label(label)
    bar.locator = MaxNLocator(nbins=5)
    bar.update_ticks()
    bar.outline.set_visible(False)
    # Square cells beside a colour bar find their place only when laid out a second time.
    figure.draw_without_rendering()


def _write(
    ax: Axes, row: int, across: int, pair: Mapping[Any, Any], column: str, *, dark: bool
) -> None:
    value, low, high = (pair.get(key, math.nan) for key in (column, "low", "high"))
    text = "-" if math.isnan(value) else f"{value:.2f}"
    colour = "white" if dark else "black"
    if math.isnan(value):
        ax.add_patch(Rectangle((across - 0.5, row - 0.5), 1, 1, facecolor="#DDDDDD"))
    if math.isnan(low):
        ax.text(across, row, text, ha="center", va="center", color=colour)
        return
    chance = pair.get("chance", math.nan)
    # Three lines begin higher than two.
    up = 0.0 if math.isnan(chance) else _LINE / 2
    ax.text(across, row - 0.05 - up, text, ha="center", va="bottom", color=colour)
    small: dict[str, Any] = {"ha": "center", "va": "top", "color": colour, "fontsize": _ENDS_SIZE}
    ax.text(across, row + 0.08 - up, f"{low:.2f}\u2013{high:.2f}", **small)
    if not math.isnan(chance):
        ax.text(across, row + 0.08 - up + _LINE, f"({chance:.2f})", **small)
