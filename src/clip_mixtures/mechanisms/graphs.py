"""A circuit as a graph, and how alike two such graphs are.

A node is a unit, that is a channel of a submodule, and is named ``submodule/channel``. So the
graphs of two domains have a node in common if the same unit is in both circuits. Into every unit go
edges from the few units of the submodule before it that matter most to it.

Two measures compare graphs. The Jaccard index counts common edges. The Weisfeiler-Lehman kernel
counts units in equal surroundings: a label starts as the name of the unit and after i iterations
stands for the unit with everything within i steps. As names are unique in a graph, a unit counts at
iteration i only where all of that is the same in both graphs, which makes the kernel strict.

``protocol="published"`` takes the edges with the largest signed value, though units are chosen by
absolute value; looks at successors only, so that what feeds a unit has no part in its label; and
gives the score that is called ``wl_h2`` three iterations instead of two. ``"corrected"`` takes the
edges with the largest absolute value, as Marks et al. do, never one without effect; keeps
predecessors and successors of a unit apart in its label, as directed graphs need; and does as many
iterations as the name says. That is the standard kernel, which knows undirected graphs: names tell
submodules apart, so that on a circuit without directions it gives the same.

Sources:
    The study, section 6 (circuits) and its Figure 6.
    Marks, S., Rager, C., Michaud, E., Belinkov, Y., Bau, D. and Mueller, A. (2025). Sparse feature
        circuits. ICLR, section 3. (units and edges by absolute effect)
    Shervashidze, N., Schweitzer, P., van Leeuwen, E., Mehlhorn, K. and Borgwardt, K. (2011).
        Weisfeiler-Lehman graph kernels. JMLR 12, 2539-2561, sections 2 and 3. (subtree kernel)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from clip_mixtures.errors import unknown
from clip_mixtures.mechanisms.graph_tables import Graph, unit_name
from clip_mixtures.mechanisms.towers import INPUT
from clip_mixtures.mixtures.spec import PROTOCOLS

SCORES = ("jaccard", "wl_h1", "wl_h2", "wl_h3")

Indices: TypeAlias = npt.NDArray[np.integer[Any]] | torch.Tensor | Sequence[int]
Values: TypeAlias = npt.NDArray[np.floating[Any]] | torch.Tensor
Units: TypeAlias = Mapping[str, Indices]
Edges: TypeAlias = Mapping[tuple[str, str], Values]
FloatArray: TypeAlias = npt.NDArray[np.float64]

# Iterations of the kernel behind each published name.
_PUBLISHED_ITERATIONS = {"wl_h1": 1, "wl_h2": 3, "wl_h3": 3}
_ITERATIONS = {"wl_h1": 1, "wl_h2": 2, "wl_h3": 3}


def circuit_graph(
    units: Units, edges: Edges, edges_per_unit: int = 3, protocol: str = "corrected"
) -> Graph:
    """Draw edges between the units of a circuit.

    Args:
        units: channels of the circuit in every submodule, int64, by falling importance; submodules
            in network order. Those of ``input`` are left out, as are their edges.
        edges: (upstream, downstream) to the effect of each upstream unit on each downstream one,
            (n_down, n_up), rows and columns in the order of ``units``.
        edges_per_unit: edges into a unit from each submodule before it.
        protocol: "corrected" takes the largest absolute values, equal ones by channel number, all
            there are if they are fewer, and none that is zero. "published" takes the largest signed
            values of float32 as torch.topk picks them, also among equal ones.

    Returns:
        Nodes ``submodule/channel`` with ``layer``, ``channel`` and ``rank`` (0 is the most
        important of its submodule); edges with ``weight``, the effect with its sign.

    Raises:
        UserError: an unknown protocol.
        ValueError: edges do not fit the units or are not finite, a unit is there twice, or under
            "published" a submodule has fewer units than ``edges_per_unit``.
    """
    check_protocol(protocol, "protocol of circuit graphs")
    if edges_per_unit < 1:
        raise ValueError(f"edges_per_unit is {edges_per_unit}; allowed: 1 or more (the study: 3)")
    channels = {layer: _channels(layer, found) for layer, found in units.items() if layer != INPUT}
    graph: Graph = nx.DiGraph()
    for layer, found in channels.items():
        for rank, channel in enumerate(found):
            graph.add_node(unit_name(layer, channel), layer=layer, channel=channel, rank=rank)
    for (up, down), effects in edges.items():
        if INPUT in (up, down):
            continue
        values = _checked_edges((up, down), effects, channels)
        if protocol == "published":
            chosen = _largest_signed(values, edges_per_unit, up)
        else:
            chosen = _largest_absolute(values, channels[up], edges_per_unit)
        for row, column in chosen:
            source = unit_name(up, channels[up][column])
            target = unit_name(down, channels[down][row])
            graph.add_edge(source, target, weight=float(values[row, column]))
    return graph


def edge_jaccard(g: Graph, h: Graph) -> float:
    """Return the share of edges that two graphs have in common, among those of either.

    Returns:
        |E n E'| / |E u E'|, in [0, 1]; 0 if neither graph has an edge.
    """
    return _jaccard(set(g.edges), set(h.edges))


def weisfeiler_lehman(graphs: Sequence[Graph], h: int, protocol: str = "corrected") -> FloatArray:
    """Compare graphs by the normalised Weisfeiler-Lehman subtree kernel.

    The label of a node starts as its name. Each iteration makes new ones of the node's label and
    the sorted multiset of its successors' labels and, unless published, that of its predecessors'.
    With phi_i(G) the histogram of labels after i iterations, k(G, G') = sum over i from 0 to h of
    <phi_i(G), phi_i(G')>, and the result is k(G, G') / sqrt(k(G, G) k(G', G')).

    Args:
        graphs: n directed graphs.
        h: iterations, 0 or more; with 0 the kernel is the cosine of the sets of nodes.
        protocol: "corrected" or "published", see the module. ``h`` means what it says in both;
            :func:`wl_iterations` knows what a published name stands for.

    Returns:
        (n, n) float64, symmetric, in [0, 1] and 1 on the diagonal; 0 for a graph without nodes.

    Raises:
        UserError: an unknown protocol.
        ValueError: no graphs, an undirected one, or a negative ``h``.
    """
    kernel: FloatArray = weisfeiler_lehman_up_to(graphs, h, protocol)[-1]
    return kernel


def weisfeiler_lehman_up_to(
    graphs: Sequence[Graph], h: int, protocol: str = "corrected"
) -> FloatArray:
    """Return the kernels of 0 to h iterations, (h + 1, n, n); see :func:`weisfeiler_lehman`."""
    check_protocol(protocol, "protocol of the Weisfeiler-Lehman kernel")
    if h < 0:
        raise ValueError(f"h is {h}; allowed: 0 or more iterations")
    if not graphs:
        raise ValueError("there are no graphs; give at least one")
    if not all(graph.is_directed() for graph in graphs):
        raise ValueError("a graph is undirected; circuits are networkx.DiGraph")
    histograms = itertools.islice(_histograms(graphs, both_ways=protocol == "corrected"), h + 1)
    kernels = np.cumsum([(phi @ phi.T).toarray() for phi in histograms], axis=0, dtype=np.float64)
    squares = np.diagonal(kernels, axis1=1, axis2=2)
    lengths = np.sqrt(squares[:, :, None] * squares[:, None, :])
    normalised: FloatArray = np.zeros_like(kernels)
    np.divide(kernels, lengths, out=normalised, where=lengths > 0)
    return normalised


def wl_iterations(score: str, protocol: str = "corrected") -> int:
    """Return how many iterations a score named ``wl_h1``, ``wl_h2`` or ``wl_h3`` stands for.

    Under "published" ``wl_h2`` stands for three, as in the published program.

    Raises:
        UserError: for another name or an unknown protocol.
    """
    check_protocol(protocol, "protocol of the Weisfeiler-Lehman kernel")
    if score not in _ITERATIONS:
        raise unknown("score", score, _ITERATIONS, "Weisfeiler-Lehman kernel")
    return (_PUBLISHED_ITERATIONS if protocol == "published" else _ITERATIONS)[score]


def score_matrices(
    graphs: Sequence[Graph], scores: Sequence[str] = SCORES, protocol: str = "corrected"
) -> dict[str, FloatArray]:
    """Compare all pairs of graphs by several scores at once.

    Args:
        graphs: n directed graphs.
        scores: among :data:`SCORES`.
        protocol: see :func:`weisfeiler_lehman` and :func:`wl_iterations`.

    Returns:
        Score to its matrix, (n, n).

    Raises:
        UserError: an unknown score or protocol.
        ValueError: see :func:`weisfeiler_lehman`.
    """
    for score in scores:
        if score not in SCORES:
            raise unknown("score", score, SCORES, "similarity of graphs")
    kernels = [score for score in scores if score != "jaccard"]
    most = max((wl_iterations(score, protocol) for score in kernels), default=0)
    by_iteration = weisfeiler_lehman_up_to(graphs, most, protocol)
    found = {score: by_iteration[wl_iterations(score, protocol)] for score in kernels}
    if "jaccard" in scores:
        edges = [set(graph.edges) for graph in graphs]
        found["jaccard"] = np.array([[_jaccard(a, b) for b in edges] for a in edges])
    return {score: found[score] for score in scores}


def check_protocol(protocol: str, where: str) -> None:
    """Refuse a protocol other than "published" and "corrected".

    Raises:
        UserError: naming ``where`` it was given.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS, where)


def _jaccard(first: set[tuple[str, str]], second: set[tuple[str, str]]) -> float:
    common = len(first & second)
    either = len(first) + len(second) - common
    return common / either if either else 0.0


def _histograms(graphs: Sequence[Graph], *, both_ways: bool) -> Iterator[Any]:
    """Yield the label histograms of each iteration, sparse (graphs, labels)."""
    owners = np.repeat(np.arange(len(graphs)), [len(graph) for graph in graphs])
    starts = np.cumsum([0, *(len(graph) for graph in graphs)])
    signatures: list[Any] = [node for graph in graphs for node in graph]
    after: list[list[int]] = []
    before: list[list[int]] = []
    for start, graph in zip(starts, graphs, strict=False):
        places = {node: int(start) + place for place, node in enumerate(graph)}
        after += [[places[other] for other in graph.successors(node)] for node in graph]
        before += [[places[other] for other in graph.predecessors(node)] for node in graph]
    while True:
        numbers: dict[Any, int] = {}
        # Numbered over all graphs together, for labels are compared between them.
        labels = [numbers.setdefault(signature, len(numbers)) for signature in signatures]
        shape = (len(graphs), len(numbers))
        yield sparse.csr_array((np.ones(len(labels)), (owners, np.array(labels, int))), shape=shape)
        around = [_multisets(labels, after)]
        if both_ways:
            around.append(_multisets(labels, before))
        signatures = list(zip(labels, *around, strict=True))


def _multisets(labels: Sequence[int], neighbours: Sequence[list[int]]) -> list[tuple[int, ...]]:
    return [tuple(sorted([labels[place] for place in places])) for places in neighbours]


def _channels(layer: str, indices: Indices) -> list[int]:
    found: list[int] = np.asarray(indices).tolist()
    if np.ndim(found) != 1 or not all(isinstance(channel, int) for channel in found):
        raise ValueError(f"units of {layer!r} are {found!r}; give channel numbers, (n,) integers")
    if len(set(found)) != len(found):
        raise ValueError(f"units of {layer!r} name a channel twice; each is in a circuit once")
    return found


def _checked_edges(
    pair: tuple[str, str], effects: Values, channels: Mapping[str, list[int]]
) -> FloatArray:
    """Return the effects as float64, (n_down, n_up)."""
    up, down = pair
    for layer in pair:
        if layer not in channels:
            raise ValueError(f"edges {up!r} to {down!r}: no units of {layer!r} are given")
    # Torch first: NumPy does not know bfloat16.
    values = torch.as_tensor(effects).detach().cpu().double().numpy()
    expected = (len(channels[down]), len(channels[up]))
    if values.shape != expected:
        raise ValueError(
            f"edges {up!r} to {down!r} have shape {values.shape}; expected {expected}, a row a "
            "downstream unit and a column an upstream one"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"edges {up!r} to {down!r} hold values that are not finite; compute them in float32"
        )
    return values


def _largest_signed(values: FloatArray, count: int, up: str) -> list[tuple[int, int]]:
    """Return (row, column) of the largest values of each row, as the published program finds."""
    if values.shape[1] < count:
        raise ValueError(
            f"{up!r} has {values.shape[1]} units in the circuit, fewer than edges_per_unit "
            f"{count}; protocol 'corrected' takes what there is"
        )
    columns = torch.from_numpy(values).float().topk(count, dim=1).indices.tolist()
    return [(row, column) for row, found in enumerate(columns) for column in found]


def _largest_absolute(
    values: FloatArray, channels: Sequence[int], count: int
) -> list[tuple[int, int]]:
    """Return (row, column) of the largest absolute values of each row that are not zero."""
    by_channel = np.argsort(channels, kind="stable")
    sizes = np.abs(values)[:, by_channel]
    order = by_channel[np.argsort(-sizes, axis=1, kind="stable")[:, :count]]
    return [
        (row, int(column))
        for row, columns in enumerate(order)
        for column in columns
        if values[row, column] != 0
    ]
