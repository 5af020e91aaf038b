"""A circuit as a graph and as two tables, of its units and of its edges; neither needs a network.

What nodes and edges are is said in :mod:`clip_mixtures.mechanisms.graphs`.
"""

from __future__ import annotations

from typing import TypeAlias

import networkx as nx
import pandas as pd

Graph: TypeAlias = "nx.DiGraph[str]"

UNIT_COLUMNS = ["layer", "channel", "rank"]
EDGE_COLUMNS = ["upstream", "up", "downstream", "down", "weight"]


def unit_name(layer: str, channel: int) -> str:
    """Name a unit as the nodes of a graph are named."""
    return f"{layer}/{channel}"


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
