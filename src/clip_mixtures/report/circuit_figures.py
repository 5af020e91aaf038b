"""Circuits as drawings: one by itself, those of a class in all domains side by side, and DOT.

A circuit has hundreds of units, so only the strongest of every layer are drawn, and the edges
between these; how many that are of how many is written above. Layers go from top to bottom. The
width of an edge is its absolute effect as a share of the largest between the same two layers, for
effects differ by orders of magnitude from layer to layer; its colour is the sign. Graphs come from
``clip_mixtures.mechanisms.graphs.circuit_graph``; ``style.save_figure`` writes a figure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.graph_tables import Graph
from clip_mixtures.report.cka_figures import short_layer
from clip_mixtures.report.embedding_figures import PAGE_WIDTH
from clip_mixtures.report.style import COLUMN_WIDTH, NEUTRAL, OKABE_ITO, figure_style
from clip_mixtures.report.tables import distinct

Places: TypeAlias = Mapping[str, tuple[float, float]]

POSITIVE, NEGATIVE = OKABE_ITO[0], OKABE_ITO[3]
_LIGHTEST, _DARKEST = 0.86, 0.0  # grey of a unit that one circuit has, and of one that all have
_ROW = 0.24  # inches between layers
_FRAME = 0.75  # inches for the title and the legend
_WIDEST = 1.6  # points: the strongest edge between two layers
_OPACITY = 0.65
_DOT, _SMALL_DOT = 22.0, 9.0  # square points: a unit, alone and side by side
_GAP = 0.04  # share of a thumbnail's side between thumbnails
_ACROSS, _MOST_IMAGES = 2, 4  # thumbnails on top of a circuit: side by side, and in all


def circuit(graph: Graph, *, title: str = "", per_layer: int = 8) -> Figure:
    """Draw a circuit, the strongest units of each layer from left to right.

    Args:
        graph: the circuit.
        title: of the figure.
        per_layer: how many units of each layer to draw.

    Returns:
        The figure, a column wide.

    Raises:
        UserError: a graph without units, or ``per_layer`` below 1.
    """
    shown = _strongest(graph, per_layer)
    layers = distinct(graph.nodes[node]["layer"] for node in shown)
    places = _ranked_places(graph, shown, layers)
    with figure_style():
        height = _FRAME + _ROW * len(layers)
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        ax = figure.subplots()
        count = _draw(ax, graph, places, dict.fromkeys(places, "black"), _DOT)
        counted = f"{len(places)} of {len(graph)} units, {count} of {graph.number_of_edges()} edges"
        ax.set_title(f"{title}\n{counted}" if title else counted)
        _name_layers(ax, layers)
        width = max(x for x, _ in places.values())
        ax.set_xlim(-0.5, width + 0.5)
        ax.set_xlabel("Units, the strongest on the left")
        figure.legend(handles=_edge_legend([graph]), loc="outside lower center", ncols=2)
    return figure


def circuits_side_by_side(
    graphs: Mapping[str, Graph],
    images: Mapping[str, npt.NDArray[np.uint8]] | None = None,
    *,
    title: str = "",
    per_layer: int = 6,
) -> Figure:
    """Draw the circuits of a class side by side, a unit at the same place in all.

    Units that more domains have are darker and further left, so what is shared is a dark block
    that repeats from panel to panel.

    Args:
        graphs: domain to its circuit.
        images: domain to example images, (n, H, W, 3) uint8, drawn on top, four at most; None for
            no images.
        title: of the figure, the class for instance.
        per_layer: how many units of each layer of each circuit to draw.

    Returns:
        The figure, a page wide.

    Raises:
        UserError: no graphs, a graph without units, a domain without images while others have
            some, images that are not uint8 of that shape, or ``per_layer`` below 1.
    """
    if not graphs:
        raise UserError("figure of circuits: there are no graphs; give at least one domain")
    tops = 0 if images is None else _image_rows(graphs, images)
    shown = {domain: set(_strongest(graph, per_layer)) for domain, graph in graphs.items()}
    layers = _common_order([_layers_of(graph) for graph in graphs.values()])
    sharing = Counter(node for graph in graphs.values() for node in graph)
    places = _shared_places(graphs, shown, layers, sharing)
    width = max(x for x, _ in places.values())
    side = (PAGE_WIDTH - 0.6) / len(graphs)
    rows = [side * tops / _ACROSS, _ROW * len(layers)] if tops else [_ROW * len(layers)]
    with figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, _FRAME + sum(rows)), layout="constrained")
        grid = figure.subplots(len(rows), len(graphs), squeeze=False, height_ratios=rows)
        for column, (domain, graph) in enumerate(graphs.items()):
            ax = grid[-1, column]
            mine = {node: places[node] for node in places if node in shown[domain]}
            shades = {node: _shade(sharing[node], len(graphs)) for node in mine}
            _draw(ax, graph, mine, shades, _SMALL_DOT)
            ax.set_xlim(-1, width + 1)
            _name_layers(ax, layers if column == 0 else [""] * len(layers))
            if images is not None and tops:
                _draw_images(grid[0, column], images[domain])
            grid[0, column].set_title(domain)
        if title:
            figure.suptitle(title, fontsize=8)
        legend = [*_unit_legend(len(graphs)), *_edge_legend(graphs.values())]
        figure.legend(handles=legend, loc="outside lower center", ncols=min(len(legend), 5))
    return figure


def dot_text(graph: Graph) -> str:
    """Write a circuit in the DOT language, for Graphviz (``dot -Tsvg``).

    Units of a layer are on one rank; edges have the colour of their sign, a width by their share of
    the largest effect between the same layers, and the effect itself as ``weight`` in a comment
    attribute that Graphviz keeps and does not read.

    Args:
        graph: the circuit.

    Returns:
        A directed graph of all units and edges, in the order of the graph, ending with a newline.
    """
    lines = ["digraph circuit {", "  rankdir=TB;", "  node [shape=ellipse, fontsize=10];"]
    for layer in _layers_of(graph):
        nodes = [node for node, facts in graph.nodes(data=True) if facts["layer"] == layer]
        lines.append("  { rank=same; " + " ".join(f"{_quoted(node)};" for node in nodes) + " }")
    shares = _shares(graph, list(graph.edges))
    for (source, target), share in zip(graph.edges, shares, strict=True):
        effect = graph.edges[source, target].get("weight")
        attributes = ""
        if effect is not None:
            colour = POSITIVE if effect > 0 else NEGATIVE
            attributes = (
                f' [color="{colour}", penwidth={0.2 + 2.8 * share:.2f}, comment="{effect:.6g}"]'
            )
        lines.append(f"  {_quoted(source)} -> {_quoted(target)}{attributes};")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _layers_of(graph: Graph) -> list[str]:
    return distinct(facts["layer"] for _, facts in graph.nodes(data=True))


def _common_order(orders: Sequence[Sequence[str]]) -> list[str]:
    """Merge orders of layers: each layer comes right after the one before it in some order."""
    merged: list[str] = []
    for order in orders:
        at = 0
        for layer in order:
            if layer in merged:
                at = merged.index(layer) + 1
            else:
                merged.insert(at, layer)
                at += 1
    return merged


def _strongest(graph: Graph, per_layer: int) -> list[str]:
    if per_layer < 1:
        raise UserError(f"figure of circuits: per_layer is {per_layer}; allowed: 1 or more")
    if not len(graph):
        raise UserError("figure of circuits: a graph has no units; make it with circuit_graph")
    return [node for node, facts in graph.nodes(data=True) if facts["rank"] < per_layer]


def _ranked_places(graph: Graph, shown: Sequence[str], layers: Sequence[str]) -> Places:
    rows = {layer: row for row, layer in enumerate(layers)}
    facts = {node: graph.nodes[node] for node in shown}
    return {node: (float(one["rank"]), float(rows[one["layer"]])) for node, one in facts.items()}


def _shared_places(
    graphs: Mapping[str, Graph],
    shown: Mapping[str, set[str]],
    layers: Sequence[str],
    sharing: Mapping[str, int],
) -> Places:
    """Give every unit that is drawn one place; those that more circuits have come first."""
    facts = {node: graph.nodes[node] for graph in graphs.values() for node in graph}
    drawn = set().union(*shown.values())
    places: dict[str, tuple[float, float]] = {}
    for row, layer in enumerate(layers):
        of_layer = [node for node in drawn if facts[node]["layer"] == layer]
        of_layer.sort(key=lambda node: (-sharing[node], facts[node]["channel"]))
        places |= {node: (float(place), float(row)) for place, node in enumerate(of_layer)}
    return places


def _draw(ax: Axes, graph: Graph, places: Places, shades: Mapping[str, str], area: float) -> int:
    """Draw the units that have a place and the edges between them; return how many edges."""
    edges = [edge for edge in graph.edges if edge[0] in places and edge[1] in places]
    # The strongest on top.
    shares = _shares(graph, edges)
    order = np.argsort(shares, kind="stable")
    ax.add_collection(
        LineCollection(
            [[places[node] for node in edges[place]] for place in order],
            linewidths=[_WIDEST * max(float(shares[place]), 0.1) for place in order],
            colors=[_edge_colour(graph, edges[place]) for place in order],
            alpha=_OPACITY,
            zorder=1,
        )
    )
    spots = np.array([places[node] for node in places])
    colours = [shades[node] for node in places]
    ax.scatter(
        spots[:, 0], spots[:, 1], s=area, c=colours, edgecolors="black", linewidths=0.4, zorder=2
    )
    return len(edges)


def _shares(graph: Graph, edges: Sequence[tuple[str, str]]) -> npt.NDArray[np.float64]:
    """Return absolute effects as shares of the largest between their layers; 1 without effects."""
    effects = [abs(graph.edges[edge].get("weight", 1.0)) for edge in edges]
    layers = {node: facts["layer"] for node, facts in graph.nodes(data=True)}
    between = [(layers[source], layers[target]) for source, target in edges]
    largest: dict[tuple[str, str], float] = {}
    for pair, effect in zip(between, effects, strict=True):
        largest[pair] = max(largest.get(pair, 0.0), effect)
    found = [effect / (largest[pair] or 1.0) for pair, effect in zip(between, effects, strict=True)]
    return np.array(found, dtype=np.float64)


def _edge_colour(graph: Graph, edge: tuple[str, str]) -> str:
    effect = graph.edges[edge].get("weight")
    if effect is None:
        return NEUTRAL
    return POSITIVE if effect > 0 else NEGATIVE


def _shade(count: int, circuits: int) -> str:
    """Return the grey of a unit that so many circuits have."""
    share = (count - 1) / max(circuits - 1, 1)
    grey = _LIGHTEST + share * (_DARKEST - _LIGHTEST)
    return to_hex((grey, grey, grey))


def _name_layers(ax: Axes, layers: Sequence[str]) -> None:
    ax.set_yticks(range(len(layers)), [short_layer(layer) for layer in layers])
    ax.set_ylim(len(layers) - 0.5, -0.5)
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _draw_images(ax: Axes, images: npt.NDArray[np.uint8]) -> None:
    for place, image in enumerate(images[:_MOST_IMAGES]):
        row, column = divmod(place, _ACROSS)
        left, top = column * (1 + _GAP), row * (1 + _GAP)
        ax.imshow(image, extent=(left, left + 1, top + 1, top), interpolation="antialiased")
        ax.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor="#CCCCCC", linewidth=0.4))
    rows = math.ceil(min(len(images), _MOST_IMAGES) / _ACROSS)
    ax.set_xlim(-0.02, _ACROSS * (1 + _GAP))
    ax.set_ylim(rows * (1 + _GAP), -0.02)
    ax.set_axis_off()


def _image_rows(graphs: Iterable[str], images: Mapping[str, npt.NDArray[np.uint8]]) -> int:
    """Check the images; return how many rows of thumbnails the fullest panel has."""
    for domain in graphs:
        if domain not in images:
            raise UserError(f"figure of circuits: {domain!r} has no images; give some of each")
        found = images[domain]
        if found.dtype != np.uint8 or found.ndim != 4 or found.shape[-1] != 3 or not len(found):
            raise UserError(
                f"figure of circuits: images of {domain!r} are {found.dtype} of shape "
                f"{found.shape}; give (n, H, W, 3) uint8, n above 0"
            )
    most = max(len(images[domain]) for domain in graphs)
    return math.ceil(min(most, _MOST_IMAGES) / _ACROSS)


def _edge_legend(graphs: Iterable[Graph]) -> list[Artist]:
    if not any("weight" in facts for graph in graphs for *_, facts in graph.edges(data=True)):
        return [Line2D([], [], color=NEUTRAL, label="edge")]
    return [
        Line2D([], [], color=POSITIVE, linewidth=_WIDEST, label="positive effect"),
        Line2D([], [], color=NEGATIVE, linewidth=_WIDEST, label="negative effect"),
    ]


def _unit_legend(circuits: int) -> list[Artist]:
    plain: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4}
    plain |= {"markeredgecolor": "black", "markeredgewidth": 0.4}
    counts = [1] if circuits == 1 else [circuits, 1]
    return [
        Line2D(
            [],
            [],
            markerfacecolor=_shade(count, circuits),
            label=f"unit of {count} circuit" + ("s" if count > 1 else ""),
            **plain,
        )
        for count in counts
    ]
