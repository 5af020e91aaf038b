"""The figures of a study, each drawn to be read at the width of one column (3.3 in).

Every function takes plain data (see ``clip_mixtures.report.tables`` for the shape of a summary)
and returns a ``matplotlib.figure.Figure``; ``style.save_figure`` writes it. Accuracies are
averaged over classes and shown in percent. Mixtures keep one colour across the figures of a study,
by the order in which they first appear in the summary.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from clip_mixtures.errors import UserError
from clip_mixtures.report.style import COLUMN_WIDTH, NEUTRAL, colours, figure_style
from clip_mixtures.report.tables import (
    AVERAGE,
    GROUP_WORDS,
    Cell,
    Summary,
    cells_frame,
    check_counts,
    check_summary,
    distinct,
    interval_of,
    ordered_parts,
)

LineStyle = Literal["-", "--", ":", "-."]
LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
HATCH = "//////"

Look = TypeVar("Look")

_LABEL_WIDTH = 18  # characters of a mixture's name on a line
_POINTS = 1000  # points of a loss curve: more than the pixels of a column
_WINDOWS = 40  # a loss curve is averaged over windows of one part in this many
_FRAME = 0.55  # inches for the axis label and ticks of a figure
_LEGEND_ROW = 0.17  # inches
_TEXT_LINE = 0.125  # inches
_BELOW_ZERO = 0.04  # of the range of accuracies, shown below 0 for lines that lie there
_INK = 0.5  # opacity that the bands of a panel would have together, one on top of the other


def held_out_accuracy(summary: Summary, *, classes: int | None = None) -> Figure:
    """Draw the accuracy of held-out and seen classes in the test domain, a row a mixture.

    Args:
        summary: the cells. Several models or seeds of a mixture become several dots in its row,
            models with different markers; several test domains become panels.
        classes: number of classes that the model picks among, to draw the chance level.

    Returns:
        Filled dots for held-out classes, hollow ones for seen classes, with their intervals.

    Raises:
        UserError: the summary has no cells, or a cell lacks what it needs.
    """
    frame = cells_frame(summary)
    frame = frame[(frame["domain"] == frame["test_domain"]) & (frame["average"] == AVERAGE)]
    markers = _by_place(distinct(frame["model"]), MARKERS)
    mixtures = distinct(cell["mixture"] for cell in summary)
    panels = [(name, part) for name, part in frame.groupby("test_domain", sort=False)]
    heights = [_dot_row_height(part) * part["mixture"].nunique() + 0.25 for _, part in panels]
    columns = 3
    legend = _dot_legend(markers, classes)
    with figure_style():
        figure, axes = _stacked(heights, legend, columns, sharex=True)
        for ax, (domain, part) in zip(axes, panels, strict=True):
            _draw_dots(ax, part, colours(mixtures), markers)
            ax.set_title(f"Test domain: {domain}")
            if classes is not None:
                ax.axvline(100 / classes, color=NEUTRAL, linewidth=0.8, linestyle=":", zorder=1)
        axes[-1].set_xlim(left=0)
        axes[-1].set_xlabel("Accuracy (%)")
        figure.legend(handles=legend, loc="outside lower center", ncols=min(columns, len(legend)))
    return figure


def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], summary: Summary
) -> Figure:
    """Draw the accuracy in the test domain against the epoch, a line a mixture and model.

    Args:
        histories: for each run its evaluated checkpoints, mappings with ``epoch`` (int) and
            ``accuracies`` (nested as in a cell), in any order.
        summary: the cells; they say which runs to draw, in which test domain and colour.

    Returns:
        For each test domain a panel of held-out classes over one of seen classes. The line of
        several seeds is their mean and its band reaches from the lowest to the highest; the band
        of one is its interval. Colours tell mixtures apart, line styles models.

    Raises:
        UserError: the summary is unusable, or a run has no history.
    """
    check_summary(summary)
    _require_runs(histories, summary, "history")
    palette = colours(cell["mixture"] for cell in summary)
    styles = _by_place(distinct(cell["model"] for cell in summary), LINE_STYLES)
    panels = [
        (domain, group)
        for domain in distinct(cell["test_domain"] for cell in summary)
        for group in ("held_out", "seen")
    ]
    with figure_style():
        legend = _line_legend(palette, styles)
        figure, axes = _stacked([1.35] * len(panels), legend, 2, sharex=True)
        for ax, (domain, group) in zip(axes, panels, strict=True):
            # Held-out and seen may be far apart, so each panel has a range of its own.
            cells = [cell for cell in summary if cell["test_domain"] == domain]
            series = _series(cells)
            for (mixture, model), runs in series.items():
                seeds = [_history_points(histories[run], domain, group) for run in runs]
                look = (palette[mixture], styles[model])
                opacity = min(0.12, _INK / len(series))
                _draw_history(ax, _over_seeds(seeds), *look, opacity=opacity)
            ax.set_title(f"{GROUP_WORDS[group].capitalize()} classes in {domain}")
            begin_below_zero(ax)
            ax.grid(axis="y")
        axes[-1].set_xlabel("Epoch")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.supylabel("Accuracy (%)")
        figure.legend(handles=legend, loc="outside lower center", ncols=2)
    return figure


def training_loss(losses: Mapping[str, pd.DataFrame], summary: Summary) -> Figure:
    """Draw the training loss against the step, as a centred rolling mean.

    Args:
        losses: for each run a table with columns ``step`` (int) and ``loss`` (nats). A loss that
            is not finite leaves a gap.
        summary: the cells; they say which runs to draw and in which colour.

    Returns:
        A line a mixture and model, averaged over windows of 1/40 of the steps and over seeds;
        colours tell mixtures apart, line styles models.

    Raises:
        UserError: the summary is unusable, or a run has no losses.
    """
    check_summary(summary)
    _require_runs(losses, summary, "training loss")
    palette = colours(cell["mixture"] for cell in summary)
    styles = _by_place(distinct(cell["model"] for cell in summary), LINE_STYLES)
    with figure_style():
        legend = _line_legend(palette, styles)
        figure, (ax,) = _stacked([1.7], legend, 2)
        for (mixture, model), runs in _series(summary).items():
            steps, means = _mean_loss([losses[run] for run in runs])
            ax.plot(
                steps,
                means,
                color=palette[mixture],
                linestyle=styles[model],
                linewidth=1.0,
                marker=_marker(steps),
            )
        ax.set_xlabel("Step")
        ax.set_ylabel("Training loss (rolling mean)")
        ax.grid(axis="y")
        figure.legend(handles=legend, loc="outside lower center", ncols=2)
    return figure


def mixture_composition(counts: pd.DataFrame) -> Figure:
    """Draw what each mixture trains on: a bar a mixture, stacked by domain.

    Args:
        counts: columns ``mixture``, ``domain``, ``group`` (``held_out``, ``seen`` or ``base``) and
            ``images`` (training images).

    Returns:
        Horizontal stacked bars. Colours tell domains apart, hatching marks held-out classes, grey
        marks the images of the base.

    Raises:
        UserError: ``counts`` lacks a column, has no rows or names an unknown group.
    """
    check_counts(counts)
    mixtures = distinct(counts["mixture"])
    parts = ordered_parts(counts)
    palette = colours(domain for domain, group in parts if group != "base")
    sums = counts.groupby(["mixture", "domain", "group"])["images"].sum().to_dict()
    with figure_style():
        legend = _composition_legend(parts, palette)
        figure, (ax,) = _stacked([_row_height(mixtures) * len(mixtures) + 0.1], legend, 3)
        left = np.zeros(len(mixtures))
        for domain, group in parts:
            width = np.array([sums.get((name, domain, group), 0) for name in mixtures], dtype=float)
            ax.barh(
                np.arange(len(mixtures)),
                width,
                left=left,
                height=0.62,
                facecolor=NEUTRAL if group == "base" else palette[domain],
                hatch=HATCH if group == "held_out" else None,
                edgecolor="white",
                linewidth=0.4,
            )
            left += width
        _name_rows(ax, np.arange(len(mixtures), dtype=float), mixtures)
        ax.set_xlabel("Training images")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        figure.legend(handles=legend, loc="outside lower center", ncols=min(3, len(legend)))
    return figure


def smoothed(losses: pd.DataFrame) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Average a loss curve over a centred window and thin it to what a column can show.

    Args:
        losses: columns ``step`` and ``loss``, in any order.

    Returns:
        Steps and mean losses, at most 1000 points each; NaN where a window holds no finite loss.
    """
    ordered = losses.sort_values("step")
    window = max(1, len(ordered) // _WINDOWS)
    # Rolling means leave out NaN and infinities, so one bad step does not blot out its window.
    rolling = ordered["loss"].astype(float).rolling(window, center=True, min_periods=1)
    means = rolling.mean().to_numpy(dtype=np.float64)
    every = math.ceil(len(ordered) / _POINTS)
    return ordered["step"].to_numpy(dtype=np.float64)[::every], means[::every]


def begin_below_zero(ax: Axes) -> None:
    """Let the axis of accuracies begin a little below 0, so that a line at 0 shows whole."""
    ax.set_ylim(bottom=-_BELOW_ZERO * ax.get_ylim()[1])


def _stacked(
    heights: Sequence[float], legend: Sequence[Artist], columns: int, *, sharex: bool = False
) -> tuple[Figure, list[Axes]]:
    """Stack panels of the given heights (inches) and leave room for the legend below."""
    total = sum(heights) + _FRAME + _legend_height(legend, columns)
    figure = Figure(figsize=(COLUMN_WIDTH, total), layout="constrained")
    grid = figure.subplots(
        len(heights), 1, sharex=sharex, squeeze=False, height_ratios=list(heights)
    )
    return figure, list(grid[:, 0])


def _legend_height(legend: Sequence[Artist], columns: int) -> float:
    rows = math.ceil(len(legend) / columns)
    further = sum(str(handle.get_label()).count("\n") for handle in legend)
    return rows * _LEGEND_ROW + further * _TEXT_LINE


def _row_height(mixtures: Sequence[str]) -> float:
    lines = max(_wrapped(name).count("\n") + 1 for name in mixtures)
    return max(0.3, lines * _TEXT_LINE + 0.08)


def _dot_row_height(part: pd.DataFrame) -> float:
    dots = int(part.groupby(["mixture", "group"]).size().max())
    return max(0.3 + 0.22 * (dots - 1), _row_height(distinct(part["mixture"])))


def _draw_dots(
    ax: Axes, part: pd.DataFrame, palette: Mapping[str, str], markers: Mapping[str, str]
) -> None:
    mixtures = distinct(part["mixture"])
    for row, mixture in enumerate(mixtures):
        of_mixture = part[part["mixture"] == mixture]
        # Held-out dots first, then seen ones, spread evenly over the row.
        dots = of_mixture.sort_values(["group", "model", "seed"], kind="stable")
        places = row + (np.arange(len(dots)) + 0.5) / len(dots) * 0.76 - 0.38
        for place, dot in zip(places, dots.to_dict("records"), strict=True):
            _draw_dot(ax, float(place), dot, palette[mixture], markers[dot["model"]])
    for boundary in range(1, len(mixtures)):
        ax.axhline(boundary - 0.5, color="#DDDDDD", linewidth=0.5, zorder=0)
    _name_rows(ax, np.arange(len(mixtures), dtype=float), mixtures)


def _draw_dot(ax: Axes, place: float, dot: Mapping[Any, Any], colour: str, marker: str) -> None:
    if not math.isnan(dot["low"]):
        ax.plot([100 * dot["low"], 100 * dot["high"]], [place, place], color=colour, linewidth=1)
    ax.plot(
        [100 * dot["estimate"]],
        [place],
        marker=marker,
        linestyle="none",
        color=colour,
        markerfacecolor=colour if dot["group"] == "held_out" else "white",
        markeredgewidth=0.9,
        zorder=3,
        clip_on=False,  # a dot at 0 % shows whole
    )


def _dot_legend(markers: Mapping[str, str], classes: int | None) -> list[Artist]:
    plain: dict[str, Any] = {"linestyle": "none", "color": "black", "marker": "o"}
    handles: list[Artist] = [
        Line2D([], [], label="held-out classes", **plain),
        Line2D([], [], label="seen classes", markerfacecolor="white", **plain),
    ]
    if classes is not None:
        handles.append(Line2D([], [], color=NEUTRAL, linestyle=":", linewidth=0.8, label="chance"))
    if len(markers) > 1:
        handles += [
            Line2D([], [], label=model, **{**plain, "marker": marker, "color": NEUTRAL})
            for model, marker in markers.items()
        ]
    return handles


def _history_points(
    history: Sequence[Mapping[str, Any]], domain: str, group: str
) -> npt.NDArray[np.float64]:
    """Return epoch, estimate, low and high of the checkpoints by epoch, shape (4, checkpoints)."""
    points = [
        (checkpoint["epoch"], found["estimate"], found["low"], found["high"])
        for checkpoint in sorted(history, key=lambda checkpoint: int(checkpoint["epoch"]))
        if (found := interval_of(checkpoint["accuracies"], domain, group)) is not None
    ]
    return np.array(points, dtype=np.float64).reshape(-1, 4).T


def _series(summary: Summary) -> dict[tuple[str, str], list[str]]:
    """Return the runs of each mixture and model, which differ in their seeds alone."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in summary:
        found.setdefault((cell["mixture"], cell["model"]), []).append(cell["run"])
    return found


def _over_seeds(seeds: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Return epoch, mean, lowest and highest of several runs at the epochs that all of them have.

    Of a single run its interval is kept.
    """
    if len(seeds) == 1:
        return seeds[0]
    tables = [pd.Series(points[1], index=points[0]) for points in seeds]
    joined = pd.concat(tables, axis=1, join="inner")
    columns = (joined.index, joined.mean(axis=1), joined.min(axis=1), joined.max(axis=1))
    return np.array([column.to_numpy(dtype=np.float64) for column in columns])


def _mean_loss(
    losses: Sequence[pd.DataFrame],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return steps and smoothed losses, the mean over runs; NaN where one of them has none."""
    curves = [smoothed(found) for found in losses]
    joined = pd.concat(
        [pd.Series(means, index=steps) for steps, means in curves], axis=1, join="inner"
    )
    mean = joined.mean(axis=1, skipna=False)
    return mean.index.to_numpy(dtype=np.float64), mean.to_numpy(dtype=np.float64)


def _draw_history(
    ax: Axes, points: npt.NDArray[np.float64], colour: str, style: LineStyle, *, opacity: float
) -> None:
    epochs, estimates, lows, highs = points
    ax.fill_between(epochs, 100 * lows, 100 * highs, color=colour, alpha=opacity, linewidth=0)
    ax.plot(epochs, 100 * estimates, color=colour, linestyle=style, marker=_marker(epochs))


def _marker(points: npt.NDArray[np.float64]) -> str:
    # A line through a single point has no length and would not show.
    return "o" if len(points) == 1 else "none"


def _line_legend(palette: Mapping[str, str], styles: Mapping[str, LineStyle]) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], color=colour, label=_wrapped(name)) for name, colour in palette.items()
    ]
    if len(styles) > 1:
        handles += [
            Line2D([], [], color=NEUTRAL, linestyle=style, label=model)
            for model, style in styles.items()
        ]
    return handles


def _composition_legend(
    parts: Sequence[tuple[str, str]], palette: Mapping[str, str]
) -> list[Artist]:
    handles: list[Artist] = [
        Patch(facecolor=colour, label=domain) for domain, colour in palette.items()
    ]
    if any(group == "base" for _, group in parts):
        handles.append(Patch(facecolor=NEUTRAL, label="base"))
    if any(group == "held_out" for _, group in parts):
        handles.append(
            Patch(facecolor="#666666", edgecolor="white", hatch=HATCH, label="held-out classes")
        )
    return handles


def _name_rows(ax: Axes, places: npt.NDArray[np.float64], names: Sequence[str]) -> None:
    ax.set_yticks(places, [_wrapped(name) for name in names])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    # The first mixture goes on top.
    ax.set_ylim(len(names) - 0.5, -0.5)


def _wrapped(name: str) -> str:
    """Break a long name after its hyphens and underscores."""
    loose = name.replace("_", "_ ").replace("-", "- ")
    lines = textwrap.wrap(loose, _LABEL_WIDTH, break_long_words=True, break_on_hyphens=False)
    return "\n".join(line.replace("_ ", "_").replace("- ", "-") for line in lines)


def _by_place(names: Sequence[str], looks: Sequence[Look]) -> dict[str, Look]:
    return {name: looks[index % len(looks)] for index, name in enumerate(names)}


def _require_runs(found: Mapping[str, Any], summary: Sequence[Cell], what: str) -> None:
    missing = [cell["run"] for cell in summary if cell["run"] not in found]
    if missing:
        raise UserError(f"run {missing[0]!r}: no {what}; train and evaluate it again")
