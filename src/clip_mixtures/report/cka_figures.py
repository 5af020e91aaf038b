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
from clip_mixtures.report.figures import LINE_STYLES, MARKERS
from clip_mixtures.report.style import COLUMN_WIDTH, NEUTRAL, colours, figure_style
from clip_mixtures.report.tables import GROUP_WORDS, distinct

_KEYS = ["run", "layer", "domain_a", "domain_b", "subset", "kernel"]
_COLUMNS = [*_KEYS[1:], "cka", "classes", "note"]
_KERNEL_WORDS = {"linear": "linear kernel", "rbf": "Gaussian kernel"}
_SHORT = {"resblock": "resb", "avgpool": "avgp", "attnpool": "attnp"}
_DOT = 2.5  # points

_PANEL = 1.2  # inches
_FRAME = 0.95  # inches for the names of layers and the legend
_TITLE_WIDTH = 46  # characters of a panel's title on a line
_TITLE_LINE = 0.125  # inches
_MOST_TICKS = 24  # names of layers that fit side by side


def cka_curves(table: pd.DataFrame, *, apart: str | None = None, kernel: str = "linear") -> Figure:
    """Draw CKA against depth, a panel a subset of classes, a line a group of domain pairs.

    A line is the mean over the pairs of its group; the band around it goes from the least to the
    most alike pair. The band is no confidence interval, for pairs share domains and so do not vary
    independently; the interval of every pair is in the table.

    Args:
        table: as of ``clip_mixtures.mechanisms.cka.cka_table``, layers in network order. A further
            column ``run`` (a mixture, say) gives each run panels of its own, in order of first
            appearance.
        apart: draw the pairs with this domain against the other pairs; None for one line of all.
        kernel: "linear" or "rbf": the rows to draw.

    Returns:
        The figure. Pairs without a value have no part in mean and band. A layer in which no pair
        has one leaves a gap, and a panel without any value says why.

    Raises:
        UserError: a column is missing, there are no rows of this kernel, no pair has the domain
            ``apart``, or a comparison has two rows.
    """
    frame = _rows(table, apart, kernel)
    layers = distinct(frame["layer"])
    names = [name for name in (_with(apart), _others(apart)) if name in set(frame["group"])]
    palette = colours(names)
    panels = [part for _, part in frame.groupby(["run", "subset"], sort=False)]
    titles = [_title(part, named=frame["run"].nunique() > 1) for part in panels]
    height = _FRAME + sum(_PANEL + title.count("\n") * _TITLE_LINE for title in titles)
    with figure_style():
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        grid = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)
        for ax, part, title in zip(grid[:, 0], panels, titles, strict=True):
            _draw(ax, part, layers, palette)
            ax.set_title(title)
            ax.grid(axis="y")
        _name_layers(grid[-1, 0], layers)
        lowest = frame["cka"].min()
        grid[0, 0].set_ylim(min(0.0, lowest) if math.isfinite(lowest) else 0.0, 1.0)
        figure.supylabel(f"CKA, {_KERNEL_WORDS[kernel]}")
        figure.legend(handles=_legend(frame, palette), loc="outside lower center", ncols=2)
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


def _title(part: pd.DataFrame, *, named: bool) -> str:
    subset = str(part["subset"].iloc[0])
    counts = sorted({int(part["classes"].min()), int(part["classes"].max())})
    words = f"{GROUP_WORDS.get(subset, subset)} classes ({' to '.join(map(str, counts))})"
    words = f"{part['run'].iloc[0]}: {words}" if named else words[0].upper() + words[1:]
    return "\n".join(textwrap.wrap(words, _TITLE_WIDTH))


def _draw(ax: Axes, part: pd.DataFrame, layers: Sequence[str], palette: Mapping[str, str]) -> None:
    places = np.arange(len(layers))
    looks = zip(palette.items(), LINE_STYLES, MARKERS, strict=False)
    for (name, colour), style, marker in looks:
        by_layer = part[part["group"] == name].groupby("layer")["cka"]
        found = by_layer.agg(["mean", "min", "max"]).reindex(layers).astype(float)
        ax.fill_between(places, found["min"], found["max"], color=colour, alpha=0.2, linewidth=0)
        ax.plot(places, found["mean"], color=colour, linestyle=style, marker=marker, ms=_DOT)
    if part["cka"].isna().all():
        why = textwrap.fill(str(part["note"].mode().iloc[0]), _TITLE_WIDTH)
        ax.text(0.5, 0.5, f"no values:\n{why}", transform=ax.transAxes, ha="center", va="center")


def _name_layers(ax: Axes, layers: Sequence[str]) -> None:
    every = math.ceil(len(layers) / _MOST_TICKS)
    shown = range(0, len(layers), every)
    ax.set_xticks(shown, [short_layer(str(layers[place])) for place in shown], rotation=90)
    ax.set_xlim(-0.5, len(layers) - 0.5)


def _legend(frame: pd.DataFrame, palette: Mapping[str, str]) -> list[Artist]:
    handles: list[Artist] = []
    looks = zip(palette.items(), LINE_STYLES, MARKERS, strict=False)
    for (name, colour), style, marker in looks:
        pairs = frame[frame["group"] == name][["domain_a", "domain_b"]].drop_duplicates()
        label = f"{name} ({len(pairs)})"
        handles.append(
            Line2D([], [], color=colour, linestyle=style, marker=marker, ms=_DOT, label=label)
        )
    handles.append(
        Patch(facecolor=NEUTRAL, alpha=0.4, linewidth=0, label="least to most alike pair")
    )
    return handles
