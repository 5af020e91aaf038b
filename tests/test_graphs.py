"""Graphs of circuits: published edges and kernels, hand answers, the definition, bad input."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.graph_tables import Graph, unit_name
from clip_mixtures.mechanisms.graphs import (
    SCORES,
    circuit_graph,
    edge_jaccard,
    score_matrices,
    weisfeiler_lehman,
    weisfeiler_lehman_up_to,
    wl_iterations,
)

UNITS = {"input": np.array([0]), "act1": np.array([5, 2, 7, 1]), "act2": np.array([3, 0])}
EDGES = {
    ("input", "act1"): np.ones((4, 1)),
    ("act1", "act2"): np.array([[0.5, -2.0, 0.1, 0.0], [0.3, 0.2, -0.1, -1.0]]),
}


def graph(edges: str, alone: str = "") -> Graph:
    """Build a graph from words such as "ab", an edge from a to b."""
    found: Graph = nx.DiGraph()
    found.add_nodes_from(alone)
    found.add_edges_from((word[0], word[1]) for word in edges.split())
    return found


def edges_of(found: Graph) -> dict[tuple[str, str], float]:
    return {(source, target): facts["weight"] for source, target, facts in found.edges(data=True)}


# The published program


def published_graphs(shared_file: Callable[[str], Path]) -> tuple[list[Graph], dict[str, Any]]:
    arrays = np.load(shared_file("oracle/numerics/graph_notie.npz"))
    answers = json.loads(shared_file("oracle/numerics/graph_notie.json").read_text())
    graphs = []
    for domain in ("real", "clipart", "quickdraw"):
        units = {name: arrays[f"{domain}/features/{name}"] for name in arrays["names"]}
        head = f"{domain}/edge/"
        names = [tuple(key.removeprefix(head).split("/")) for key in arrays if key.startswith(head)]
        edges = {(up, down): arrays[f"{head}{up}/{down}"] for up, down in names}
        graphs.append(circuit_graph(units, edges, protocol="published"))
    return graphs, answers


def test_graphs_and_scores_are_the_published_ones(shared_file: Callable[[str], Path]) -> None:
    graphs, answers = published_graphs(shared_file)
    for found, domain in zip(graphs, ("real", "clipart", "quickdraw"), strict=True):
        assert len(found) == answers["n_nodes"][domain]
        assert sorted(map(list, found.edges)) == sorted(answers["edges"][domain])
    for h in range(4):
        kernel = weisfeiler_lehman(graphs, h, protocol="published")
        assert kernel == pytest.approx(np.array(answers[f"wl_h{h}"]), abs=1e-12)
    real, clipart, quickdraw = graphs
    assert edge_jaccard(real, clipart) == answers["jaccard"]["real|clipart"]
    assert edge_jaccard(clipart, quickdraw) == answers["jaccard"]["clipart|quickdraw"]


def test_the_published_score_wl_h2_has_three_iterations(
    shared_file: Callable[[str], Path],
) -> None:
    graphs, answers = published_graphs(shared_file)
    found = score_matrices(graphs, protocol="published")
    assert list(found) == list(SCORES)
    assert found["wl_h2"] == pytest.approx(np.array(answers["wl_h3"]), abs=1e-12)
    assert found["wl_h2"][0, 1] == pytest.approx(0.25)
    assert weisfeiler_lehman(graphs, 2, "published")[0, 1] == pytest.approx(0.2882882882882883)
    assert [wl_iterations(name, "published") for name in SCORES[1:]] == [1, 3, 3]
    assert [wl_iterations(name) for name in SCORES[1:]] == [1, 2, 3]


def test_two_small_graphs_have_the_published_kernel(shared_file: Callable[[str], Path]) -> None:
    answers = json.loads(shared_file("oracle/numerics/wl_small.json").read_text())
    pair: list[Graph] = []
    for name in ("A", "B"):
        found: Graph = nx.DiGraph()
        found.add_nodes_from(answers[f"{name}_nodes"])
        found.add_edges_from(answers[f"{name}_edges"])
        pair.append(found)
    for h in range(4):
        assert weisfeiler_lehman(pair, h, "published")[0, 1] == answers[f"h{h}"]
    assert edge_jaccard(*pair) == answers["jaccard"]


# Edges


def test_edges_by_signed_and_by_absolute_value() -> None:
    published = circuit_graph(UNITS, EDGES, edges_per_unit=2, protocol="published")
    # Weights are the values themselves, though float32 decides.
    assert edges_of(published) == {
        ("act1/5", "act2/3"): 0.5,
        ("act1/7", "act2/3"): 0.1,
        ("act1/5", "act2/0"): 0.3,
        ("act1/2", "act2/0"): 0.2,
    }
    corrected = circuit_graph(UNITS, EDGES, edges_per_unit=2)
    assert edges_of(corrected) == {
        ("act1/2", "act2/3"): -2.0,
        ("act1/5", "act2/3"): 0.5,
        ("act1/1", "act2/0"): -1.0,
        ("act1/5", "act2/0"): 0.3,
    }
    for found in (published, corrected):
        assert list(found) == ["act1/5", "act1/2", "act1/7", "act1/1", "act2/3", "act2/0"]
        assert found.nodes["act1/7"] == {"layer": "act1", "channel": 7, "rank": 2}


def test_a_unit_without_effects_gets_edges_in_the_published_graph_only() -> None:
    edges = {("act1", "act2"): torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]])}
    corrected = circuit_graph(UNITS, edges)
    assert edges_of(corrected) == {("act1/7", "act2/0"): 3.0}
    published = circuit_graph(UNITS, edges, protocol="published")
    order = [unit_name("act1", channel) for channel in (5, 2, 7, 1)]
    expected = {order[place] for place in torch.zeros(4).topk(3).indices}
    assert set(published.predecessors("act2/3")) == expected
    assert published.in_degree("act2/0") == 3


def test_equal_effects_are_taken_by_channel_number() -> None:
    edges = {("act1", "act2"): np.array([[1.0, -1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])}
    found = circuit_graph(UNITS, edges, edges_per_unit=2)
    assert set(found.predecessors("act2/3")) == {"act1/1", "act1/2"}
    assert set(found.predecessors("act2/0")) == {"act1/1", "act1/2"}


def test_fewer_units_than_edges_are_an_error_in_the_published_graph_only() -> None:
    assert circuit_graph(UNITS, EDGES, edges_per_unit=5).number_of_edges() == 7  # one is zero
    with pytest.raises(ValueError, match=r"'act1' has 4 units .* fewer than edges_per_unit 5"):
        circuit_graph(UNITS, EDGES, edges_per_unit=5, protocol="published")


def test_a_circuit_without_edges_is_a_graph_without_edges() -> None:
    found = circuit_graph(UNITS, {})
    assert len(found) == 6
    assert found.number_of_edges() == 0


@given(st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_the_order_of_units_does_not_matter(random: Any) -> None:
    values = EDGES["act1", "act2"].round()  # with ties
    up, down = random.sample(range(4), 4), random.sample(range(2), 2)
    shuffled = {"act1": UNITS["act1"][up], "act2": UNITS["act2"][down]}
    first = circuit_graph(UNITS, {("act1", "act2"): values})
    second = circuit_graph(shuffled, {("act1", "act2"): values[np.ix_(down, up)]})
    assert set(first) == set(second)
    assert edges_of(first) == edges_of(second)


def test_tensors_of_any_precision_give_the_same_graph() -> None:
    units = {layer: torch.from_numpy(found) for layer, found in UNITS.items()}
    edges = {pair: torch.from_numpy(values).bfloat16() for pair, values in EDGES.items()}
    assert set(circuit_graph(units, edges).edges) == set(circuit_graph(UNITS, EDGES).edges)


# Scores


def test_jaccard_by_hand() -> None:
    # Common: ab. Either: ab, ac, bc, bd.
    assert edge_jaccard(graph("ab ac bc"), graph("ab bd")) == 0.25
    assert edge_jaccard(graph("ab"), graph("ba")) == 0  # direction counts
    assert edge_jaccard(graph("ab"), graph("", "ab")) == 0
    assert edge_jaccard(graph("", "ab"), graph("", "ab")) == 0


def test_kernel_by_hand() -> None:
    first, second = graph("ab ac bc", "z"), graph("ab ac bd")
    # Nodes a, b, c in common, of 4 and 4. Of successors: a (b, c) and c (none) at h = 1, then c
    # alone. With predecessors: a alone at h = 1, for c has a and b or only a; then none.
    expected = {
        "published": [3 / 4, 5 / 8, 6 / 12, 7 / 16],
        "corrected": [3 / 4, 4 / 8, 4 / 12, 4 / 16],
    }
    for protocol, answers in expected.items():
        found = weisfeiler_lehman_up_to([first, second], 3, protocol)
        assert found[:, 0, 1] == pytest.approx(np.array(answers), abs=1e-15)
        assert (found[:, [0, 1], [0, 1]] == 1).all()


def test_what_feeds_a_unit_counts_only_when_corrected() -> None:
    first, second = graph("ac bd cz"), graph("bc ad cz")
    # Successors: a, b differ; c, d, z equal. Predecessors as well: c and d differ, too.
    assert weisfeiler_lehman([first, second], 1, "published")[0, 1] == (5 + 3) / 10
    assert weisfeiler_lehman([first, second], 1)[0, 1] == (5 + 1) / 10


def test_empty_graphs_are_like_nothing() -> None:
    found = weisfeiler_lehman([graph("ab"), graph(""), graph("")], 2)
    assert found.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def by_definition(graphs: Sequence[Graph], h: int, *, both: bool) -> npt.NDArray[np.float64]:
    """Spell the labels out as nested tuples and count them."""
    counts: list[Counter[Any]] = []
    for found in graphs:
        labels: dict[str, Any] = {node: node for node in found}
        counts.append(Counter(map(repr, labels.values())))
        for _ in range(h):
            sides = [found.successors, found.predecessors] if both else [found.successors]
            labels = {
                node: (
                    labels[node],
                    *(sorted(repr(labels[other]) for other in side(node)) for side in sides),
                )
                for node in found
            }
            counts[-1].update(map(repr, labels.values()))
    products = [[sum(a[key] * b[key] for key in a) for b in counts] for a in counts]
    gram = np.array(products, dtype=np.float64)
    return gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))


@st.composite
def families(draw: st.DrawFn) -> list[Graph]:
    """Make a few graphs in layers that have much in common."""
    pairs = [(f"u{i}", f"v{j}") for i in range(3) for j in range(3)]
    pairs += [(f"v{i}", f"w{j}") for i in range(3) for j in range(2)]
    family: list[Graph] = []
    for _ in range(draw(st.integers(2, 4))):
        found: Graph = nx.DiGraph()
        found.add_nodes_from(draw(st.lists(st.sampled_from(["u0", "v1", "w0"]), min_size=1)))
        found.add_edges_from(draw(st.lists(st.sampled_from(pairs), unique=True)))
        family.append(found)
    return family


@given(families(), st.integers(0, 3), st.sampled_from(["published", "corrected"]))
@settings(max_examples=60, deadline=None)
def test_kernel_follows_its_definition(family: list[Graph], h: int, protocol: str) -> None:
    found = weisfeiler_lehman(family, h, protocol)
    assert found == pytest.approx(by_definition(family, h, both=protocol == "corrected"))
    assert (found == found.T).all()
    assert (np.diag(found) == 1).all()
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-12
    assert np.linalg.eigvalsh(found).min() > -1e-9
    # Pairs do not depend on what else is compared, nor on the order in which nodes were added.
    again: Graph = nx.DiGraph()
    again.add_nodes_from(sorted(family[1], reverse=True))
    again.add_edges_from(sorted(family[1].edges))
    pair = weisfeiler_lehman([family[0], again], h, protocol)
    assert pair[0, 1] == pytest.approx(found[0, 1])


@given(families())
@settings(max_examples=25, deadline=None)
def test_without_iterations_the_kernel_is_the_cosine_of_the_units(family: list[Graph]) -> None:
    first, second = set(family[0]), set(family[1])
    expected = len(first & second) / math.sqrt(len(first) * len(second))
    assert weisfeiler_lehman(family, 0)[0, 1] == pytest.approx(expected)
    assert edge_jaccard(family[0], family[1]) == edge_jaccard(family[1], family[0])


def test_scores_are_what_their_names_say() -> None:
    graphs = [graph("ab ac bc", "z"), graph("ab ac bd"), graph("ab")]
    found = score_matrices(graphs, ["wl_h2", "jaccard"])
    assert list(found) == ["wl_h2", "jaccard"]
    assert (found["wl_h2"] == weisfeiler_lehman(graphs, 2)).all()
    assert found["jaccard"].tolist() == [[1, 0.5, 1 / 3], [0.5, 1, 1 / 3], [1 / 3, 1 / 3, 1]]
    assert list(score_matrices(graphs, ["jaccard"])) == ["jaccard"]


# Bad input


@pytest.mark.parametrize(
    ("units", "edges", "message"),
    [
        (UNITS, {("act1", "act3"): np.ones((2, 4))}, "no units of 'act3'"),
        (UNITS, {("act1", "act2"): np.ones((4, 2))}, r"shape \(4, 2\); expected \(2, 4\)"),
        (UNITS, {("act1", "act2"): np.full((2, 4), np.nan)}, "not finite"),
        ({"act1": np.array([1, 1])}, {}, "name a channel twice"),
        ({"act1": np.array([0.5])}, {}, "give channel numbers"),
        ({"act1": np.array([[1]])}, {}, "give channel numbers"),
    ],
)
def test_what_does_not_fit_is_named(units: Any, edges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        circuit_graph(units, edges)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="edges_per_unit is 0"):
        circuit_graph(UNITS, EDGES, edges_per_unit=0)
    with pytest.raises(ValueError, match="h is -1"):
        weisfeiler_lehman([graph("ab")], -1)
    with pytest.raises(ValueError, match="no graphs"):
        weisfeiler_lehman([], 1)
    undirected: Any = nx.Graph([("a", "b")])
    with pytest.raises(ValueError, match="undirected"):
        weisfeiler_lehman([undirected], 1)
    for call in (
        lambda: circuit_graph(UNITS, EDGES, protocol="new"),
        lambda: weisfeiler_lehman([graph("ab")], 1, "new"),
        lambda: wl_iterations("wl_h1", "new"),
        lambda: wl_iterations("wl"),
        lambda: score_matrices([graph("ab")], ["wl_h4"]),
    ):
        with pytest.raises(UserError, match="allowed:"):
            call()
