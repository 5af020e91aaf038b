"""Figures of circuits on made-up graphs and tables, read back from the artists they hold."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.graph_tables import Graph
from clip_mixtures.mechanisms.graphs import circuit_graph
from clip_mixtures.report.ablation_figures import ablation_by_layer, ablation_dots
from clip_mixtures.report.circuit_figures import (
    NEGATIVE,
    POSITIVE,
    circuit,
    circuits_side_by_side,
    dot_text,
)
from clip_mixtures.report.embedding_figures import PAGE_WIDTH
from clip_mixtures.report.similarity_figures import node_similarity_curves, similarity_matrices
from clip_mixtures.report.style import COLUMN_WIDTH, NEUTRAL, colours, save_figure

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
# The submodules of a ResNet-50.
LAYERS = ("act1", "act2", "act3", "avgpool", *(f"resblock{n}" for n in range(1, 17)), "attnpool")


def large_graph(seed: int = 0, layers: tuple[str, ...] = LAYERS, units: int = 30) -> Graph:
    generator = np.random.default_rng(seed)
    chosen = {layer: generator.choice(100, units, replace=False) for layer in layers}
    pairs = itertools.pairwise(layers)
    return circuit_graph(chosen, {pair: generator.normal(size=(units, units)) for pair in pairs})


def small_graph() -> Graph:
    """Units a/1, a/0 and b/5, b/6; edges of 2 and -1 into b/5, of -0.5 into b/6."""
    units = {"a": np.array([1, 0]), "b": np.array([5, 6])}
    return circuit_graph(units, {("a", "b"): np.array([[2.0, -1.0], [0.0, -0.5]])})


def thumbnails(count: int, side: int = 8, seed: int = 0) -> npt.NDArray[np.uint8]:
    shape = (count, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def nodes(
    layers: tuple[str, ...] = LAYERS, domains: tuple[str, ...] = DOMAINS, run: str | None = None
) -> pd.DataFrame:
    rows = [
        {"layer": layer, "domain_a": a, "domain_b": b, "group": group, "chance": 0.05}
        | {"similarity": 0.1 + 0.02 * place + 0.1 * (b == "sketch"), "classes": 15}
        for place, layer in enumerate(layers)
        for a, b in itertools.combinations(domains, 2)
        for group in ("held_out", "seen")
    ]
    table = pd.DataFrame(rows)
    return table if run is None else table.assign(run=run)


def scores(domains: tuple[str, ...] = DOMAINS, run: str | None = None) -> pd.DataFrame:
    rows = [
        {"score": score, "domain_a": a, "domain_b": b, "group": "all", "chance": 0.01}
        | {"similarity": 0.1 * (place + 1) / scale, "chance_given_units": 0.03, "classes": 344}
        for score, scale in (("jaccard", 2), ("wl_h1", 1))
        for place, (a, b) in enumerate(itertools.combinations(domains, 2))
    ]
    table = pd.DataFrame(rows)
    table["low"], table["high"] = table["similarity"] - 0.01, table["similarity"] + 0.02
    return table if run is None else table.assign(run=run)


def ablations(
    domains: tuple[str, ...] = DOMAINS, layers: tuple[str, ...] = ("all", *LAYERS)
) -> pd.DataFrame:
    rows = []
    cells = itertools.product(
        domains, domains, layers, ("ablate", "keep"), ("circuit", "random", "difference")
    )
    for source, target, layer, mode, kind in cells:
        base = {"source": source, "target": target, "layer": layer, "mode": mode, "kind": kind}
        strength = {"circuit": 0.2 + 0.1 * (source == target), "random": 0.05, "difference": 0.1}
        for measure, scale in (("margin_drop", 1.0), ("accuracy_drop", 2.0), ("recovered", 3.0)):
            value = scale * strength[kind]
            ends = {"estimate": value, "low": value - 0.02, "high": value + 0.03}
            rows.append(
                {**base, "measure": measure, **ends, "group": "all", "classes": 15, "images": 700}
            )
    return pd.DataFrame(rows)


FIGURES: dict[str, Callable[[], Figure]] = {
    "circuit": lambda: circuit(large_graph(), title="lion, sketch"),
    "small circuit": lambda: circuit(small_graph()),
    "side by side": lambda: circuits_side_by_side(
        {domain: large_graph(seed) for seed, domain in enumerate(DOMAINS)},
        {domain: thumbnails(4) for domain in DOMAINS},
        title="lion",
    ),
    "two side by side": lambda: circuits_side_by_side(
        {"real": small_graph(), "sketch": small_graph()}
    ),
    "node similarity": lambda: node_similarity_curves(nodes(), apart="sketch"),
    "node similarity of runs": lambda: node_similarity_curves(
        pd.concat([nodes(run="natural-only"), nodes(run="cg-high-with-a-very-long-name-of-a-run")])
    ),
    "matrix": lambda: similarity_matrices(scores()),
    "matrices": lambda: similarity_matrices(
        pd.concat([scores(run="a"), scores(run="b-" * 30), scores(("real", "sketch"), run="c")]),
        score="wl_h1",
    ),
    "ablation": lambda: ablation_dots(ablations()),
    "ablation of two": lambda: ablation_dots(ablations(("real", "sketch")), mode="keep"),
    "ablation by layer": lambda: ablation_by_layer(ablations()),
}


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return {name: make() for name, make in FIGURES.items()}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_drawn_beyond_the_edge(figures: dict[str, Figure], name: str) -> None:
    figure = figures[name]
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox
    boxes = [ax.get_tightbbox(canvas.get_renderer()) for ax in figure.axes]
    boxes += [one.get_window_extent(canvas.get_renderer()) for one in figure.legends]
    for box in boxes:
        assert box is not None
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1


def test_figures_are_a_column_or_a_page_wide(figures: dict[str, Figure]) -> None:
    for name in ("circuit", "node similarity", "matrix", "ablation by layer"):
        assert figures[name].get_size_inches()[0] == pytest.approx(COLUMN_WIDTH)
    for name in ("side by side", "matrices", "ablation"):
        assert figures[name].get_size_inches()[0] == pytest.approx(PAGE_WIDTH)


def test_a_figure_is_written_with_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("small circuit", "matrix"):
        first = [path.read_bytes() for path in save_figure(FIGURES[name](), tmp_path / "first")]
        second = [path.read_bytes() for path in save_figure(FIGURES[name](), tmp_path / "second")]
        assert first == second


# Circuits


def units_of(ax: Axes) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Return places and shades of the units, (n, 2) and n colours."""
    (dots,) = [one for one in ax.collections if isinstance(one, PathCollection)]
    places = np.asarray(dots.get_offsets(), dtype=np.float64)
    shades = np.asarray(dots.get_facecolor())
    return places, [to_hex(shades[place % len(shades)]).upper() for place in range(len(places))]


def edges_of(ax: Axes) -> dict[tuple[tuple[float, ...], ...], tuple[str, float]]:
    """Return the ends of each edge to its colour and its width in points."""
    (lines,) = [one for one in ax.collections if isinstance(one, LineCollection)]
    shades, widths = np.asarray(lines.get_color()), np.asarray(lines.get_linewidth())
    ends = [tuple(map(tuple, segment.tolist())) for segment in lines.get_segments()]
    return {
        end: (to_hex(shades[place]).upper(), float(widths[place])) for place, end in enumerate(ends)
    }


def titles(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def ticks(labels: Any) -> list[str]:
    return [tick.get_text() for tick in labels]


def test_units_go_by_rank_and_edges_by_sign_and_strength() -> None:
    figure = circuit(small_graph(), title="bat")
    (ax,) = figure.axes
    places, _ = units_of(ax)
    assert places.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    edges = edges_of(ax)
    assert {ends: colour for ends, (colour, _) in edges.items()} == {
        ((0, 0), (0, 1)): POSITIVE,
        ((1, 0), (0, 1)): NEGATIVE,
        ((1, 0), (1, 1)): NEGATIVE,
    }
    strongest = edges[(0, 0), (0, 1)][1]
    assert edges[(1, 0), (0, 1)][1] == pytest.approx(strongest / 2)
    assert edges[(1, 0), (1, 1)][1] == pytest.approx(strongest / 4)
    assert ticks(ax.get_yticklabels()) == ["a", "b"]
    assert titles(figure) == ["bat\n4 of 4 units, 3 of 3 edges"]
    assert legend(figure) == ["positive effect", "negative effect"]


def test_only_the_strongest_units_of_a_large_circuit_are_drawn() -> None:
    graph = large_graph()
    figure = circuit(graph, per_layer=5)
    (ax,) = figure.axes
    assert len(units_of(ax)[0]) == 5 * len(LAYERS)
    strongest = {node for node, facts in graph.nodes(data=True) if facts["rank"] < 5}
    inside = [edge for edge in graph.edges if set(edge) <= strongest]
    assert len(edges_of(ax)) == len(inside)
    assert titles(figure) == [
        f"{5 * 21} of {30 * 21} units, {len(inside)} of {graph.number_of_edges()} edges"
    ]
    assert ticks(ax.get_yticklabels())[-2:] == ["resb16", "attnp"]


def test_a_shared_unit_has_one_place_and_is_darker() -> None:
    other = circuit_graph(
        {"a": np.array([0, 4]), "b": np.array([5, 9])},
        {("a", "b"): np.array([[1.0, 1.0], [1.0, 1.0]])},
    )
    figure = circuits_side_by_side({"real": small_graph(), "sketch": other}, title="bat")
    assert titles(figure) == ["real", "sketch"]
    found = []
    for ax in figure.axes:
        places, shades = units_of(ax)
        found.append({tuple(place): shade for place, shade in zip(places, shades, strict=True)})
    # a/0 and b/5 are in both and come first; then by channel: a/1 and a/4, b/6 and b/9.
    black, grey = "#000000", "#DBDBDB"
    assert found[0] == {(0, 0): black, (1, 0): grey, (0, 1): black, (1, 1): grey}
    assert found[1] == {(0, 0): black, (2, 0): grey, (0, 1): black, (2, 1): grey}
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert ticks(figure.axes[0].get_yticklabels()) == ["a", "b"]
    assert set(ticks(figure.axes[1].get_yticklabels())) == {""}
    assert legend(figure)[:2] == ["unit of 2 circuits", "unit of 1 circuit"]


def test_example_images_are_drawn_as_they_are() -> None:
    images = {"real": thumbnails(6), "sketch": thumbnails(3, seed=1)}
    graphs = {"real": small_graph(), "sketch": small_graph()}
    figure = circuits_side_by_side(graphs, images)
    top = figure.axes[:2]
    assert [len(ax.images) for ax in top] == [4, 3]
    for ax, found in zip(top, images.values(), strict=True):
        for place, image in enumerate(ax.images):
            assert np.array_equal(np.asarray(image.get_array()), found[place])


def test_layers_that_a_circuit_lacks_keep_their_place() -> None:
    short = large_graph(layers=("act1", "resblock1", "attnpool"))
    long = large_graph(layers=("act1", "act2", "resblock1", "attnpool"))
    figure = circuits_side_by_side({"real": short, "sketch": long})
    assert ticks(figure.axes[0].get_yticklabels()) == ["act1", "act2", "resb1", "attnp"]
    assert set(units_of(figure.axes[0])[0][:, 1]) == {0, 2, 3}


def test_edges_without_effects_are_grey() -> None:
    graph = small_graph()
    for _, _, facts in graph.edges(data=True):
        facts.clear()
    figure = circuit(graph)
    assert {colour for colour, _ in edges_of(figure.axes[0]).values()} == {NEUTRAL.upper()}
    assert legend(figure) == ["edge"]
    assert "[" not in dot_text(graph).split("}")[-2]


def test_dot_text_has_every_unit_and_edge() -> None:
    graph = large_graph()
    text = dot_text(graph)
    assert text.startswith("digraph circuit {\n")
    assert text.endswith("}\n")
    assert text.count("{") == text.count("}") == 1 + len(LAYERS)
    edges = re.findall(r'^  "([^"]+)" -> "([^"]+)" \[(.*)\];$', text, flags=re.MULTILINE)
    assert [(source, target) for source, target, _ in edges] == list(graph.edges)
    ranks = re.findall(r"\{ rank=same; (.*) \}", text)
    assert [re.findall(r'"([^"]+)";', rank) for rank in ranks] == [
        [node for node in graph if node.startswith(f"{layer}/")] for layer in LAYERS
    ]


def test_dot_text_of_a_small_circuit() -> None:
    assert dot_text(small_graph()).splitlines()[3:] == [
        '  { rank=same; "a/1"; "a/0"; }',
        '  { rank=same; "b/5"; "b/6"; }',
        f'  "a/1" -> "b/5" [color="{POSITIVE}", penwidth=3.00, comment="2"];',
        f'  "a/0" -> "b/5" [color="{NEGATIVE}", penwidth=1.60, comment="-1"];',
        f'  "a/0" -> "b/6" [color="{NEGATIVE}", penwidth=0.90, comment="-0.5"];',
        "}",
    ]
    quoted: Graph = nx.DiGraph()
    quoted.add_node('a"\\b/0', layer='a"\\b', channel=0, rank=0)
    assert '{ rank=same; "a\\"\\\\b/0"; }' in dot_text(quoted)


# Similarity


def curves(ax: Axes, points: int) -> list[Line2D]:
    return [line for line in ax.lines if len(np.asarray(line.get_xdata())) == points]


def test_curves_are_means_over_pairs_beside_chance() -> None:
    figure = node_similarity_curves(nodes(), apart="sketch")
    assert titles(figure) == ["Held-out classes (15)", "Seen classes (15)"]
    drawn, others, chance = curves(figure.axes[0], len(LAYERS))
    expected = 0.1 + 0.02 * np.arange(len(LAYERS))
    np.testing.assert_allclose(np.asarray(drawn.get_ydata(), dtype=float), expected + 0.1)
    np.testing.assert_allclose(np.asarray(others.get_ydata(), dtype=float), expected)
    np.testing.assert_allclose(np.asarray(chance.get_ydata(), dtype=float), 0.05)
    assert legend(figure) == [
        "pairs with sketch", "other pairs", "least to most alike pair", "random units",
    ]  # fmt: skip
    assert ticks(figure.axes[-1].get_xticklabels())[4] == "resb1"
    assert legend(node_similarity_curves(nodes()))[0] == "all pairs"


def test_runs_have_panels_of_their_own() -> None:
    table = pd.concat([nodes(run="natural-only"), nodes(run="cg-high")])
    assert titles(node_similarity_curves(table)) == [
        f"{run}: {group} classes (15)"
        for run in ("natural-only", "cg-high")
        for group in ("held-out", "seen")
    ]


def test_numbers_are_written_into_the_matrix() -> None:
    figure = similarity_matrices(scores(("real", "sketch", "clipart")), score="wl_h1")
    ax = figure.axes[0]
    drawn = np.ma.filled(np.ma.asarray(ax.images[0].get_array()).astype(float), np.nan)
    np.testing.assert_allclose(drawn, [[0.1, np.nan], [0.2, 0.3]])
    assert ticks(ax.get_xticklabels()) == ["real", "sketch"]
    assert ticks(ax.get_yticklabels()) == ["sketch", "clipart"]
    places = {text.get_text(): tuple(map(round, text.get_position())) for text in ax.texts}
    assert places == {
        "0.100": (0, 0), ".090\u2013.120": (0, 0),
        "0.200": (0, 1), ".190\u2013.220": (0, 1),
        "0.300": (1, 1), ".290\u2013.320": (1, 1),
    }  # fmt: skip
    assert titles(figure)[0] == "All classes (344)\nchance 0.010, given the units 0.030"


def test_matrices_share_one_scale_and_intervals_may_be_missing() -> None:
    one = scores(("real", "sketch"), run="b").assign(low=np.nan, high=np.nan)
    figure = similarity_matrices(pd.concat([scores(run="a"), one]))
    limits = [ax.images[0].get_clim() for ax in figure.axes[:2]]
    assert limits == [(0, 0.75), (0, 0.75)]
    assert ticks(figure.axes[1].texts) == ["0.050"]
    assert [title.split("\n")[0] for title in titles(figure)[:2]] == ["a", "b"]


# Ablation


def dots(ax: Axes) -> list[Line2D]:
    return [line for line in ax.lines if line.get_marker() in ("o", "s")]


def test_every_circuit_is_a_dot_and_random_units_are_one() -> None:
    figure = ablation_dots(ablations(("real", "sketch")))
    margin, accuracy = figure.axes
    assert margin.get_xlabel() == "Drop in margin over all texts"
    assert accuracy.get_xlabel() == "Drop in accuracy (points)"
    real, sketch = colours(("real", "sketch")).values()
    # A row: the circuit of the same domain, the other one, random units.
    assert [
        (line.get_color(), line.get_markerfacecolor(), line.get_marker()) for line in dots(margin)
    ] == [
        (real, real, "o"), (sketch, "white", "o"), (NEUTRAL, NEUTRAL, "s"),
        (sketch, sketch, "o"), (real, "white", "o"), (NEUTRAL, NEUTRAL, "s"),
    ]  # fmt: skip
    values = [float(np.asarray(line.get_xdata())[0]) for line in dots(margin)]
    assert values == pytest.approx([0.3, 0.2, 0.05] * 2)
    points = [float(np.asarray(line.get_xdata())[0]) for line in dots(accuracy)]
    assert points == pytest.approx([60, 40, 10] * 2)
    bars = [line for line in curves(margin, 2) if line.get_linewidth() == 0.9]
    assert [np.asarray(bar.get_xdata()).tolist() for bar in bars[:2]] == [
        pytest.approx([0.28, 0.33]), pytest.approx([0.18, 0.23]),
    ]  # fmt: skip
    assert ticks(margin.get_yticklabels()) == ["real", "sketch"]
    assert titles(figure)[0] == "All classes (15)"


def test_a_row_without_a_value_says_so() -> None:
    table = ablations(("real", "sketch"))
    table.loc[table["target"] == "sketch", ["estimate", "low", "high"]] = np.nan
    (ax,) = ablation_dots(table, measures=["recovered"]).axes
    assert [(text.get_text(), text.get_position()[1]) for text in ax.texts] == [
        ("no margin to recover", 1)
    ]


def test_layers_are_drawn_from_the_first_to_the_last() -> None:
    figure = ablation_by_layer(ablations())
    own, others, random = curves(figure.axes[0], len(LAYERS))
    for line, expected in ((own, 0.3), (others, 0.2), (random, 0.05)):
        np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=float), expected)
    assert legend(figure)[0] == "circuit found on the same domain"
    alone = ablations(("real",))
    assert len(curves(ablation_by_layer(alone).axes[0], len(LAYERS))) == 2


# Bad input


def test_graphs_that_cannot_be_drawn_are_named() -> None:
    empty: Graph = nx.DiGraph()
    calls: tuple[tuple[Callable[[], Figure], str], ...] = (
        (lambda: circuit(empty), "a graph has no units"),
        (lambda: circuit(small_graph(), per_layer=0), "per_layer is 0"),
        (lambda: circuits_side_by_side({}), "there are no graphs"),
        (lambda: circuits_side_by_side({"real": empty}), "a graph has no units"),
        (
            lambda: circuits_side_by_side({"real": small_graph()}, {"sketch": thumbnails(1)}),
            "'real' has no images",
        ),
        (
            lambda: circuits_side_by_side(
                {"real": small_graph()}, {"real": thumbnails(1)[:, :, :, :1]}
            ),
            r"images of 'real' are uint8 of shape \(1, 8, 8, 1\)",
        ),
    )
    for call, message in calls:
        with pytest.raises(UserError, match=message):
            call()


def test_tables_that_cannot_be_drawn_are_named() -> None:
    calls: tuple[tuple[Callable[[], Figure], str], ...] = (
        (lambda: node_similarity_curves(nodes().drop(columns="chance")), "no column chance"),
        (lambda: node_similarity_curves(nodes().iloc[:0]), "there are no rows"),
        (lambda: node_similarity_curves(nodes(), apart="toys"), "unknown domain 'toys'"),
        (
            lambda: node_similarity_curves(pd.concat([nodes(), nodes()])),
            "layer 'act1' has 'clipart' and 'infograph' twice; tell runs apart",
        ),
        (lambda: similarity_matrices(scores(), score="wl_h9"), "unknown score 'wl_h9'"),
        (lambda: similarity_matrices(scores(), group="seen"), "unknown group 'seen'"),
        (lambda: ablation_dots(ablations(), mode="remove"), "unknown mode 'remove'"),
        (lambda: ablation_dots(ablations(), measures=["loss"]), "unknown measure 'loss'"),
        (lambda: ablation_dots(ablations().drop(columns="low")), "no column low"),
        (lambda: ablation_by_layer(ablations(layers=("all",))), "ablate with each_layer"),
    )
    for call, message in calls:
        with pytest.raises(UserError, match=message):
            call()
