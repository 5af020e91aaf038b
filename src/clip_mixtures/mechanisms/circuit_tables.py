"""Circuits as tables: their units and edges, and the comparison of the circuits of many classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import networkx as nx
import numpy as np
import numpy.typing as npt
import pandas as pd

from clip_mixtures.mechanisms.ablation_table import ablation_table
from clip_mixtures.mechanisms.graphs import Graph, unit_name
from clip_mixtures.mechanisms.similarity import graph_similarity, node_similarity

UNIT_COLUMNS = ["layer", "channel", "rank"]
EDGE_COLUMNS = ["upstream", "up", "downstream", "down", "weight"]


def unit_table(graph: Graph) -> pd.DataFrame:
    """Return a row a unit: ``layer``, ``channel`` and ``rank``, 0 being the strongest."""
    rows = [[facts[name] for name in UNIT_COLUMNS] for _, facts in graph.nodes(data=True)]
    return pd.DataFrame(rows, columns=UNIT_COLUMNS)


def edge_table(graph: Graph) -> pd.DataFrame:
    """Return a row an edge: ``upstream``, ``up`` (channel), ``downstream``, ``down``, weight."""
    nodes = graph.nodes
    rows: list[list[object]] = [
        [
            nodes[source]["layer"],
            nodes[source]["channel"],
            nodes[target]["layer"],
            nodes[target]["channel"],
            facts["weight"],
        ]
        for source, target, facts in graph.edges(data=True)
    ]
    return pd.DataFrame(rows, columns=EDGE_COLUMNS)


def graph_from_tables(units: pd.DataFrame, edges: pd.DataFrame) -> Graph:
    """Make a graph of the tables of one circuit; see :func:`graphs.circuit_graph`."""
    graph: Graph = nx.DiGraph()
    for layer, channel, rank in units[UNIT_COLUMNS].itertuples(index=False, name=None):
        graph.add_node(unit_name(layer, channel), layer=layer, channel=channel, rank=rank)
    for upstream, up, downstream, down, weight in edges[EDGE_COLUMNS].itertuples(
        index=False, name=None
    ):
        graph.add_edge(unit_name(upstream, up), unit_name(downstream, down), weight=weight)
    return graph


def compare_circuits(
    units: pd.DataFrame,
    edges: pd.DataFrame,
    effects: pd.DataFrame,
    channels: Mapping[str, int],
    held_out: Collection[int],
    *,
    protocol: str = "corrected",
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Compare the circuits of all classes between domains.

    Args:
        units: of all classes, with ``class_id`` and ``domain``.
        edges: likewise.
        effects: of ablations, see :func:`ablation.ablation_effects`, of all classes.
        channels: layers, in network order, and how many channels each has.
        held_out: class ids that are held out in the test domain.
        protocol: of the comparison.
        resamples: of the bootstrap over classes.
        seed: of the bootstrap and of random graphs.

    Returns:
        ``node_similarity`` and ``graph_similarity`` (see :mod:`similarity`), and ``ablation`` (see
        :func:`ablation_table.ablation_table`).

    Raises:
        UserError: see there, as for fewer than two domains.
    """
    members: dict[str, dict[int, dict[str, npt.NDArray[np.int64]]]] = {}
    graphs: dict[str, dict[int, Graph]] = {}
    edges_of = dict(list(edges.groupby(["domain", "class_id"], sort=False)))
    none = edges.iloc[:0]
    for key, of_circuit in units.groupby(["domain", "class_id"], sort=False):
        domain, label = str(key[0]), int(str(key[1]))
        by_layer = {
            str(layer): part["channel"].to_numpy(dtype=np.int64)
            for layer, part in of_circuit.groupby("layer", sort=False)
        }
        members.setdefault(domain, {})[label] = by_layer
        graph = graph_from_tables(of_circuit, edges_of.get(key, none))
        graphs.setdefault(domain, {})[label] = graph
    return {
        "node_similarity": node_similarity(
            members, channels, held_out, protocol=protocol, resamples=resamples, seed=seed
        ),
        "graph_similarity": graph_similarity(
            graphs, channels, held_out, protocol=protocol, resamples=resamples, seed=seed
        ),
        "ablation": ablation_table(effects, held_out, resamples=resamples, seed=seed),
    }
