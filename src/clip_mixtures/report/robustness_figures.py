"""Effective robustness as a picture: accuracy in the test domain against that on natural images.

Both axes are on the logit scale, on which ordinary models lie near a line (Taori et al. 2020,
figure 1).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from clip_mixtures.evaluation.robustness import inverse_logit, logit
from clip_mixtures.report.figures import MARKERS
from clip_mixtures.report.robustness import TESTED, check_robustness, images_of, line_of
from clip_mixtures.report.style import COLUMN_WIDTH, NEUTRAL, colours, figure_style
from clip_mixtures.report.tables import distinct

# In percent: what the axes may name, of which each names those that leave room between them.
_TICKS = (
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 50, 70, 80, 90, 95, 98, 99, 99.5, 99.9,
)  # fmt: skip
_MOST_TICKS = 9
_EPS = 1e-6
_MARGIN = 0.06  # of the width of an axis
_LEAST_WIDTH = 1.5  # logits
_POINTS = 200  # of the line
_PANEL = 2.4  # inches
_FRAME = 0.55  # inches for the axis label and ticks
_LEGEND_ROW = 0.17  # inches
_TEXT_LINE = 0.125  # inches
_INK = 3.0  # opacity that the lines of all runs have together
_SMALL, _LARGE = 9.0, 42.0  # points squared
_LABEL_WIDTH = 26  # characters of a mixture's name on a line of the legend
_NOTE_WIDTH = 44  # characters of a note on a line

FloatArray = npt.NDArray[np.float64]


def robustness_figure(table: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> Figure:
    """Draw every checkpoint of every run, and the line of the natural-only ones.

    Args:
        table: of :func:`clip_mixtures.report.robustness.robustness_of_cells`.
        resamples: of the bootstrap of the line's band.
        seed: of the bootstrap.

    Returns:
        A panel for each set of test images. Colours tell mixtures apart, markers models; a run's
        last checkpoint is large, the ones before are small and joined by a thin line. The band is
        the 95 % interval of the line. Accuracies of 0 lie where half an image would be right.
        Where there is no line, the panel says why.

    Raises:
        UserError: the table lacks a column or has no rows.
    """
    check_robustness(table)
    palette = colours(table["mixture"])
    models = distinct(table["model"])
    markers = {model: MARKERS[place % len(MARKERS)] for place, model in enumerate(models)}
    panels = [part for _, part in table.groupby(TESTED, sort=False)]
    has_line = any(not part["note"].any() for part in panels)
    with figure_style():
        legend = _legend(palette, markers, has_line=has_line)
        height = len(panels) * _PANEL + _FRAME + _legend_height(legend)
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False)
        for ax, part in zip(grid[:, 0], panels, strict=True):
            _draw(ax, part, palette, markers, resamples, seed)
            if len(panels) > 1:
                ax.set_title(_title(part, panels))
        figure.legend(handles=legend, loc="outside lower center", ncols=2)
    return figure


def _draw(
    ax: Axes,
    part: pd.DataFrame,
    palette: Mapping[str, str],
    markers: Mapping[str, str],
    resamples: int,
    seed: int,
) -> None:
    images = int(part["in_images"].iloc[0]), int(part["out_images"].iloc[0])
    x = logit(part["in_distribution"].to_numpy(), images[0])
    y = logit(part["out_of_distribution"].to_numpy(), images[1])
    (low_x, high_x), (low_y, high_y) = _range(x), _range(y)
    ax.plot([-20, 20], [-20, 20], color=NEUTRAL, linewidth=0.6, linestyle=":", zorder=1)
    at = np.linspace(low_x, high_x, _POINTS)
    line = line_of(part, inverse_logit(at), resamples=resamples, seed=seed)
    if line is None:
        note = textwrap.fill(f"No line: {part['note'].iloc[0]}", _NOTE_WIDTH)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        where: dict[str, Any] = {
            "transform": ax.transAxes,
            "ha": "left",
            "va": "top",
            "bbox": box,
            "zorder": 6,
        }
        ax.text(0.03, 0.97, note, fontsize=6.5, **where)
    else:
        names = ("low", "predicted", "high")
        low, middle, high = (logit(line[name].to_numpy(), eps=_EPS) for name in names)
        ax.fill_between(at, low, high, color=NEUTRAL, alpha=0.25, linewidth=0, zorder=1)
        ax.plot(at, middle, color=NEUTRAL, linewidth=1.2, zorder=2)
    places = pd.DataFrame({"x": x, "y": y}, index=part.index)
    runs = part.groupby("run", sort=False)
    opacity = min(_INK / len(runs), 0.5)
    for _, rows in runs:
        look = palette[rows["mixture"].iloc[0]], markers[rows["model"].iloc[0]], opacity
        _draw_run(ax, places.loc[rows.index], rows["last"], *look)
    _scale(ax, "x", low_x, high_x)
    _scale(ax, "y", low_y, high_y)
    ax.set_xlabel("Seen classes, natural images: accuracy (%)")
    ax.set_ylabel(f"Held-out classes, {part['test_domain'].iloc[0]} (%)")


def _draw_run(
    ax: Axes, places: pd.DataFrame, last: pd.Series, colour: str, marker: str, opacity: float
) -> None:
    ax.plot(places["x"], places["y"], color=colour, linewidth=0.6, alpha=opacity, zorder=3)
    looks = [(~last, _SMALL, 0.5, "none", 4), (last, _LARGE, 1.0, "black", 5)]
    for rows, size, alpha, edge, order in looks:
        chosen = places[rows]
        ax.scatter(
            chosen["x"], chosen["y"], s=size, color=colour, alpha=alpha, marker=marker,
            edgecolors=edge, linewidths=0.6, zorder=order,
        )  # fmt: skip


def _range(values: FloatArray) -> tuple[float, float]:
    """Return the ends of an axis in logits, with room around the values."""
    low, high = float(values.min()), float(values.max())
    spare = max(_LEAST_WIDTH - (high - low), 0) / 2
    low, high = low - spare, high + spare
    margin = _MARGIN * (high - low)
    return low - margin, high + margin


def _scale(ax: Axes, which: str, low: float, high: float) -> None:
    """Let an axis in logits name percentages."""
    percents = np.array([tick for tick in _TICKS if low <= logit(tick / 100, eps=_EPS) <= high])
    places = logit(percents / 100, eps=_EPS)
    # Each of the first that leaves a share of the axis to the one before.
    kept: list[int] = []
    for number, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= (high - low) / _MOST_TICKS:
            kept.append(number)
    labels = [f"{percents[number]:g}" for number in kept]
    if which == "x":
        ax.set_xlim(low, high)
        ax.set_xticks(places[kept], labels)
    else:
        ax.set_ylim(low, high)
        ax.set_yticks(places[kept], labels)


def _title(part: pd.DataFrame, panels: list[pd.DataFrame]) -> str:
    domain = part["test_domain"].iloc[0]
    alike = sum(each["test_domain"].iloc[0] == domain for each in panels)
    if alike == 1:
        return f"Test domain: {domain}"
    named = images_of(part.iloc[0], [each.iloc[0] for each in panels])
    return f"Test domain: {domain}, {named}"


def _legend(
    palette: Mapping[str, str], markers: Mapping[str, str], *, has_line: bool
) -> list[Artist]:
    first = next(iter(markers.values()))
    look: dict[str, Any] = {"linestyle": "none", "markersize": 5}
    handles: list[Artist] = [
        Line2D([], [], color=colour, marker=first, label=_wrapped(name), **look)
        for name, colour in palette.items()
    ]
    if len(markers) > 1:
        handles += [
            Line2D([], [], color=NEUTRAL, marker=marker, label=_wrapped(model), **look)
            for model, marker in markers.items()
        ]
    last: dict[str, Any] = {
        "markerfacecolor": "white",
        "markeredgecolor": "black",
        "markeredgewidth": 0.6,
    }
    handles.append(Line2D([], [], marker=first, label="last checkpoint", **look, **last))
    if has_line:
        handles.append(Line2D([], [], color=NEUTRAL, label="line of natural-only"))
        handles.append(Patch(facecolor=NEUTRAL, alpha=0.25, linewidth=0, label="its 95 % interval"))
    handles.append(
        Line2D([], [], color=NEUTRAL, linewidth=0.6, linestyle=":", label="equal accuracy")
    )
    return handles


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, _LABEL_WIDTH))


def _legend_height(legend: list[Artist]) -> float:
    further = sum(str(handle.get_label()).count("\n") for handle in legend)
    return math.ceil(len(legend) / 2) * _LEGEND_ROW + further * _TEXT_LINE
