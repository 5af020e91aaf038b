"""Figures of what happens when the units of a circuit are taken away.

Every function takes a table of ``clip_mixtures.mechanisms.ablation_table`` and returns a
``matplotlib.figure.Figure``; ``style.save_figure`` writes it. Random units are always drawn along.
"""

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

from clip_mixtures.errors import UserError, unknown
from clip_mixtures.report.embedding_figures import PAGE_WIDTH
from clip_mixtures.report.layer_curves import (
    LEGEND_ROW,
    checked_table,
    classes_title,
    curve_legend,
    curve_panels,
    draw_curves,
    name_layers,
)
from clip_mixtures.report.style import NEUTRAL, colours, figure_style
from clip_mixtures.report.tables import distinct

MEASURE_WORDS = {
    "cosine_drop": "Drop in cosine with the class's text",
    "margin_drop": "Drop in margin over all texts",
    "accuracy_drop": "Drop in accuracy (points)",
    "recovered": "Share of the margin recovered",
}
_PERCENT = {"accuracy_drop": 100.0}
_KIND_WORDS = {"circuit": "circuit found on the same domain", "random": "random units"}

_ABLATION_COLUMNS = [
    "source", "target", "layer", "mode", "group", "kind", "measure", "estimate", "low", "high",
    "classes",
]  # fmt: skip
_DOT_ROW = 0.095  # inches between the dots of a domain


def ablation_dots(
    table: pd.DataFrame,
    *,
    measures: Sequence[str] = ("margin_drop", "accuracy_drop"),
    mode: str = "ablate",
    group: str = "all",
    layer: str = "all",
) -> Figure:
    """Draw what taking units away does, a row a domain of images, a panel a measure.

    Args:
        table: as of ``clip_mixtures.mechanisms.ablation_table.ablation_table``, of one run.
        measures: panels from left to right, among :data:`MEASURE_WORDS`.
        mode: "ablate" or "keep".
        group: of which classes.
        layer: which layer was ablated; "all" for all at once.

    Returns:
        Dots with intervals, the colour being the domain that a circuit was found on: filled for the
        circuit of the row's own domain, hollow for those of others, and grey squares for random
        units. A page wide.

    Raises:
        UserError: a column is missing, or no rows have this measure, mode, group and layer.
    """
    frame = checked_table(table, _ABLATION_COLUMNS, "ablation")
    chosen = {"mode": mode, "group": group, "layer": layer}
    for column, value in chosen.items():
        frame = _matching(frame, column, value, "figure of ablation")
    parts = [_matching(frame, "measure", measure, "figure of ablation") for measure in measures]
    targets = distinct(frame["target"])
    palette = colours([*targets, *distinct(frame["source"])])
    dots = [list(_dots_of(parts[0], target)) for target in targets]
    most = max(len(of_target) for of_target in dots)
    legend = _ablation_legend(frame, palette)
    columns = min(len(legend), 4)
    height = len(targets) * (most + 1) * _DOT_ROW + 0.75
    height += math.ceil(len(legend) / columns) * LEGEND_ROW
    with figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, height), layout="constrained")
        grid = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for ax, measure, part in zip(grid, measures, parts, strict=True):
            for row, target in enumerate(targets):
                _draw_dots(ax, row, list(_dots_of(part, target)), palette, _PERCENT.get(measure, 1))
            ax.axvline(0, color=NEUTRAL, linewidth=0.6, zorder=0)
            for boundary in range(1, len(targets)):
                ax.axhline(boundary - 0.5, color="#DDDDDD", linewidth=0.5, zorder=0)
            ax.set_xlabel(MEASURE_WORDS[measure])
            ax.spines["left"].set_visible(False)
            ax.tick_params(axis="y", length=0)
        grid[0].set_yticks(range(len(targets)), targets)
        grid[0].set_ylim(len(targets) - 0.5, -0.5)
        grid[0].set_ylabel("Images of")
        grid[0].set_title(classes_title(group, frame["classes"]))
        figure.legend(handles=legend, loc="outside lower center", ncols=columns)
    return figure


def ablation_by_layer(
    table: pd.DataFrame, *, measure: str = "margin_drop", mode: str = "ablate", group: str = "all"
) -> Figure:
    """Draw what taking units of one layer away does, against the depth of the layer.

    Args:
        table: as of ``clip_mixtures.mechanisms.ablation_table.ablation_table``, of one run, with
            each layer ablated by itself.
        measure: among :data:`MEASURE_WORDS`.
        mode: "ablate" or "keep".
        group: of which classes.

    Returns:
        Means over the domains of the images, with a band from the least to the largest: circuits
        found on the same domain, those found on others, and random units. A column wide.

    Raises:
        UserError: a column is missing, or there are no such rows of single layers.
    """
    frame = checked_table(table, _ABLATION_COLUMNS, "ablation")
    for column, value in (("measure", measure), ("mode", mode), ("group", group)):
        frame = _matching(frame, column, value, "figure of ablation by layer")
    frame = frame[frame["layer"] != "all"]
    if frame.empty:
        raise UserError("figure of ablation by layer: no single layers; ablate with each_layer")
    frame = frame.assign(estimate=_PERCENT.get(measure, 1) * frame["estimate"])
    own = frame["source"] == frame["target"]
    circuits = frame["kind"] == "circuit"
    lines = {
        _KIND_WORDS["circuit"]: frame[circuits & own],
        "circuits found on other domains": frame[circuits & ~own],
        _KIND_WORDS["random"]: frame[frame["kind"] == "random"],
    }
    shown = {name: part for name, part in lines.items() if len(part)}
    layers = distinct(frame["layer"])
    with figure_style():
        legend = curve_legend(list(shown), "least to largest")
        figure, (ax,) = curve_panels([classes_title(group, frame["classes"])], legend, columns=1)
        ax.axhline(0, color=NEUTRAL, linewidth=0.6, zorder=0)
        draw_curves(ax, shown, "estimate", layers)
        name_layers(ax, layers)
        ax.set_ylabel(textwrap.fill(MEASURE_WORDS[measure], 24))
    return figure


def _matching(frame: pd.DataFrame, column: str, value: str, where: str) -> pd.DataFrame:
    if value not in set(frame[column]):
        raise unknown(column, value, distinct(frame[column]), where)
    return frame[frame[column] == value]


def _dots_of(part: pd.DataFrame, target: str) -> Iterator[Mapping[Any, Any]]:
    """Yield the dots of a row: its own circuit, the others, and the random units once."""
    of_target = part[part["target"] == target]
    circuits = of_target[of_target["kind"] == "circuit"]
    own = circuits["source"] == target
    yield from circuits[own].to_dict("records")
    yield from circuits[~own].to_dict("records")
    random = of_target[of_target["kind"] == "random"]
    mine = random[random["source"] == target]
    yield from (mine if len(mine) else random).head(1).to_dict("records")


def _draw_dots(
    ax: Axes,
    row: int,
    dots: Sequence[Mapping[Any, Any]],
    palette: Mapping[str, str],
    scale: float,
) -> None:
    if all(math.isnan(dot["estimate"]) for dot in dots):
        # In the middle of the panel whatever its range is.
        where: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": "center"}
        ax.text(0.5, row, "no margin to recover", va="center", color=NEUTRAL, **where)
    places = row + (np.arange(len(dots)) + 1) / (len(dots) + 1) - 0.5
    for place, dot in zip(places, dots, strict=True):
        estimate, low, high = (scale * dot[name] for name in ("estimate", "low", "high"))
        random = dot["kind"] == "random"
        colour = NEUTRAL if random else palette[dot["source"]]
        own = dot["source"] == dot["target"]
        if not math.isnan(low):
            ax.plot([low, high], [place, place], color=colour, linewidth=0.9, zorder=2)
        ax.plot(
            [estimate],
            [place],
            marker="s" if random else "o",
            linestyle="none",
            color=colour,
            markerfacecolor=colour if own or random else "white",
            markersize=3.5 if own or random else 3,
            markeredgewidth=0.8,
            zorder=3,
        )


def _ablation_legend(frame: pd.DataFrame, palette: Mapping[str, str]) -> list[Artist]:
    plain: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3.5}
    sources = distinct(frame["source"])
    handles: list[Artist] = [
        Line2D([], [], color=palette[name], label=f"circuit of {name}", **plain) for name in sources
    ]
    handles.append(Line2D([], [], color="black", label="of the same domain", **plain))
    if (frame["source"] != frame["target"]).any():
        hollow = {**plain, "markersize": 3, "markerfacecolor": "white"}
        handles.append(Line2D([], [], color="black", label="of another", **hollow))
    if (frame["kind"] == "random").any():
        squares = {**plain, "marker": "s"}
        handles.append(Line2D([], [], color=NEUTRAL, label=_KIND_WORDS["random"], **squares))
    return handles
