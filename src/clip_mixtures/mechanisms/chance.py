"""What two circuits would have in common by chance: random units, and random graphs.

Random sets of a tenth of the channels share a nineteenth of their union, more if a layer is narrow;
and graphs share edges because they share units. A similarity says something only beside these.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import networkx as nx
import numpy as np
from scipy import stats

from clip_mixtures.mechanisms.graph_tables import Graph, unit_name


@functools.cache
def expected_jaccard(channels: int, first: int, second: int) -> float:
    """Return the mean Jaccard index of two independent random sets of channels.

    With a and b of n channels drawn, the number i in common is hypergeometric, and the mean is that
    of i / (a + b - i).

    Args:
        channels: n, how many there are to draw from.
        first: a, size of the one set.
        second: b, size of the other.

    Returns:
        In [0, 1]; 0 if both sets are empty.

    Raises:
        ValueError: a set that is larger than what it is drawn from.
    """
    if not (0 <= first <= channels and 0 <= second <= channels):
        raise ValueError(f"sets of {first} and {second} out of {channels} channels cannot be drawn")
    common = np.arange(max(first + second - channels, 0), min(first, second) + 1)
    chances = stats.hypergeom.pmf(common, channels, first, second)
    return float((chances * common / np.maximum(first + second - common, 1)).sum())


def random_graph(
    graph: Graph, generator: np.random.Generator, channels: Mapping[str, int] | None = None
) -> Graph:
    """Draw a random circuit of the same size.

    Every layer has as many units as before, and every unit as many edges from each layer as the
    unit in its place had; which ones they are is left to chance.

    Args:
        graph: as of ``graphs.circuit_graph``.
        generator: to draw with.
        channels: how many channels each layer has, to draw the units as well; None keeps them.

    Returns:
        A graph with the same node attributes and no weights.

    Raises:
        ValueError: a layer is missing in ``channels`` or has fewer than the circuit has of it.
    """
    layers: dict[str, list[str]] = {}
    for node, facts in graph.nodes(data=True):
        layers.setdefault(facts["layer"], []).append(node)
    drawn: Graph = nx.DiGraph()
    names: dict[str, list[str]] = {}
    for layer, nodes in layers.items():
        chosen = [graph.nodes[node]["channel"] for node in nodes]
        if channels is not None:
            if channels.get(layer, 0) <= max(chosen):
                raise ValueError(
                    f"layer {layer!r} has a unit {max(chosen)} in a circuit but "
                    f"{channels.get(layer, 'no')} channels; give the channels of every layer"
                )
            chosen = generator.choice(channels[layer], len(nodes), replace=False).tolist()
        names[layer] = [unit_name(layer, channel) for channel in chosen]
        for rank, (name, channel) in enumerate(zip(names[layer], chosen, strict=True)):
            drawn.add_node(name, layer=layer, channel=channel, rank=rank)
    for (up, down), counts in _in_degrees(graph, layers).items():
        order = generator.random((len(counts), len(names[up]))).argsort(axis=1)[:, : max(counts)]
        drawn.add_edges_from(
            (names[up][source], target)
            for target, sources, count in zip(names[down], order.tolist(), counts, strict=True)
            for source in sources[:count]
        )
    return drawn


def _in_degrees(
    graph: Graph, layers: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], list[int]]:
    """Count the edges into each unit of the downstream layer of every two layers."""
    counts: dict[tuple[str, str], list[int]] = {}
    layer_of = {node: layer for layer, nodes in layers.items() for node in nodes}
    places = {node: place for nodes in layers.values() for place, node in enumerate(nodes)}
    for source, target in graph.edges:
        down = layer_of[target]
        pair = layer_of[source], down
        if pair not in counts:
            counts[pair] = [0] * len(layers[down])
        counts[pair][places[target]] += 1
    return counts
