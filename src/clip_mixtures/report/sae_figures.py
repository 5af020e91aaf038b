"""Figures of sparse autoencoders: their training, what domains share of their units, the units.

Every function takes plain data (see ``clip_mixtures.mechanisms.sae_training``, ``sharing`` and
``shared_units``) and returns a ``matplotlib.figure.Figure``; ``style.save_figure`` writes it. A run
has one colour in all figures that name the same runs in the same order.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.class_bootstrap import bootstrap_over_classes
from clip_mixtures.report.embedding_figures import PAGE_WIDTH, check_tables, panel_grid
from clip_mixtures.report.figures import LINE_STYLES
from clip_mixtures.report.pair_matrices import (
    add_colour_bar,
    common_scale,
    draw_pair_matrix,
    matrix_height,
    pair_names,
)
from clip_mixtures.report.style import COLUMN_WIDTH, NEUTRAL, colours, figure_style
from clip_mixtures.report.tables import distinct

# Metric, title of its panel, and what the values are multiplied by.
_PANELS = (
    ("loss", "Loss", 1),
    ("reconstruction", "Squared error, mean over inputs", 1),
    ("l0", "Active units an image", 1),
    ("dead_share", "Units that never fire (%)", 100),
    ("explained_variance", "Explained variance (%)", 100),
)
_VALIDATION = "validation_"
_LOGARITHMIC = 10  # a positive metric is drawn on a logarithmic axis from this factor on
_FEW_TICKS = 100  # up to this factor a logarithmic axis has two ticks a decade
_LEAST_EXPLAINED = -50  # percent: at its start an autoencoder may be worse by any amount

_SHARING = ("class", "domain_a", "domain_b", "shared", "chance")
_SCORES = ("run", "test_domain", "estimate", "low", "high", "chance")

_CHANCE: dict[str, Any] = {"color": NEUTRAL, "linestyle": ":", "linewidth": 1.2}

_CURVE_PANEL = 0.95  # inches
_FRAME = 0.55  # inches for the label and ticks of an axis
_LEGEND_ROW = 0.17  # inches
_TEXT_LINE = 0.125  # inches
_NAME_WIDTH = 20  # characters of a run's name on a line
_LEGEND_COLUMNS = 2
_TITLE_WIDTH = 34  # characters of a matrix's title on a line,
_NARROW_TITLE = 24  # and of one of few domains, which is narrow
_FEW_DOMAINS = 4
_NOTE_WIDTH = 18  # characters on an inch of what is written above a unit's images
_STRIP_TITLE = 0.19  # inches
_IMAGE = 0.7  # inches: the longest side of an example
_GAP = 0.06  # inches between the strips of two domains
_MOST_STRIPS = 8  # domains side by side


def sae_training_curves(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw how sparse autoencoders trained, a line a run.

    Args:
        curves: for each run its points: columns ``step``, ``loss``, ``reconstruction`` (squared
            error, a mean over inputs), ``l0`` (mean number of active units), ``dead_share`` and
            ``explained_variance`` (fractions); those of features that were not trained on are
            named ``validation_loss`` and so on, NaN where there are none. See
            ``clip_mixtures.mechanisms.sae_curves.read_curves``.

    Returns:
        A panel a metric, hollow dots for the validation. Metrics that are positive throughout and
        change by a factor of ten have logarithmic axes; explained variance is cut off at -50 %.

    Raises:
        UserError: no runs, or one that has no points or lacks a column.
    """
    check_tables(curves, ("step", *(name for name, _, _ in _PANELS)), "curves of")
    palette = colours(curves)
    legend = _run_legend(palette)
    if any(_VALIDATION + "loss" in table for table in curves.values()):
        legend.append(Line2D([], [], label="validation", **_hollow("black")))
    height = len(_PANELS) * _CURVE_PANEL + _FRAME + _legend_height(legend)
    with figure_style():
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        axes = figure.subplots(len(_PANELS), 1, sharex=True)
        for ax, (metric, title, factor) in zip(axes, _PANELS, strict=True):
            _draw_metric(ax, curves, palette, metric, factor)
            ax.set_title(title)
            ax.grid(axis="y")
        axes[-1].set_xlabel("Step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        figure.legend(handles=legend, loc="outside lower center", ncols=_LEGEND_COLUMNS)
    return figure


def sharing_matrices(
    tables: Mapping[str, pd.DataFrame], *, resamples: int = 1000, seed: int = 0
) -> Figure:
    """Draw what every two domains share of the units, a mean over classes, a panel a run.

    Args:
        tables: for each run the sharing of its held-out classes, as of
            ``clip_mixtures.mechanisms.sharing.sharing_table``: columns ``class``, ``domain_a``,
            ``domain_b``, ``shared`` and ``chance``. Of the two orders of a pair one is enough, and
            a domain with itself is left out.
        resamples: of the bootstrap over classes.
        seed: of the bootstrap.

    Returns:
        The lower half of each matrix on one scale, with the mean and its 95 % bootstrap interval
        over classes written in, and below them the pair's chance level in brackets. One class has
        neither interval nor chance level.

    Raises:
        UserError: no runs, one that has no rows or lacks a column, or a pair that is there twice
            with different values or not in every class.
    """
    check_tables(tables, _SHARING, "sharing of")
    means = {run: _means_over_classes(run, table, resamples, seed) for run, table in tables.items()}
    highest = common_scale(means.values(), "shared")
    domains = max(len(pair_names(table)) for table in means.values())
    width = _TITLE_WIDTH if domains > _FEW_DOMAINS else _NARROW_TITLE
    titles = {run: textwrap.fill(_matrix_title(run, tables[run]), width) for run in tables}
    lines = max(title.count("\n") for title in titles.values())
    with figure_style():
        height = matrix_height(means.values()) + lines * _TEXT_LINE
        figure, axes = panel_grid(len(tables), height, [])
        for ax, (run, table) in zip(axes, means.items(), strict=True):
            draw_pair_matrix(ax, table, "shared", highest)
            ax.set_title(titles[run])
        add_colour_bar(figure, axes, "Share of units in common")
    return figure


def sharing_scores(scores: pd.DataFrame) -> Figure:
    """Draw what the test domain shares of the units with the others, a row a run.

    Args:
        scores: a row a run: ``run``, ``test_domain`` and the score's ``estimate``, ``low`` and
            ``high``, fractions, as of ``clip_mixtures.mechanisms.sharing.score``, and its
            ``chance`` level, as of ``chance_score``; what is NaN is not drawn. With
            several rows a run, as of several seeds, it has several dots.

    Returns:
        Dots with their intervals, a panel a test domain, from zero; a dotted line across a row for
        its chance level.

    Raises:
        UserError: there are no rows, or a column is missing.
    """
    check_tables({"runs": scores}, _SCORES, "scores of")
    palette = colours(distinct(scores["run"]))
    panels = [(name, part) for name, part in scores.groupby("test_domain", sort=False)]
    heights = [sum(_row_heights(part)) + 0.25 for _, part in panels]
    chance = Line2D([], [], label="chance: other classes of these domains", **_CHANCE)
    legend: list[Artist] = [chance] if scores["chance"].notna().any() else []
    with figure_style():
        size = (COLUMN_WIDTH, sum(heights) + _FRAME + _TEXT_LINE + _legend_height(legend))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
        for ax, (domain, part) in zip(grid[:, 0], panels, strict=True):
            _draw_scores(ax, part, palette)
            ax.set_title(f"Test domain: {domain}")
        grid[-1, 0].set_xlim(left=0)
        # Not that of the figure, which would lie on the legend.
        grid[-1, 0].set_xlabel("Units in common with\nthe other domains (%)")
        if legend:
            figure.legend(handles=legend, loc="outside lower center")
    return figure


def unit_examples(
    images: npt.NDArray[np.uint8],
    units: Sequence[int],
    domains: Sequence[str],
    notes: Sequence[str] = (),
) -> Figure:
    """Show the images that activate units most, a row a unit, a strip of images a domain.

    Args:
        images: shape (units, domains, images, height, width, 3), the strongest first, as of
            ``clip_mixtures.mechanisms.shared_units.strongest_images``; white where there is none.
        units: numbers of the units.
        domains: names of the domains.
        notes: what to write behind a unit's number, such as the name of its concept; none or one
            a unit.

    Returns:
        The figure, as wide as a page, or less where images are few.

    Raises:
        UserError: no units, images or domains, more than 8 domains, or names that do not match.
    """
    _check_examples(images, units, domains, notes)
    count, across, shown, tall, wide = images.shape[:5]
    side = min(_IMAGE, (PAGE_WIDTH - (across - 1) * _GAP) / (across * shown))
    strip, row = side * shown, side * tall / wide
    width = max(across * (strip + _GAP) - _GAP, COLUMN_WIDTH)
    height = count * (row + _STRIP_TITLE) + _STRIP_TITLE
    with figure_style():
        # Laid out by hand, so that every image has the same size.
        figure = Figure(figsize=(width, height))
        for number, domain in enumerate(domains):
            middle = (number * (strip + _GAP) + strip / 2) / width
            figure.text(middle, 1 - _STRIP_TITLE / 2 / height, domain, ha="center", va="center")
        for place, unit in enumerate(units):
            bottom = height - _STRIP_TITLE - (place + 1) * (row + _STRIP_TITLE)
            title = f"Unit {unit}" + (f": {notes[place]}" if notes else "")
            title = textwrap.shorten(title, int(_NOTE_WIDTH * width), placeholder=" ...")
            figure.text(0, (bottom + row + _STRIP_TITLE / 2) / height, title, va="center")
            for number in range(across):
                left = number * (strip + _GAP)
                box = (left / width, bottom / height, strip / width, row / height)
                ax = figure.add_axes(box)
                ax.imshow(np.concatenate(list(images[place, number]), axis=1), aspect="auto")
                for boundary in range(1, shown):  # pictures on white would run into each other
                    ax.axvline(boundary * wide - 0.5, color="#CCCCCC", linewidth=0.5)
                ax.set_axis_off()
    return figure


def _run_legend(palette: Mapping[str, str]) -> list[Artist]:
    return [
        Line2D([], [], color=colour, linestyle=_style(place), label=_wrapped(name))
        for place, (name, colour) in enumerate(palette.items())
    ]


def _legend_height(legend: Sequence[Artist]) -> float:
    rows = math.ceil(len(legend) / _LEGEND_COLUMNS)
    lines = [str(handle.get_label()).count("\n") for handle in legend]
    # The legend fills column by column.
    further = max(sum(lines[:rows]), sum(lines[rows:]))
    return rows * _LEGEND_ROW + further * _TEXT_LINE


def _style(place: int) -> Any:
    return LINE_STYLES[place % len(LINE_STYLES)]


def _hollow(colour: str) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": "o",
        "color": colour,
        "markerfacecolor": "white",
        "markersize": 3,
        "markeredgewidth": 0.8,
    }


def _draw_metric(
    ax: Axes,
    curves: Mapping[str, pd.DataFrame],
    palette: Mapping[str, str],
    metric: str,
    factor: float,
) -> None:
    drawn = []
    for place, (run, table) in enumerate(curves.items()):
        points = table.sort_values("step")
        values = factor * points[metric].astype(float)
        marker = "o" if len(points) == 1 else "none"  # a line through one point would not show
        look: dict[str, Any] = {"color": palette[run], "linestyle": _style(place)}
        ax.plot(points["step"], values, marker=marker, **look)
        drawn.append(values)
        if _VALIDATION + metric in points:
            judged = factor * points[_VALIDATION + metric].astype(float)
            ax.plot(points["step"], judged, **_hollow(palette[run]))
            drawn.append(judged)
    every = pd.concat(drawn)
    every = every[np.isfinite(every)]
    if metric == "explained_variance":
        ax.set_ylim(max(_LEAST_EXPLAINED, min(0.0, every.min())) if len(every) else None, 100)
    elif metric == "dead_share":
        ax.set_ylim(bottom=0)
    elif len(every) and every.min() > 0 and every.max() > _LOGARITHMIC * every.min():
        _make_logarithmic(ax, every.max() / every.min())


def _make_logarithmic(ax: Axes, factor: float) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if factor > _FEW_TICKS else (1.0, 3.0)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _means_over_classes(run: str, table: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Average each pair once: domain_a, domain_b, shared with its ends low and high, chance."""
    names, classes = pair_names(table), distinct(table["class"])
    by_pair: dict[tuple[Any, ...], dict[Any, float]] = {}
    chances: dict[tuple[Any, ...], float] = {}
    for ends, rows in table.groupby(["domain_a", "domain_b"]):
        # The mean over classes is the same in either order of the pair.
        chances[tuple(sorted(ends, key=names.index))] = float(rows["chance"].mean())
    for row in table.dropna(subset="shared").to_dict("records"):
        pair = tuple(sorted((row["domain_a"], row["domain_b"]), key=names.index))
        by_class = by_pair.setdefault(pair, {})
        if by_class.setdefault(row["class"], row["shared"]) != row["shared"]:
            raise UserError(
                f"sharing of {run!r}: class {row['class']!r} has two values for {pair[0]!r} and "
                f"{pair[1]!r}; give each run a table of its own"
            )
    found = []
    for pair in itertools.combinations(names, 2):
        by_class = by_pair.get(pair, {})
        lacking = [name for name in classes if name not in by_class]
        if lacking:
            raise UserError(
                f"sharing of {run!r}: class {lacking[0]!r} has no value for {pair[0]!r} and "
                f"{pair[1]!r}; compute it again"
            )
        values = np.array([by_class[name] for name in classes], dtype=np.float64)
        interval = bootstrap_over_classes(
            values, np.arange(len(values)), resamples=resamples, seed=seed
        )
        found.append((*pair, interval.estimate, interval.low, interval.high, chances[pair]))
    columns = ["domain_a", "domain_b", "shared", "low", "high", "chance"]
    return pd.DataFrame(found, columns=columns)


def _matrix_title(run: str, table: pd.DataFrame) -> str:
    classes = table["class"].nunique()
    return f"{run} ({classes} classes)" if classes > 1 else f"{run} (one class)"


def _row_heights(part: pd.DataFrame) -> list[float]:
    """Return the height of each run's row, by its dots and the lines of its name."""
    return [
        max(0.2 + 0.12 * (count - 1), (_wrapped(run).count("\n") + 1) * _TEXT_LINE + 0.08)
        for run, count in part.groupby("run", sort=False).size().items()
    ]


def _draw_scores(ax: Axes, part: pd.DataFrame, palette: Mapping[str, str]) -> None:
    runs = distinct(part["run"])
    heights = np.array(_row_heights(part))
    ends = np.r_[0, np.cumsum(heights)]
    middles = (ends[:-1] + ends[1:]) / 2
    for run, middle, height in zip(runs, middles, heights, strict=True):
        dots = part[part["run"] == run].to_dict("records")
        places = middle + ((np.arange(len(dots)) + 0.5) / len(dots) - 0.5) * 0.76 * height
        reach = 0.38 * height / len(dots)
        for place, dot in zip(places, dots, strict=True):
            if not math.isnan(dot["chance"]):
                ax.plot([100 * dot["chance"]] * 2, [place - reach, place + reach], **_CHANCE)
            if not math.isnan(dot["low"]):
                ends_of_dot = [100 * dot["low"], 100 * dot["high"]]
                ax.plot(ends_of_dot, [place, place], color=palette[run], linewidth=1)
            ax.plot([100 * dot["estimate"]], [place], marker="o", color=palette[run], zorder=3)
    for boundary in ends[1:-1]:
        ax.axhline(boundary, color="#DDDDDD", linewidth=0.5, zorder=0)
    ax.set_yticks(middles, [_wrapped(run) for run in runs])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(ends[-1], 0)  # the first run goes on top


def _wrapped(name: object) -> str:
    return textwrap.fill(str(name), _NAME_WIDTH)


def _check_examples(
    images: npt.NDArray[np.uint8],
    units: Sequence[int],
    domains: Sequence[str],
    notes: Sequence[str],
) -> None:
    shape = images.shape
    if images.ndim != 6 or shape[5] != 3 or 0 in shape or images.dtype != np.uint8:
        raise UserError(
            f"examples of units: {images.dtype} images of shape {shape}; give uint8 of "
            "(units, domains, images, height, width, 3), one of each at least"
        )
    if (len(units), len(domains)) != shape[:2] or len(notes) not in (0, len(units)):
        raise UserError(
            f"examples of units: images of shape {shape} for {len(units)} units, {len(domains)} "
            f"domains and {len(notes)} notes; give one name each"
        )
    if len(domains) > _MOST_STRIPS:
        raise UserError(
            f"examples of units: {len(domains)} domains side by side; choose {_MOST_STRIPS} at most"
        )
