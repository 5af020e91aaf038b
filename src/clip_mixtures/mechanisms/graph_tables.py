"""A circuit as a graph and as two tables, of its units and of its edges; neither needs a network.

And how well the effects of many circuits add up, from the table of that. What nodes and edges are
is said in :mod:`clip_mixtures.mechanisms.graphs`.
"""

from __future__ import annotations

from typing import TypeAlias

import networkx as nx
import pandas as pd

Graph: TypeAlias = "nx.DiGraph[str]"

UNIT_COLUMNS = ["layer", "channel", "rank"]
EDGE_COLUMNS = ["upstream", "up", "downstream", "down", "weight"]
# Shares of the errors of completeness at or below the numbers that stand for them.
_QUARTILES = {"estimate": 0.5, "low": 0.25, "high": 0.75}


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


def completeness_quartiles(completeness: pd.DataFrame) -> dict[str, float]:
    """Return the median and the quartiles of the error of completeness, over layers and circuits.

    The last layer is left out: a cosine does not change along the feature's ray, so that effects
    sum to zero there and the error is 1 however well the rule integrates (:mod:`attribution`).

    Args:
        completeness: a row a layer of a circuit, its layers in network order: ``layer`` and
            ``error``, as of :class:`class_circuits.ClassCircuits`, of one network.

    Returns:
        ``estimate``, the median, and ``low`` and ``high``, the quartiles; fractions of the change
        that the effects should sum to.

    Raises:
        ValueError: fewer than two layers.
    """
    layers = completeness["layer"].unique()
    if len(layers) < 2:
        raise ValueError(
            f"errors of completeness of {len(layers)} layers; the last layer does not count, so "
            "give two or more"
        )
    errors = completeness.loc[completeness["layer"] != layers[-1], "error"]
    return {name: float(errors.quantile(share)) for name, share in _QUARTILES.items()}
