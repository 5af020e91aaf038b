"""Similarity of circuits: hand answers, chance against simulation, published means, bad input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.chance import expected_jaccard, random_graph
from clip_mixtures.mechanisms.class_bootstrap import bootstrap_over_classes
from clip_mixtures.mechanisms.graph_tables import Graph
from clip_mixtures.mechanisms.graphs import circuit_graph, edge_jaccard, weisfeiler_lehman
from clip_mixtures.mechanisms.similarity import (
    domain_means,
    graph_scores,
    graph_similarity,
    node_scores,
    node_similarity,
    pair_means,
)

DOMAINS = ("real", "clipart", "infograph", "painting", "quickdraw", "sketch")
CHANNELS = {"act1": 12, "act2": 20, "attnpool": 16}
SIZES = {"act1": 4, "act2": 5, "attnpool": 4}

Circuits = dict[str, dict[int, dict[str, Any]]]


def random_units(
    domains: tuple[str, ...] = DOMAINS, classes: int = 5, seed: int = 0
) -> dict[str, dict[int, dict[str, Any]]]:
    generator = np.random.default_rng(seed)
    return {
        domain: {
            label: {
                layer: generator.choice(CHANNELS[layer], size, replace=False)
                for layer, size in SIZES.items()
            }
            for label in range(classes)
        }
        for domain in domains
    }


def graphs_of(units: Mapping[str, Mapping[int, Any]], seed: int = 0) -> dict[str, dict[int, Graph]]:
    generator = np.random.default_rng(seed)
    return {
        domain: {
            label: circuit_graph(
                found,
                {
                    ("act1", "act2"): generator.normal(size=(5, 4)),
                    ("act2", "attnpool"): generator.normal(size=(4, 5)),
                },
            )
            for label, found in of_class.items()
        }
        for domain, of_class in units.items()
    }


def row(table: pd.DataFrame, **where: Any) -> dict[Any, Any]:
    for column, value in where.items():
        table = table[table[column] == value]
    (found,) = table.to_dict("records")
    return found


# Chance


def test_expected_jaccard_is_the_mean_over_all_sets() -> None:
    for channels, a, b in ((5, 2, 3), (4, 4, 1), (6, 3, 3), (3, 0, 2)):
        fixed = set(range(a))
        values = [
            len(fixed & set(other)) / max(len(fixed | set(other)), 1)
            for other in itertools.combinations(range(channels), b)
        ]
        assert expected_jaccard(channels, a, b) == pytest.approx(np.mean(values), abs=1e-12)
    assert expected_jaccard(5, 0, 0) == 0
    assert expected_jaccard(7, 7, 7) == pytest.approx(1)


def test_a_tenth_of_many_channels_shares_a_nineteenth_by_chance() -> None:
    assert expected_jaccard(20000, 2000, 2000) == pytest.approx(1 / 19, rel=1e-3)
    assert expected_jaccard(32, 4, 4) > 1.3 / 19  # the ceiling of a tenth: 4 of 32


@given(st.integers(1, 40), st.data())
@settings(max_examples=40, deadline=None)
def test_expected_jaccard_is_symmetric_and_a_share(channels: int, data: st.DataObject) -> None:
    a, b = (data.draw(st.integers(0, channels)) for _ in range(2))
    found = expected_jaccard(channels, a, b)
    assert found == pytest.approx(expected_jaccard(channels, b, a))
    assert 0 <= found <= 1 + 1e-12


def test_sets_larger_than_their_layer_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="sets of 2 and 5 out of 4"):
        expected_jaccard(4, 2, 5)


def in_degrees(found: Graph, layer: str) -> list[int]:
    return [found.in_degree(node) for node in found if found.nodes[node]["layer"] == layer]


def test_a_random_graph_has_the_same_size_in_every_layer() -> None:
    graph = graphs_of(random_units())["real"][0]
    graph.remove_edge(*next(iter(graph.edges)))  # so that units differ in their number of edges
    kept = random_graph(graph, np.random.default_rng(1))
    assert list(kept.nodes(data=True)) == list(graph.nodes(data=True))
    drawn = random_graph(graph, np.random.default_rng(1), CHANNELS)
    assert set(drawn) != set(graph)
    for found in (kept, drawn):
        assert set(found.edges) != set(graph.edges)
        assert found.number_of_edges() == graph.number_of_edges()
        for layer in CHANNELS:
            assert in_degrees(found, layer) == in_degrees(graph, layer)
        for source, target in found.edges:
            layers = found.nodes[source]["layer"], found.nodes[target]["layer"]
            assert layers in {("act1", "act2"), ("act2", "attnpool")}
    again = random_graph(graph, np.random.default_rng(1), CHANNELS)
    assert list(again.edges) == list(drawn.edges)


def test_random_units_are_drawn_evenly() -> None:
    graph = graphs_of(random_units())["real"][0]
    generator = np.random.default_rng(0)
    counts = dict.fromkeys(range(12), 0)
    targets = dict.fromkeys((node for node in graph if node.startswith("act1/")), 0)
    for _ in range(600):
        for _, facts in random_graph(graph, generator, CHANNELS).nodes(data=True):
            if facts["layer"] == "act1":
                counts[facts["channel"]] += 1
        for source, _ in random_graph(graph, generator).edges:
            if source in targets:
                targets[source] += 1
    # 600 draws of 4 from 12: 200 each, standard deviation 11.5; of 3 from 4 into 5 units: 2250.
    assert all(150 < count < 250 for count in counts.values())
    assert all(2150 < count < 2350 for count in targets.values())


def test_random_units_need_the_width_of_their_layer() -> None:
    graph = graphs_of(random_units())["real"][0]
    with pytest.raises(ValueError, match="layer 'act1' has a unit 11 in a circuit but 3 channels"):
        random_graph(graph_with_unit(graph, 11), np.random.default_rng(0), {**CHANNELS, "act1": 3})
    with pytest.raises(ValueError, match="but no channels"):
        random_graph(graph, np.random.default_rng(0), {})


def graph_with_unit(graph: Graph, channel: int) -> Graph:
    graph.add_node(f"act1/{channel}", layer="act1", channel=channel, rank=4)
    return graph


# Units


def test_units_by_hand() -> None:
    units: Circuits = {
        "real": {0: {"a": [0, 1], "b": [5]}, 1: {"a": [2, 3], "b": [1]}},
        "sketch": {0: {"a": [1, 2], "b": [5]}, 1: {"a": [2, 3], "b": [0]}},
    }
    table = node_similarity(units, {"a": 10, "b": 8}, held_out=[1])
    assert list(table["layer"].unique()) == ["a", "b"]
    # Class 0 shares 1 of 3 in a and all in b; class 1 all in a and nothing in b.
    expected = {"a": {"all": 2 / 3, "held_out": 1, "seen": 1 / 3}, "b": {"all": 1 / 2, "seen": 1}}
    for layer, groups in expected.items():
        for group, value in groups.items():
            found = row(table, layer=layer, group=group)
            assert found["similarity"] == pytest.approx(value)
            assert (found["domain_a"], found["domain_b"]) == ("real", "sketch")
            assert (found["classes"], found["missing"]) == (2 if group == "all" else 1, 0)
    # Two of ten each: 0, 1 or 2 in common with weights 28, 16, 1 of 45.
    assert row(table, layer="a", group="all")["chance"] == pytest.approx((16 / 3 + 1) / 45)
    assert row(table, layer="b", group="all")["chance"] == pytest.approx(1 / 8)


def test_a_missing_class_is_left_out_of_its_pairs_only() -> None:
    units = random_units(("real", "painting", "sketch"))
    del units["painting"][4]
    table = node_similarity(units, CHANNELS, held_out=[0, 4])
    for group, sizes in (("all", (5, 4)), ("held_out", (2, 1)), ("seen", (3, 3))):
        full = row(table, layer="act1", domain_a="real", domain_b="sketch", group=group)
        assert (full["classes"], full["missing"]) == (sizes[0], 0)
        for pair in (("real", "painting"), ("painting", "sketch")):
            found = row(table, layer="act1", domain_a=pair[0], domain_b=pair[1], group=group)
            assert (found["classes"], found["missing"]) == (sizes[1], sizes[0] - sizes[1])


def test_published_classes_are_those_of_real() -> None:
    units = random_units(("clipart", "real", "sketch"))
    del units["real"][2]
    published = node_scores(units, CHANNELS, "published")
    assert set(published["class_id"]) == {0, 1, 3, 4}
    corrected = node_scores(units, CHANNELS)
    others = (corrected["domain_a"] == "clipart") & (corrected["domain_b"] == "sketch")
    assert set(corrected[others]["class_id"]) == {0, 1, 2, 3, 4}
    pd.testing.assert_frame_equal(
        corrected[corrected["class_id"] != 2].reset_index(drop=True), published
    )
    del units["real"]
    with pytest.raises(UserError, match="classes from the domain 'real'"):
        node_scores(units, CHANNELS, "published")


def test_interval_is_the_bootstrap_over_classes() -> None:
    units = random_units(("real", "sketch"), classes=12)
    scores = node_scores(units, CHANNELS)
    values = scores[scores["layer"] == "act2"]["similarity"].to_numpy()
    expected = bootstrap_over_classes(values, np.arange(12), seed=3, resamples=200)
    table = pair_means(scores, [], seed=3, resamples=200)
    found = row(table, layer="act2", group="all")
    ends = (found["similarity"], found["low"], found["high"])
    assert ends == pytest.approx((expected.estimate, expected.low, expected.high))
    assert set(table["group"]) == {"all", "seen"}


def test_random_units_are_as_alike_as_chance_says() -> None:
    scores = node_scores(random_units(classes=80), CHANNELS)
    for _, part in scores.groupby("layer"):
        # 1200 pairs; the standard error of the mean is about 0.005.
        assert part["similarity"].mean() == pytest.approx(part["chance"].mean(), abs=0.02)


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_units_in_another_order_are_as_alike(seed: int) -> None:
    units = random_units(classes=3, seed=seed)
    generator = np.random.default_rng(seed)
    shuffled = {
        domain: {
            label: {layer: generator.permutation(one) for layer, one in found.items()}
            for label, found in of_class.items()
        }
        for domain, of_class in units.items()
    }
    first, second = node_scores(units, CHANNELS), node_scores(shuffled, CHANNELS)
    pd.testing.assert_frame_equal(first, second)
    assert first["similarity"].between(0, 1).all()
    same = node_scores({"real": units["real"], "sketch": units["real"]}, CHANNELS)
    assert (same["similarity"] == 1).all()


# Graphs


def test_graphs_are_compared_class_by_class() -> None:
    graphs = graphs_of(random_units())
    scores = graph_scores(graphs, CHANNELS)
    found = row(scores, score="jaccard", domain_a="clipart", domain_b="sketch", class_id=3)
    pair = [graphs["clipart"][3], graphs["sketch"][3]]
    assert found["similarity"] == edge_jaccard(*pair)
    found = row(scores, score="wl_h2", domain_a="clipart", domain_b="sketch", class_id=3)
    assert found["similarity"] == pytest.approx(weisfeiler_lehman(pair, 2)[0, 1])
    table = graph_similarity(graphs, CHANNELS, [0], resamples=100)
    for score, group in itertools.product(("jaccard", "wl_h1", "wl_h2", "wl_h3"), ("all", "seen")):
        of_pair = {"score": score, "domain_a": "real", "domain_b": "clipart"}
        values = scores[(scores[list(of_pair)] == pd.Series(of_pair)).all(axis=1)]
        if group == "seen":
            values = values[values["class_id"] != 0]
        found = row(table, **of_pair, group=group)
        assert found["similarity"] == pytest.approx(values["similarity"].mean())
        assert found["chance"] == pytest.approx(values["chance"].mean())
        assert found["low"] <= found["similarity"] <= found["high"]


def test_published_scores_leave_out_a_class_that_a_domain_lacks() -> None:
    graphs = graphs_of(random_units())
    del graphs["painting"][2]
    published = graph_scores(graphs, CHANNELS, protocol="published")
    assert set(published["class_id"]) == {0, 1, 3, 4}
    assert published[published["score"] == "wl_h2"]["similarity"].tolist() == pytest.approx(
        published[published["score"] == "wl_h3"]["similarity"].tolist()
    )
    corrected = graph_scores(graphs, CHANNELS, scores=["jaccard"])
    counts = corrected.groupby(["domain_a", "domain_b"]).size()
    assert (counts["real", "sketch"], counts["real", "painting"]) == (5, 4)
    for domain in graphs:
        graphs[domain] = {DOMAINS.index(domain): graphs[domain][0]}
    with pytest.raises(UserError, match="no class is in all of real, clipart"):
        graph_scores(graphs, CHANNELS, protocol="published")


def test_chance_of_graphs_is_what_random_graphs_have() -> None:
    # Random units with random edges are as alike as chance; the same units with random edges are
    # much more alike, and as chance given the units says.
    unrelated = graph_scores(graphs_of(random_units(classes=40)), CHANNELS, scores=["jaccard"])
    assert unrelated["similarity"].mean() == pytest.approx(unrelated["chance"].mean(), abs=0.01)
    same = dict.fromkeys(DOMAINS, random_units(classes=40)["real"])
    related = graph_scores(graphs_of(same, seed=1), CHANNELS, scores=["jaccard", "wl_h1"])
    for _, part in related.groupby("score"):
        given = part["chance_given_units"].mean()
        assert part["similarity"].mean() == pytest.approx(given, abs=0.02)
        assert given > 3 * part["chance"].mean()


def test_a_class_has_the_same_chance_whatever_else_is_compared() -> None:
    graphs = graphs_of(random_units(("real", "sketch")))
    some = {domain: {3: of_class[3]} for domain, of_class in graphs.items()}
    every = graph_scores(graphs, CHANNELS)
    pd.testing.assert_frame_equal(
        every[every["class_id"] == 3].reset_index(drop=True), graph_scores(some, CHANNELS)
    )
    assert not graph_scores(graphs, CHANNELS, seed=1)["chance"].equals(every["chance"])


def test_graphs_without_edges_have_nothing_in_common() -> None:
    empty: Graph = nx.DiGraph()
    table = graph_scores({"real": {0: empty}, "sketch": {0: empty}}, CHANNELS)
    assert (table[["similarity", "chance", "chance_given_units"]] == 0).all(axis=None)


# Means over pairs


def made_up(domains: tuple[str, ...] = DOMAINS, classes: int = 4) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"score": "jaccard", "domain_a": a, "domain_b": b, "class_id": label}
            | {"similarity": float(generator.random()), "chance": 0.1}
            for a, b in itertools.combinations(domains, 2)
            for label in range(classes)
        ]
    )


def test_published_mean_excludes_the_second_member_of_ordered_pairs() -> None:
    scores = made_up()
    by_pair = scores.groupby(["domain_a", "domain_b"])["similarity"].mean()
    matrix = {
        pair: by_pair[tuple(sorted(pair, key=DOMAINS.index))]
        for pair in itertools.permutations(DOMAINS, 2)
    }
    published, corrected = [], []
    for a, b in itertools.permutations(DOMAINS, 2):
        if b != "quickdraw":
            published.append(matrix[a, b])
            if a != "quickdraw":
                corrected.append(matrix[a, b])
    assert (len(published), len(corrected)) == (25, 20)
    for protocol, values in (("published", published), ("corrected", corrected)):
        table = domain_means(scores, [], excluding="quickdraw", protocol=protocol)
        found = row(table, domain="all but quickdraw", group="all")
        assert found["similarity"] == pytest.approx(np.mean(values))
        assert found["chance"] == pytest.approx(0.1)
        assert found["pairs"] == (15 if protocol == "published" else 10)
        for domain in DOMAINS:
            expected = np.mean([matrix[domain, other] for other in DOMAINS if other != domain])
            found = row(table, domain=domain, group="all")
            assert found["similarity"] == pytest.approx(expected)
            assert (found["pairs"], found["classes"]) == (5, 4)
        found = row(table, domain="all", group="all")
        assert found["similarity"] == pytest.approx(by_pair.mean())


def test_every_pair_counts_alike_whatever_its_classes() -> None:
    scores = made_up(("real", "painting", "sketch"))
    lacking = (scores["domain_b"] == "painting") & (scores["class_id"] > 0)
    scores = scores[~lacking]
    by_pair = scores.groupby(["domain_a", "domain_b"])["similarity"].mean()
    found = row(domain_means(scores, [1]), domain="all", group="all")
    assert found["similarity"] == pytest.approx(by_pair.mean())
    assert (found["pairs"], found["classes"]) == (3, 4)
    held_out = row(domain_means(scores, [1]), domain="painting", group="held_out")
    assert (held_out["pairs"], held_out["classes"]) == (1, 1)
    assert math.isnan(held_out["low"])


def test_means_work_layer_by_layer() -> None:
    scores = node_scores(random_units(("real", "painting", "sketch")), CHANNELS)
    table = domain_means(scores, [0], resamples=50)
    assert table["layer"].unique().tolist() == list(CHANNELS)
    assert len(table) == 3 * 4 * 3


# Bad input


def test_what_does_not_fit_is_named() -> None:
    units = random_units(("real", "sketch"))
    with pytest.raises(ValueError, match="give at least two to compare"):
        node_scores({"real": units["real"]}, CHANNELS)
    with pytest.raises(ValueError, match="channels has no layers"):
        node_scores(units, {})
    with pytest.raises(ValueError, match="class 0 in 'real' has no units of layer 'act9'"):
        node_scores(units, {"act9": 3})
    with pytest.raises(ValueError, match="layer 'act1' has units beyond its 2 channels"):
        node_scores(units, {"act1": 2})
    with pytest.raises(UserError, match="unknown protocol 'new'"):
        node_scores(units, CHANNELS, "new")
    graphs = graphs_of(units)
    for protocol in ("published", "corrected"):
        with pytest.raises(ValueError, match="give at least two to compare"):
            graph_scores({"real": graphs["real"]}, CHANNELS, protocol=protocol)
    with pytest.raises(ValueError, match="draws is 0"):
        graph_scores(graphs, CHANNELS, draws=0)
    with pytest.raises(UserError, match="unknown score 'wl'"):
        graph_scores(graphs, CHANNELS, scores=["wl"])


def test_means_of_nothing_are_refused() -> None:
    scores = made_up()
    for table in (scores.iloc[:0], scores.drop(columns="chance"), scores.assign(layer="act1")):
        with pytest.raises(ValueError, match="make it with node_scores or graph_scores"):
            pair_means(table, [])
    with pytest.raises(ValueError, match="excluding 'toys' from real, clipart"):
        domain_means(scores, [], excluding="toys")
    with pytest.raises(ValueError, match="name one of three or more"):
        domain_means(made_up(("real", "sketch")), [], excluding="sketch")
    with pytest.raises(UserError, match="unknown protocol 'new'"):
        domain_means(scores, [], protocol="new")


def test_classes_apart_leave_nothing_to_average() -> None:
    units = random_units(("real", "sketch"), classes=2)
    del units["real"][0], units["sketch"][1]
    scores = node_scores(units, CHANNELS)
    assert len(scores) == 0
    with pytest.raises(ValueError, match="at least one class that two domains have"):
        pair_means(scores, [])
