"""Figures of how alike circuits are in two domains: units by layer, graphs as wholes.

Every function takes a table of ``clip_mixtures.mechanisms`` and returns a
``matplotlib.figure.Figure``; ``style.save_figure`` writes it. A chance level is always drawn along.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from clip_mixtures.errors import UserError, unknown
from clip_mixtures.report.embedding_figures import PAGE_WIDTH
from clip_mixtures.report.layer_curves import (
    TITLE_LINE,
    checked_table,
    classes_title,
    curve_legend,
    curve_panels,
    draw_curves,
    name_layers,
)
from clip_mixtures.report.style import COLUMN_WIDTH, NEUTRAL, figure_style
from clip_mixtures.report.tables import distinct

SCORE_WORDS = {
    "jaccard": "Jaccard index of edges",
    "wl_h1": "Weisfeiler-Lehman kernel, h = 1",
    "wl_h2": "Weisfeiler-Lehman kernel, h = 2",
    "wl_h3": "Weisfeiler-Lehman kernel, h = 3",
}

_PAIR = ["domain_a", "domain_b"]
_NODE_COLUMNS = ["layer", *_PAIR, "group", "similarity", "chance", "classes"]
_GRAPH_COLUMNS = ["score", *_PAIR, "group", "similarity", "low", "high", "chance", "classes"]

_TITLE_WIDTH = 34  # characters of a run's name on a line
_CELL = 0.44  # inches: a side of a matrix's cell
_DARK = 0.62  # share of the colour scale above which white letters are easier to read


def node_similarity_curves(table: pd.DataFrame, *, apart: str | None = None) -> Figure:
    """Draw how alike units are against depth, a panel a group of classes.

    A line is the mean over pairs of domains; the band around it goes from the least to the most
    alike pair and is no confidence interval, which the table has for every pair. The dashed line is
    what random units of the same number would have in common.

    Args:
        table: as of ``clip_mixtures.mechanisms.similarity.node_similarity``, layers in network
            order. A further column ``run`` (a mixture, say) gives each run panels of its own.
        apart: draw the pairs with this domain against the other pairs; None for one line of all.

    Returns:
        The figure, a column wide.

    Raises:
        UserError: a column is missing, there are no rows, or no pair has the domain ``apart``.
    """
    frame = _with_run(table, _NODE_COLUMNS, "node similarity")
    domains = distinct([*frame["domain_a"], *frame["domain_b"]])
    if apart is not None and apart not in domains:
        raise unknown("domain", apart, domains, "figure of node similarity")
    has = (frame["domain_a"] == apart) | (frame["domain_b"] == apart)
    words = ("all pairs", "all pairs") if apart is None else ("other pairs", f"pairs with {apart}")
    frame["line"] = np.where(has, words[1], words[0])
    lines = [word for word in dict.fromkeys(reversed(words)) if word in set(frame["line"])]
    layers = distinct(frame["layer"])
    panels = [part for _, part in frame.groupby(["run", "group"], sort=False)]
    dashed: dict[str, Any] = {"color": NEUTRAL, "linestyle": "--", "linewidth": 0.9}
    with figure_style():
        legend = [
            *curve_legend(lines, "least to most alike pair"),
            Line2D([], [], label="random units", **dashed),
        ]
        titles = [
            classes_title(part["group"].iloc[0], part["classes"], part["run"].iloc[0])
            for part in panels
        ]
        figure, axes = curve_panels(titles, legend)
        for ax, part in zip(axes, panels, strict=True):
            by_line = {line: part[part["line"] == line] for line in lines}
            draw_curves(ax, by_line, "similarity", layers)
            chance = part.groupby("layer", sort=False)["chance"].mean().reindex(layers)
            ax.plot(range(len(layers)), chance, **dashed)
        name_layers(axes[-1], layers)
        axes[0].set_ylim(0, 1)
        figure.supylabel("Jaccard index of units")
    return figure


def similarity_matrices(
    table: pd.DataFrame, *, score: str = "jaccard", group: str = "all"
) -> Figure:
    """Draw how alike graphs are in every two domains, a panel a run, two in a row.

    Args:
        table: as of ``clip_mixtures.mechanisms.similarity.graph_similarity``; with a column ``run``
            each run has a panel.
        score: which score to draw.
        group: of which classes.

    Returns:
        The lower half of each matrix on one scale, with the score and its interval written in; the
        title has the mean chance level.

    Raises:
        UserError: a column is missing, or there are no rows of this score and group.
    """
    frame = _with_run(table, _GRAPH_COLUMNS, "graph similarity")
    for column, value in (("score", score), ("group", group)):
        if value not in set(frame[column]):
            raise unknown(column, value, distinct(frame[column]), "figure of graph similarity")
    frame = frame[(frame["score"] == score) & (frame["group"] == group)]
    panels = [part for _, part in frame.groupby("run", sort=False)]
    names = max((distinct([*part["domain_a"], *part["domain_b"]]) for part in panels), key=len)
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    titles = [_matrix_title(part) for part in panels]
    lines = 1 + max(title.count("\n") for title in titles)
    height = _CELL * (len(names) - 1) + 0.55 + TITLE_LINE * lines
    highest = float(np.nanmax([*frame["similarity"], 0.0])) or 1.0
    with figure_style():
        width = COLUMN_WIDTH if columns == 1 else PAGE_WIDTH
        figure = Figure(figsize=(width, rows * height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
        for spare in axes[len(panels) :]:
            spare.remove()
        for ax, part, title in zip(axes, panels, titles, strict=False):
            _draw_matrix(ax, part, highest)
            ax.set_title(title)
        bar = figure.colorbar(axes[0].images[0], ax=axes[: len(panels)], fraction=0.03, aspect=25)
        bar.set_label(SCORE_WORDS.get(score, score))
        bar.outline.set_visible(False)
        # Square cells beside a colour bar find their place only when laid out a second time.
        figure.draw_without_rendering()
    return figure


def _with_run(table: pd.DataFrame, columns: Sequence[str], what: str) -> pd.DataFrame:
    frame = checked_table(table, columns, what)
    if "run" not in frame:
        frame["run"] = ""
    keys = ["run", columns[0], *_PAIR, "group"]
    twice = frame[frame.duplicated(keys)]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(
            f"table of {what}: {columns[0]} {first[columns[0]]!r} has {first['domain_a']!r} and "
            f"{first['domain_b']!r} twice; tell runs apart by a column 'run'"
        )
    return frame


def _matrix_title(part: pd.DataFrame) -> str:
    first = part.iloc[0]
    lines = textwrap.wrap(str(first["run"]), _TITLE_WIDTH)
    lines.append(classes_title(str(first["group"]), part["classes"]))
    chance = f"chance {part['chance'].mean():.3f}"
    if "chance_given_units" in part:
        chance += f", given the units {part['chance_given_units'].mean():.3f}"
    return "\n".join([*lines, chance])


def _draw_matrix(ax: Axes, part: pd.DataFrame, highest: float) -> None:
    names = distinct([*part["domain_a"], *part["domain_b"]])
    matrix = np.full((len(names), len(names)), np.nan)
    for pair in part.to_dict("records"):
        places = names.index(pair["domain_a"]), names.index(pair["domain_b"])
        row, column = max(places), min(places)
        matrix[row, column] = pair["similarity"]
        _write_score(ax, row - 1, column, pair, dark=pair["similarity"] > _DARK * highest)
    # The first row and the last column of the lower half would be empty.
    ax.imshow(np.ma.masked_invalid(matrix[1:, :-1]), cmap="Blues", vmin=0, vmax=highest)
    ax.set_xticks(range(len(names) - 1), names[:-1], rotation=35, ha="right")
    ax.set_yticks(range(len(names) - 1), names[1:])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _write_score(ax: Axes, row: int, column: int, pair: Mapping[Any, Any], *, dark: bool) -> None:
    colour = "white" if dark else "black"
    text = f"{pair['similarity']:.3f}"
    if math.isnan(pair["low"]):
        ax.text(column, row, text, ha="center", va="center", color=colour)
        return
    ax.text(column, row - 0.05, text, ha="center", va="bottom", color=colour)
    # Without the zero before the point, or neighbours would touch.
    ends = "\u2013".join(f"{pair[end]:.3f}".removeprefix("0") for end in ("low", "high"))
    ax.text(column, row + 0.08, ends, ha="center", va="top", color=colour, fontsize=5)
