"""Figures of the embedding: maps of the images, distances of domains, and what sets one apart.

Every function takes plain data (see ``clip_mixtures.mechanisms.embedding`` and ``distances``) and
returns a ``matplotlib.figure.Figure``; ``style.save_figure`` writes it. One panel is as wide as a
column, several side by side as wide as a page. A domain has one colour throughout a figure, by the
order in which it first appears, so that panels with and without a domain can be compared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from clip_mixtures.errors import UserError
from clip_mixtures.report.pair_matrices import (
    add_colour_bar,
    common_scale,
    draw_pair_matrix,
    matrix_height,
)
from clip_mixtures.report.style import COLUMN_WIDTH, NEUTRAL, colours, figure_style
from clip_mixtures.report.tables import distinct

PAGE_WIDTH = 2 * COLUMN_WIDTH + 0.25  # inches: two columns and the gap between them

_PANEL_COLUMNS = 2
_MAP_HEIGHT = 2.8  # inches
_LEGEND_ROW = 0.17  # inches
_TITLE = 0.25  # inches
# A dot has this area (square points) over the root of their number, within limits: a map of many
# images is fuller, but not black.
_DOT_AREA = 160.0
_DOT_LIMITS = (1.0, 12.0)
_MARKED = 2.0  # points: the least diameter of a marked dot
_RING = 0.7  # points: width of the ring around it


def embedding_maps(panels: Mapping[str, pd.DataFrame], *, test_domain: str | None = None) -> Figure:
    """Draw maps of the embedding side by side, two in a row.

    Args:
        panels: title of each map to its images: columns ``domain``, ``x`` and ``y``; and
            ``held_out`` (bool), whether the image's class is held out of the test domain, if
            ``test_domain`` is given.
        test_domain: the domain whose held-out classes get a black ring; None for no rings.

    Returns:
        One dot an image, its colour the domain. Neither axis has a unit, so none is drawn.

    Raises:
        UserError: no panels, or one that has no rows or lacks a column.
    """
    columns = ("domain", "x", "y") if test_domain is None else ("domain", "x", "y", "held_out")
    check_tables(panels, columns, "map")
    names = distinct(itertools.chain.from_iterable(frame["domain"] for frame in panels.values()))
    palette = colours(names)
    ringed = [_ringed(frame, test_domain) for frame in panels.values()]
    legend = _domain_legend(palette)
    if any(rings.any() for rings in ringed):
        label = f"held-out classes in {test_domain}"
        legend.append(_dot(palette[str(test_domain)], label=label, markeredgecolor="black"))
    with figure_style():
        figure, axes = panel_grid(len(panels), _MAP_HEIGHT, legend)
        for ax, (title, frame), rings in zip(axes, panels.items(), ringed, strict=True):
            _draw_dots(ax, frame[["x", "y"]], frame["domain"], palette, rings)
            ax.set_aspect("equal", adjustable="datalim")
            ax.set(title=title, xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set(visible=True, color="#CCCCCC")
    return figure


def distance_heatmaps(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the distance of every two domains as heat maps on one scale, two in a row.

    Args:
        tables: title of each heat map to its distances: columns ``domain_a``, ``domain_b`` and
            ``distance``, each pair once; with ``low`` and ``high``, those are written below the
            distance. NaN, as with no class in common, leaves the cell grey.

    Returns:
        The lower half of each matrix with the numbers written in, darker the farther.

    Raises:
        UserError: no tables, or one that has no rows or lacks a column.
    """
    check_tables(tables, ("domain_a", "domain_b", "distance"), "distances")
    farthest = common_scale(tables.values(), "distance")
    with figure_style():
        figure, axes = panel_grid(len(tables), matrix_height(tables.values()), [])
        for ax, (title, table) in zip(axes, tables.items(), strict=True):
            draw_pair_matrix(ax, table, "distance", farthest)
            ax.set_title(title)
        add_colour_bar(figure, axes, "Distance of means (unit vectors)")
    return figure


def mean_difference(differences: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the mean difference of domains by embedding dimension, from largest to smallest.

    Dimensions that tell a domain from the others stand out at either end of its curve.

    Args:
        differences: name of each domain to its table, see ``distances.mean_difference``: columns
            ``dimension`` and ``difference``, by falling difference.

    Returns:
        One curve a domain over the rank of the dimension; the legend names the dimension in which
        the domain differs most.

    Raises:
        UserError: no tables, or one that has no rows or lacks a column.
    """
    check_tables(differences, ("dimension", "difference"), "mean difference")
    palette = colours(differences)
    legend: list[Artist] = [
        Line2D([], [], color=palette[name], label=f"{name} ({_differs_most(table)})")
        for name, table in differences.items()
    ]
    with figure_style():
        figure, (ax,) = panel_grid(1, 1.9, legend, "Domain (dimension that differs most)")
        ax.axhline(0, color=NEUTRAL, linewidth=0.6)
        for name, table in differences.items():
            ax.plot(np.arange(1, len(table) + 1), table["difference"], color=palette[name])
        ax.set_xlabel("Dimensions of the embedding, by difference")
        ax.set_ylabel("Difference of means")
        ax.margins(x=0.02)
        ax.grid(axis="y")
    return figure


def top_dimensions(values: pd.DataFrame) -> Figure:
    """Draw the images in the two dimensions along which a domain differs most.

    Args:
        values: ``domain`` and two more columns, named by their dimension as in ``dimension_17``,
            see ``distances.top_dimensions``.

    Returns:
        One dot an image, its colour the domain.

    Raises:
        UserError: there are no rows or not two dimensions.
    """
    check_tables({"the table": values}, ("domain",), "top dimensions")
    dimensions = [name for name in values.columns if name != "domain"]
    if len(dimensions) != 2:
        raise UserError(f"top dimensions: columns {dimensions} beside 'domain'; give two")
    palette = colours(distinct(values["domain"]))
    legend = _domain_legend(palette)
    with figure_style():
        figure, (ax,) = panel_grid(1, 2.6, legend)
        no_rings = np.zeros(len(values), dtype=bool)
        _draw_dots(ax, values[dimensions], values["domain"], palette, no_rings)
        across, up = (str(name).replace("_", " ").capitalize() for name in dimensions)
        ax.set(xlabel=across, ylabel=up)
    return figure


def check_tables(tables: Mapping[str, pd.DataFrame], columns: Sequence[str], what: str) -> None:
    """Refuse tables that nothing can be drawn of.

    Raises:
        UserError: no tables, or one that has no rows or lacks a column.
    """
    if not tables:
        raise UserError(f"{what}: there is nothing to draw; give at least one table")
    for title, table in tables.items():
        missing = [name for name in columns if name not in table]
        if missing:
            raise UserError(
                f"{what} {title!r}: no column {', '.join(missing)}; found {list(table.columns)}"
            )
        if table.empty:
            raise UserError(f"{what} {title!r}: there are no rows; choose images or domains first")


def panel_grid(
    count: int, height: float, legend: Sequence[Artist], legend_title: str = ""
) -> tuple[Figure, list[Axes]]:
    """Lay out panels of one height (inches), two in a row, with the legend below all of them."""
    columns = min(count, _PANEL_COLUMNS)
    rows = math.ceil(count / columns)
    width = COLUMN_WIDTH if columns == 1 else PAGE_WIDTH
    legend_rows = math.ceil(len(legend) / (3 * columns))
    total = rows * (height + _TITLE) + (legend_rows + bool(legend_title)) * _LEGEND_ROW
    figure = Figure(figsize=(width, total), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    if legend:
        figure.legend(
            handles=list(legend),
            loc="outside lower center",
            ncols=math.ceil(len(legend) / legend_rows),
            title=legend_title or None,
            title_fontsize=7,
        )
    return figure, axes[:count]


def _domain_legend(palette: Mapping[str, str]) -> list[Artist]:
    return [_dot(colour, label=str(name)) for name, colour in palette.items()]


def _dot(colour: str, **options: Any) -> Line2D:
    return Line2D([], [], linestyle="none", marker="o", color=colour, **options)


def _ringed(frame: pd.DataFrame, test_domain: str | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if test_domain is None:
        return np.zeros(len(frame), dtype=bool)
    return np.asarray((frame["domain"] == test_domain) & frame["held_out"], dtype=bool)


def _draw_dots(
    ax: Axes,
    places: pd.DataFrame,
    domains: pd.Series[Any],
    palette: Mapping[str, str],
    rings: np.ndarray[Any, np.dtype[np.bool_]],
) -> None:
    """Draw the images in a mixed order, so that no domain covers another; ringed ones on top."""
    area = float(np.clip(_DOT_AREA / math.sqrt(len(places)), *_DOT_LIMITS))
    marked = max(math.sqrt(area), _MARKED)
    x, y = places.to_numpy(dtype=np.float64).T
    dots = np.array([palette[name] for name in domains])
    order = np.random.default_rng(0).permutation(np.flatnonzero(~rings))
    # As pixels: tens of thousands of dots would make the PDF slow to open.
    plain: dict[str, Any] = {"linewidths": 0, "rasterized": True}
    ax.scatter(x[order], y[order], s=area, c=dots[order], alpha=0.8, **plain)
    # All rings first and the dots over them: a cluster of marked dots gets one outline and does
    # not turn black.
    ax.scatter(x[rings], y[rings], s=(marked + 2 * _RING) ** 2, c="black", **plain)
    ax.scatter(x[rings], y[rings], s=marked**2, c=dots[rings], **plain)


def _differs_most(table: pd.DataFrame) -> int:
    place = int(np.abs(table["difference"].to_numpy()).argmax())
    return int(table["dimension"].to_numpy()[place])
