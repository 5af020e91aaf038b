"""Read what params.yaml says under `mechanisms`: which cells are looked into, and how.

A file of its own, so that networks do not depend on how they will be looked into.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_mixtures.errors import UserError, unknown
from clip_mixtures.files import read_yaml
from clip_mixtures.mechanisms.config import (
    CircuitsConfig,
    CkaConfig,
    EmbeddingConfig,
    FeaturesConfig,
    SaeConfig,
    SharingConfig,
)
from clip_mixtures.settings import settings_from_params
from experiment import PARAMS, Cell, Experiment, are_different, mapping, section, under_data

_CELLS = ("models", "seeds")
_KEYS = (*_CELLS, "layers", "embedding", "cka", "features", "sae", "sharing", "circuits")


@dataclasses.dataclass(frozen=True)
class Mechanisms:
    """What is looked into, and how.

    Attributes:
        cells: whose last checkpoints are looked into.
        layers: whose activations are read; None for all.
        embedding: how the embedding is mapped and measured.
        cka: how layers are compared.
        features: what an autoencoder is trained on.
        sae: the recipe of the autoencoder.
        sharing: how shared units are counted and named.
        circuits: how circuits are traced.
        circuit_cells: whose circuits are traced.
    """

    cells: tuple[Cell, ...]
    layers: tuple[str, ...] | None
    embedding: EmbeddingConfig
    cka: CkaConfig
    features: FeaturesConfig
    sae: SaeConfig
    sharing: SharingConfig
    circuits: CircuitsConfig
    circuit_cells: tuple[Cell, ...]


def load_mechanisms(experiment: Experiment, path: Path = PARAMS) -> Mechanisms:
    """Read and check the section `mechanisms` of a parameter file.

    Args:
        experiment: the rest of it.
        path: the file.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    params = section(read_yaml(path), "mechanisms", _KEYS)
    cells, models = experiment.cells, experiment.models
    layers = params["layers"]
    if layers != "all" and not are_different(layers, str):
        raise UserError(f"mechanisms.layers: is {layers!r}; allowed: all, or a list of names")
    sharing = settings_from_params(SharingConfig, params["sharing"], "mechanisms.sharing")
    if sharing.vocabulary not in ("none", "classes"):
        under_data(Path(sharing.vocabulary), "mechanisms.sharing.vocabulary")
    circuits = dict(mapping(params["circuits"], "mechanisms.circuits"))
    circuit_cells = _chosen_cells(circuits, cells, "mechanisms.circuits")
    for cell in circuit_cells:
        if models[cell.model].is_supervised:
            raise UserError(
                f"mechanisms.circuits.models: {cell.model!r} is a classifier; circuits are traced "
                "from the cosine with a text, so choose models of CLIP"
            )
    recipe = {key: value for key, value in circuits.items() if key not in _CELLS}
    return Mechanisms(
        cells=_chosen_cells(params, cells, "mechanisms"),
        layers=None if layers == "all" else tuple(layers),
        embedding=settings_from_params(
            EmbeddingConfig, params["embedding"], "mechanisms.embedding"
        ),
        cka=settings_from_params(CkaConfig, params["cka"], "mechanisms.cka"),
        features=settings_from_params(FeaturesConfig, params["features"], "mechanisms.features"),
        sae=settings_from_params(SaeConfig, params["sae"], "mechanisms.sae"),
        sharing=sharing,
        circuits=settings_from_params(CircuitsConfig, recipe, "mechanisms.circuits"),
        circuit_cells=circuit_cells,
    )


def _chosen_cells(params: Mapping[str, Any], cells: Sequence[Cell], where: str) -> tuple[Cell, ...]:
    """Return the cells of some of the models and seeds that are run; of none if a list is empty."""
    for name in _CELLS:
        if name not in params:
            raise UserError(f"{where}: {name} missing")
        allowed = list(dict.fromkeys(getattr(cell, name.removesuffix("s")) for cell in cells))
        values = params[name]
        if not isinstance(values, list) or len(set(values)) < len(values):
            raise UserError(f"{where}.{name}: is {values!r}, not a list of some of {allowed}")
        for value in values:
            if value not in allowed:
                raise unknown(name.removesuffix("s"), value, allowed, f"{where}.{name}")
    return tuple(
        cell for cell in cells if cell.model in params["models"] and cell.seed in params["seeds"]
    )
