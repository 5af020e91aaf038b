"""The circuits of one class in all domains: traced, ablated, and kept in a folder of its own.

Tracing takes minutes to hours a class at the scale of the paper, so every class is written when it
is done, whole or not at all, and is not traced again. Which images are taken follows from seed,
class and domain alone: the published choice depends on which classes were done before.

A circuit does more on the images that it was found on than on others, and a figure that has both
compares nothing. ``protocol="corrected"`` therefore gives up to half of the images of a small class
for the ablation: no image is in both, but for a class that has a single one. ``"published"`` traces
as many as the study does and ablates on what is left, or on the same images where nothing is.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.pixels import pack
from clip_mixtures.evaluation.predictions import EvaluationSet
from clip_mixtures.images import thumbnails
from clip_mixtures.mechanisms.ablation import Fills, ablation_effects
from clip_mixtures.mechanisms.checkpoint import Checkpoint
from clip_mixtures.mechanisms.circuits import (
    MEMORY_BYTES,
    attribute_nodes,
    edge_attributions,
    top_units,
)
from clip_mixtures.mechanisms.config import RULE_OF_PROTOCOL, CircuitsConfig
from clip_mixtures.mechanisms.graph_tables import edge_table, unit_table
from clip_mixtures.mechanisms.graphs import check_protocol, circuit_graph
from clip_mixtures.mechanisms.towers import INPUT, Tower
from clip_mixtures.training.models import to_pixels

# The units that the circuits of all domains have in common, as a circuit of its own.
SHARED = "all domains"
_NODES, _UNITS, _EDGES, _SUMS, _EFFECTS = (
    "nodes.safetensors",
    "units.parquet",
    "edges.parquet",
    "completeness.parquet",
    "ablation.parquet",
)

Nodes = dict[str, dict[str, torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class ClassCircuits:
    """The circuits of a class.

    Attributes:
        nodes: domain to submodule to effects, (channels,).
        units: a row a unit of a circuit, see :func:`graph_tables.unit_table`, with ``domain``.
        edges: a row an edge of a graph, see :func:`graph_tables.edge_table`, with ``domain``.
        completeness: a row a domain and submodule: ``domain``, ``layer``, ``change``, ``error`` and
            ``images``.
        effects: of ablations, see :func:`ablation.ablation_effects`.
    """

    nodes: Nodes
    units: pd.DataFrame
    edges: pd.DataFrame
    completeness: pd.DataFrame
    effects: pd.DataFrame


class ClassImages:
    """The test images that circuits are traced on.

    Args:
        images: of all classes and domains.
        most: images of a class in a domain, at most: to trace on, and again to ablate on.
        seed: of the draws.
        protocol: how they are shared out, see the module.

    Raises:
        UserError: for an unknown protocol.
    """

    def __init__(
        self, images: EvaluationSet, most: int, seed: int, protocol: str = "corrected"
    ) -> None:
        check_protocol(protocol, "circuits")
        self._images, self._most, self._seed, self._protocol = images, most, seed, protocol

    def rows(self, label: int, domain: str, *, others: bool = False) -> npt.NDArray[np.int64]:
        """Draw images of a class in a domain, without replacement.

        Args:
            label: class id.
            domain: which.
            others: draw of those that are not drawn without it, to ablate on; where none are left,
                draw the same. Under "corrected" that is so for a single image alone.

        Returns:
            Rising places among the images, (n,); empty if the domain has none. They follow from
            seed, domain and class alone.
        """
        frame = self._images.frame
        places = np.flatnonzero((frame["domain"] == domain) & (frame["class_id"] == label))
        generator = np.random.default_rng([self._seed, zlib.crc32(domain.encode()), label])
        drawn = generator.permutation(places)
        traced = self._most
        if self._protocol == "corrected":
            traced = min(traced, (len(drawn) + 1) // 2)
        chosen = drawn[:traced]
        if others and len(drawn) > traced:
            chosen = drawn[traced : traced + self._most]
        return np.sort(chosen).astype(np.int64)

    def of_class(
        self, label: int, domains: Sequence[str], checkpoint: Checkpoint, *, others: bool = False
    ) -> dict[str, torch.Tensor]:
        """Return domain to normalised pixels (n, 3, S, S) of a class, on the checkpoint's device.

        Domains without images of the class are left out. See :meth:`rows` for ``others``.

        Raises:
            UserError: for an image that cannot be read, or when no domain has any.
        """
        rows = {domain: self.rows(label, domain, others=others) for domain in domains}
        found = {
            domain: self._pixels(places, checkpoint)
            for domain, places in rows.items()
            if len(places)
        }
        if not found:
            raise UserError(
                f"class {label} has no test images in {', '.join(domains)}; trace other classes "
                "(mechanisms.circuits.classes)"
            )
        return found

    def reference(self, count: int, checkpoint: Checkpoint) -> torch.Tensor:
        """Return so many images of all classes and domains, (n, 3, S, S) normalised.

        Raises:
            UserError: for an image that cannot be read.
        """
        everything = np.arange(len(self._images.frame))
        drawn = np.random.default_rng(self._seed).permutation(everything)[:count]
        return self._pixels(np.sort(drawn), checkpoint)

    def thumbnails(
        self, label: int, domains: Sequence[str], count: int, size: int
    ) -> npt.NDArray[np.uint8]:
        """Return pictures of a class, (domains, count, size, size, 3) uint8, white for none."""
        places = np.full((len(domains), count), -1, dtype=np.int64)
        for number, domain in enumerate(domains):
            drawn = self.rows(label, domain)[:count]
            places[number, : len(drawn)] = drawn
        frame = self._images.frame
        return thumbnails(
            frame, self._images.root, frame.index.to_numpy(dtype=np.int64), places, size
        )

    def _pixels(self, places: npt.NDArray[np.int64], checkpoint: Checkpoint) -> torch.Tensor:
        frame = self._images.frame.iloc[places]
        size = checkpoint.model.image_size
        pixels = np.empty((len(frame), size, size, 3), dtype=np.uint8)
        pack(frame, self._images.root, size, pixels)
        normalisation = checkpoint.normalisation
        return normalisation.apply(to_pixels(torch.from_numpy(pixels).to(normalisation.device)))


def classes_to_trace(config: CircuitsConfig, held_out: Sequence[int], classes: int) -> list[int]:
    """Return the class ids to trace, the held-out ones first.

    Args:
        config: which, and how many.
        held_out: class ids that are held out in the test domain.
        classes: how many there are.
    """
    found = list(held_out)
    if config.classes == "all":
        found += [label for label in range(classes) if label not in set(held_out)]
    return found[: config.most_classes or len(found)]


def trace_class(
    tower: Tower,
    text_features: torch.Tensor,
    images: Mapping[str, torch.Tensor],
    label: int,
    config: CircuitsConfig,
    ablated_on: Mapping[str, torch.Tensor],
    fills: Fills | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> ClassCircuits:
    """Trace the circuits of a class in every domain and ablate each on images of all.

    Args:
        tower: of the checkpoint.
        text_features: a unit row a class, (classes, D).
        images: domain to normalised pixels of the class, (N, 3, H, W).
        label: class id.
        config: the recipe.
        ablated_on: domain to normalised pixels of the class to ablate on, others than those that
            the circuits were found on; where they are the same, ``in_sample`` of the effects says
            so.
        fills: what ablated units become, see :func:`ablation.ablate`; None for zero.
        memory_bytes: bound on what attribution holds at a time.

    Raises:
        UserError: for activations that are not finite, or a bound that is too small.
        ValueError: for no images, or a label outside.
    """
    nodes: Nodes = {}
    units: dict[str, dict[str, torch.Tensor]] = {}
    tables, circuits, sums = [], [], []
    rule = None if config.rule == RULE_OF_PROTOCOL else config.rule
    for domain, pixels in images.items():
        found = attribute_nodes(
            tower,
            text_features,
            pixels,
            label,
            protocol=config.protocol,
            steps=config.steps,
            rule=rule,
            memory_bytes=memory_bytes,
        )
        nodes[domain] = {layer: values.float() for layer, values in found.values.items()}
        units[domain] = _circuit(nodes[domain], config.share)
        _check_edges(units[domain], config)
        edges = edge_attributions(
            tower,
            text_features,
            pixels,
            label,
            config.steps,
            config.protocol,
            rule=rule,
            units=units[domain],
            memory_bytes=memory_bytes,
        )
        graph = circuit_graph(units[domain], edges, config.edges_per_unit, config.protocol)
        tables.append(edge_table(graph).assign(domain=domain))
        circuits.append(unit_table(graph).assign(domain=domain))
        errors = found.errors
        sums.append(
            pd.DataFrame(
                {
                    "domain": domain,
                    "layer": list(found.changes),
                    "change": list(found.changes.values()),
                    "error": [errors[layer] for layer in found.changes],
                    "images": len(pixels),
                }
            )
        )
    effects = ablation_effects(
        tower,
        text_features,
        ablated_on,
        {**units, SHARED: shared_units_of(units)},
        label,
        found_on={**images, SHARED: itertools.chain.from_iterable(images.values())},
        values=fills,
        draws=config.draws,
        each_layer=config.each_layer,
        seed=config.seed,
    )
    return ClassCircuits(
        nodes=nodes,
        units=pd.concat(circuits, ignore_index=True),
        edges=pd.concat(tables, ignore_index=True),
        completeness=pd.concat(sums, ignore_index=True),
        effects=effects,
    )


def shared_units_of(
    units: Mapping[str, Mapping[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Return the units that the circuits of all domains have, layer by layer, rising."""
    first, *others = units.values()
    found = {}
    for layer, members in first.items():
        common = set(members.tolist())
        for other in others:
            common &= set(other[layer].tolist())
        found[layer] = torch.tensor(sorted(common), dtype=torch.int64)
    return found


def channels_of(circuits: ClassCircuits) -> dict[str, int]:
    """Return the layers of a circuit, in network order, and how many channels each has."""
    nodes = next(iter(circuits.nodes.values()))
    return {layer: len(values) for layer, values in nodes.items() if layer != INPUT}


def node_arrays(traced: Mapping[int, ClassCircuits]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the effects of all units of all classes as arrays to store.

    Args:
        traced: class id to its circuits.

    Returns:
        ``domain/layer`` to effects (classes, channels) float32, in the order of the classes; NaN
        where a domain has no images of a class.
    """
    shapes = {
        (domain, layer): len(values)
        for found in traced.values()
        for domain, layers in found.nodes.items()
        for layer, values in layers.items()
    }
    arrays = {}
    for (domain, layer), width in shapes.items():
        rows = np.full((len(traced), width), np.nan, dtype=np.float32)
        for place, found in enumerate(traced.values()):
            if domain in found.nodes:
                rows[place] = found.nodes[domain][layer].cpu().numpy()
        arrays[f"{domain}/{layer}"] = rows
    return arrays


def once(folder: Path, make: Callable[[], ClassCircuits]) -> ClassCircuits:
    """Read circuits that were traced before, or trace and write them, whole or not at all.

    Raises:
        UserError: when what is there is damaged.
    """
    if not folder.is_dir():
        made = make()
        temporary = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        write_circuits(temporary, made)
        os.replace(temporary, folder)
    return read_circuits(folder)


def write_circuits(folder: Path, circuits: ClassCircuits) -> None:
    """Write the circuits of a class into a new folder."""
    folder.mkdir(parents=True)
    named = {
        f"{domain}/{layer}": values.contiguous().cpu()
        for domain, layers in circuits.nodes.items()
        for layer, values in layers.items()
    }
    save_file(named, folder / _NODES)
    for name, table in (
        (_UNITS, circuits.units),
        (_EDGES, circuits.edges),
        (_SUMS, circuits.completeness),
        (_EFFECTS, circuits.effects),
    ):
        table.to_parquet(folder / name, compression="zstd", index=False)


def read_circuits(folder: Path) -> ClassCircuits:
    """Read the circuits of a class.

    Raises:
        UserError: when they are absent or damaged.
    """
    try:
        named = load_file(folder / _NODES)
        completeness = pd.read_parquet(folder / _SUMS)
        nodes: Nodes = {}
        for row in completeness.itertuples(index=False):
            layers = nodes.setdefault(str(row.domain), {})
            layers[str(row.layer)] = named[f"{row.domain}/{row.layer}"]
        return ClassCircuits(
            nodes=nodes,
            units=pd.read_parquet(folder / _UNITS),
            edges=pd.read_parquet(folder / _EDGES),
            completeness=completeness,
            effects=pd.read_parquet(folder / _EFFECTS),
        )
    # Each reader has errors of its own for a damaged file.
    except Exception as error:
        raise UserError(
            f"{folder}: circuits of a class are not whole ({error}); delete the folder and trace "
            "again (`dvc repro`)"
        ) from error


def _check_edges(units: Mapping[str, torch.Tensor], config: CircuitsConfig) -> None:
    few = [layer for layer, members in units.items() if len(members) < config.edges_per_unit]
    if config.protocol == "published" and few:
        raise UserError(
            f"circuits.edges_per_unit: is {config.edges_per_unit}, but {few[0]} has "
            f"{len(units[few[0]])} units in the circuit; lower it, raise circuits.share, or take "
            "protocol 'corrected', which is content with fewer"
        )


def _circuit(nodes: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Return the units of a circuit; the pixels are no part of it."""
    inner = {layer: values for layer, values in nodes.items() if layer != INPUT}
    return {layer: found.cpu() for layer, found in top_units(inner, share).items()}
