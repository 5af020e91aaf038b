"""Read what params.yaml says under `mechanisms`: which cells are looked into, and how.

A file of its own, so that networks do not depend on how they will be looked into.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_mixtures.errors import UserError
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
# Beside the recipe of circuits, not in it: another choice of cells changes none of their results.
_CIRCUIT_CELLS = ("circuit_models", "circuit_seeds")
_RECIPES = ("embedding", "cka", "features", "sae", "sharing", "circuits")
_KEYS = (*_CELLS, *_CIRCUIT_CELLS, *_RECIPES)


@dataclasses.dataclass(frozen=True)
class Mechanisms:
    """What is looked into, and how.

    Attributes:
        cells: whose last checkpoints are looked into.
        embedding: how the embedding is mapped and measured.
        cka: how layers are compared.
        cka_layers: which layers; None for all.
        features: what an autoencoder is trained on.
        sae: the recipe of the autoencoder.
        sharing: how shared units are counted and named.
        circuits: how circuits are traced.
        circuit_cells: whose circuits are traced.
    """

    cells: tuple[Cell, ...]
    embedding: EmbeddingConfig
    cka: CkaConfig
    cka_layers: tuple[str, ...] | None
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
    cells = experiment.cells
    cka = dict(mapping(params["cka"], "mechanisms.cka"))
    layers = cka.pop("layers", "all")
    if layers != "all" and not are_different(layers, str):
        raise UserError(f"mechanisms.cka.layers: is {layers!r}; allowed: all, or a list of names")
    sharing = settings_from_params(SharingConfig, params["sharing"], "mechanisms.sharing")
    if vocabulary := vocabulary_file(sharing):
        under_data(vocabulary, "mechanisms.sharing.vocabulary")
    circuit_cells = _chosen_cells(params, cells, _CIRCUIT_CELLS)
    for cell in circuit_cells:
        check_traceable(experiment, cell.model, "mechanisms.circuit_models")
    return Mechanisms(
        cells=_chosen_cells(params, cells, _CELLS),
        embedding=settings_from_params(
            EmbeddingConfig, params["embedding"], "mechanisms.embedding"
        ),
        cka=settings_from_params(CkaConfig, cka, "mechanisms.cka"),
        cka_layers=None if layers == "all" else tuple(layers),
        features=settings_from_params(FeaturesConfig, params["features"], "mechanisms.features"),
        sae=settings_from_params(SaeConfig, params["sae"], "mechanisms.sae"),
        sharing=sharing,
        circuits=settings_from_params(CircuitsConfig, params["circuits"], "mechanisms.circuits"),
        circuit_cells=circuit_cells,
    )


def vocabulary_file(sharing: SharingConfig) -> Path | None:
    """Return the file of words that names units; None where there is none."""
    return None if sharing.vocabulary in ("none", "classes") else Path(sharing.vocabulary)


def check_traceable(experiment: Experiment, model: str, where: str) -> None:
    """Refuse a model that has no circuits.

    Args:
        experiment: params.yaml.
        model: its key.
        where: what names it, for the message.

    Raises:
        UserError: for a classifier, or a model that there is not.
    """
    if experiment.model(model).is_supervised:
        raise UserError(
            f"{where}: {model!r} is a classifier; circuits are traced from the cosine with a text, "
            "so choose models of CLIP"
        )


def _chosen_cells(
    params: Mapping[str, Any], cells: Sequence[Cell], keys: tuple[str, str]
) -> tuple[Cell, ...]:
    """Return the cells of some of the models and seeds that are run; of none if a list is empty."""
    chosen: list[list[Any]] = []
    for key, name in zip(keys, ("model", "seed"), strict=True):
        allowed = list(dict.fromkeys(getattr(cell, name) for cell in cells))
        values = params[key]
        if values != [] and not are_different(values, type(allowed[0])):
            raise UserError(f"mechanisms.{key}: is {values!r}, not a list of some of {allowed}")
        for value in values:
            if value not in allowed:
                raise UserError(
                    f"mechanisms.{key}: {name} {value} is not among those of run.{name}s "
                    f"({', '.join(map(str, allowed))}); put it there, or leave it out here ([] "
                    "looks into none)"
                )
        chosen.append(values)
    models, seeds = chosen
    return tuple(cell for cell in cells if cell.model in models and cell.seed in seeds)
