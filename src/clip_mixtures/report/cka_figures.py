"""Curves of centred kernel alignment over the layers of a network (Figure 6a of the study)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from clip_mixtures.errors import UserError, unknown
from clip_mixtures.report.embedding_figures import PAGE_WIDTH
from clip_mixtures.report.figures import LINE_STYLES, MARKERS
from clip_mixtures.report.style import COLUMN_WIDTH, NEUTRAL, colours, figure_style
from clip_mixtures.report.tables import GROUP_WORDS, distinct

_KEYS = ["run", "layer", "domain_a", "domain_b", "subset", "kernel"]
_COLUMNS = [*_KEYS[1:], "cka", "classes", "note"]
_KERNEL_WORDS = {"linear": "linear kernel", "rbf": "Gaussian kernel"}
_SHORT = {"resblock": "resb", "avgpool": "avgp", "attnpool": "attnp"}
_DOT = 2.5  # points

_PANEL = 1.2  # inches
_FRAME = 0.6  # inches for the names of layers
_LEGEND_ROW = 0.17  # inches
_LEGEND_WIDTH = 54  # characters of the legend that fit on a row of a column of the page
_HANDLE_WIDTH = 7  # characters that a line of the legend is as wide as
_TITLE_WIDTH = 50  # characters of a panel's title on a line
_TITLE_LINE = 0.125  # inches
_MOST_TICKS = 24  # names of layers that fit side by side


def cka_curves(table: pd.DataFrame, *, apart: str | None = None, kernel: str = "linear") -> Figure:
    """Draw CKA against depth, a row of panels a subset of classes.

    A line is the mean over the pairs of a group. The groups of a single run lie in one panel, with
    bands from the least to the most alike pair. The band is no confidence interval, for pairs share
    domains and so do not vary independently; the interval of every pair is in the table. Several
    runs lie in one panel, without bands, and each group of pairs has a column of panels.

    Args:
        table: as of ``clip_mixtures.mechanisms.cka.cka_table``, layers in network order. A further
            column ``run`` (a mixture, say) tells several runs apart; their order gives the colours.
        apart: draw the pairs with this domain apart from the other pairs; None for one line of all.
        kernel: "linear" or "rbf": the rows to draw.

    Returns:
        The figure, as wide as a column, or as a page with several runs and ``apart``. Pairs without
        a value have no part in mean and band. A layer in which no pair has one leaves a gap, and a
        panel without any value says why.

    Raises:
        UserError: a column is missing, there are no rows of this kernel, no pair has the domain
            ``apart``, or a comparison has two rows.
    """
    frame = _rows(table, apart, kernel)
    several = frame["run"].nunique() > 1
    groups = [name for name in (_with(apart), _others(apart)) if name in set(frame["group"])]
    frame["line"] = frame["run"] if several else frame["group"]
    frame["column"] = frame["group"] if several else ""
    layers, subsets = distinct(frame["layer"]), distinct(frame["subset"])
    columns, lines = (groups, distinct(frame["run"])) if several else ([""], groups)
    palette = colours(lines)
    legend = _legend(frame, palette, bands=not several)
    across = _legend_columns(legend, len(columns))
    parts = [
        frame[(frame["subset"] == subset) & (frame["column"] == column)]
        for subset in subsets
        for column in columns
    ]
    titles = [_title(part, grouped=several and apart is not None) for part in parts]
    title_lines = sum(title.count("\n") for title in titles[:: len(columns)])
    legend_height = math.ceil(len(legend) / across) * _LEGEND_ROW
    height = _FRAME + len(subsets) * _PANEL + title_lines * _TITLE_LINE + legend_height
    width = COLUMN_WIDTH if len(columns) == 1 else PAGE_WIDTH
    with figure_style():
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(len(subsets), len(columns), sharex=True, sharey=True, squeeze=False)
        for ax, part, title in zip(grid.ravel(), parts, titles, strict=True):
            _draw(ax, part, layers, palette, bands=not several)
            ax.set_title(title)
            ax.grid(axis="y")
        for ax in grid[-1]:
            _name_layers(ax, layers)
        grid[0, 0].set_ylim(_lowest(frame, bands=not several), 1.0)
        figure.supylabel(f"CKA, {_KERNEL_WORDS[kernel]}")
        figure.legend(handles=legend, loc="outside lower center", ncols=across)
    return figure


def short_layer(name: str) -> str:
    """Abbreviate the name of a layer as the study does: resblock1 to resb1, attnpool to attnp."""
    for long, short in _SHORT.items():
        name = name.replace(long, short)
    return name


def _rows(table: pd.DataFrame, apart: str | None, kernel: str) -> pd.DataFrame:
    """Check the table and return the rows to draw with columns ``run`` and ``group``."""
    missing = [column for column in _COLUMNS if column not in table]
    if missing:
        raise UserError(f"table of CKA: no column {missing[0]!r}; make it with cka_table")
    if kernel not in _KERNEL_WORDS:
        raise unknown("kernel", kernel, _KERNEL_WORDS, "figure of CKA")
    frame = table[table["kernel"] == kernel].reset_index(drop=True)
    if frame.empty:
        raise UserError(f"table of CKA: no rows with the kernel {kernel!r}; compute it first")
    if "run" not in frame:
        frame["run"] = ""
    twice = frame[frame.duplicated(_KEYS)]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(
            f"table of CKA: layer {first['layer']!r} has {first['domain_a']!r} and "
            f"{first['domain_b']!r} twice; tell runs apart by a column 'run'"
        )
    domains = distinct([*frame["domain_a"], *frame["domain_b"]])
    if apart is not None and apart not in domains:
        raise unknown("domain", apart, domains, "figure of CKA")
    has = (frame["domain_a"] == apart) | (frame["domain_b"] == apart)
    frame["group"] = np.where(has, _with(apart), _others(apart))
    return frame


def _with(apart: str | None) -> str:
    return f"pairs with {apart}"


def _others(apart: str | None) -> str:
    return "all pairs" if apart is None else "other pairs"


def _pairs(frame: pd.DataFrame) -> int:
    return len(frame[["domain_a", "domain_b"]].drop_duplicates())


def _title(part: pd.DataFrame, *, grouped: bool) -> str:
    subset = str(part["subset"].iloc[0])
    counts = sorted({int(part["classes"].min()), int(part["classes"].max())})
    words = f"{GROUP_WORDS.get(subset, subset)} classes ({' to '.join(map(str, counts))})"
    words = words[0].upper() + words[1:]
    if grouped:
        words += f", {part['group'].iloc[0]} ({_pairs(part)})"
    return "\n".join(textwrap.wrap(words, _TITLE_WIDTH))


def _looks(palette: Mapping[str, str]) -> list[tuple[str, dict[str, str | float]]]:
    """Give every line its colour, and a dash and a marker for those who see no colours."""
    return [
        (
            name,
            {
                "color": colour,
                "linestyle": LINE_STYLES[place % len(LINE_STYLES)],
                "marker": MARKERS[place % len(MARKERS)],
                "markersize": _DOT,
            },
        )
        for place, (name, colour) in enumerate(palette.items())
    ]


def _draw(
    ax: Axes,
    part: pd.DataFrame,
    layers: Sequence[str],
    palette: Mapping[str, str],
    *,
    bands: bool,
) -> None:
    places = np.arange(len(layers))
    for name, look in _looks(palette):
        by_layer = part[part["line"] == name].groupby("layer")["cka"]
        found = by_layer.agg(["mean", "min", "max"]).reindex(list(layers)).astype(float)
        if bands:
            ends = found["min"], found["max"]
            ax.fill_between(places, *ends, color=palette[name], alpha=0.2, linewidth=0)
        ax.plot(places, found["mean"], **look)  # type: ignore[arg-type]
    if part["cka"].isna().all():
        why = textwrap.fill(str(part["note"].mode().iloc[0]), _TITLE_WIDTH)
        ax.text(0.5, 0.5, f"no values:\n{why}", transform=ax.transAxes, ha="center", va="center")


def _lowest(frame: pd.DataFrame, *, bands: bool) -> float:
    of_lines = frame.groupby(["subset", "column", "line", "layer"])["cka"]
    lowest = float((of_lines.min() if bands else of_lines.mean()).min())
    return min(0.0, lowest) if math.isfinite(lowest) else 0.0


def _name_layers(ax: Axes, layers: Sequence[str]) -> None:
    every = math.ceil(len(layers) / _MOST_TICKS)
    shown = range(0, len(layers), every)
    ax.set_xticks(shown, [short_layer(str(layers[place])) for place in shown], rotation=90)
    ax.set_xlim(-0.5, len(layers) - 0.5)


def _legend(frame: pd.DataFrame, palette: Mapping[str, str], *, bands: bool) -> list[Artist]:
    handles: list[Artist] = []
    for name, look in _looks(palette):
        label = f"{name} ({_pairs(frame[frame['line'] == name])})" if bands else name
        handles.append(Line2D([], [], label=label, **look))  # type: ignore[arg-type]
    if bands:
        handles.append(
            Patch(facecolor=NEUTRAL, alpha=0.4, linewidth=0, label="least to most alike pair")
        )
    return handles


def _legend_columns(legend: Sequence[Artist], page_columns: int) -> int:
    """Say how many entries fit side by side."""
    widest = max(len(str(handle.get_label())) for handle in legend) + _HANDLE_WIDTH
    return max(1, min(len(legend), page_columns * _LEGEND_WIDTH // widest))
