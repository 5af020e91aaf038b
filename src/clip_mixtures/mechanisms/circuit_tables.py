"""The circuits of many classes, as tables, compared between domains."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from clip_mixtures.mechanisms.ablation_table import ablation_table
from clip_mixtures.mechanisms.graph_tables import Graph, graph_from_tables
from clip_mixtures.mechanisms.similarity import graph_similarity, node_similarity


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
