"""The training recipe as a value, checked before any work starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_mixtures.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a run trains. The global batch is the parameter; what a process sees follows from it.

    Attributes:
        epochs: passes over the mixture.
        global_batch_size: image-text pairs a step, over all processes.
        learning_rate: peak of the cosine schedule.
        warmup_steps: steps of linear warm-up.
        weight_decay: of AdamW, on weights of two or more dimensions.
        beta1: of AdamW.
        beta2: of AdamW.
        epsilon: of AdamW.
        crop_scale: smallest share of the area that a random crop keeps.
        flip: mirror half the images.
        checkpoint_every: epochs between kept checkpoints; the first (epoch 0) and the last stay.
    """

    epochs: int
    global_batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    crop_scale: float
    flip: bool
    checkpoint_every: int


_POSITIVE_INTEGERS = ("epochs", "global_batch_size", "checkpoint_every")
_POSITIVE = ("learning_rate", "epsilon")
_NOT_NEGATIVE = ("warmup_steps", "weight_decay")
_BELOW_ONE = ("beta1", "beta2")


def train_config_from_params(params: Mapping[str, Any], where: str = "train") -> TrainConfig:
    """Check the training parameters.

    Raises:
        UserError: for an unknown or missing key, or a value out of range.
    """
    if not isinstance(params, Mapping):
        raise UserError(f"{where}: is {params!r}, not a mapping")
    fields = {field.name: str(field.type) for field in dataclasses.fields(TrainConfig)}
    for name in params:
        if name not in fields:
            raise unknown("key", name, fields, where)
    missing = [name for name in fields if name not in params]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing; state every value of the recipe")
    for name, kind in fields.items():
        _check(name, kind, params[name], where)
    values: dict[str, Any] = {
        name: float(params[name]) if kind == "float" else params[name]
        for name, kind in fields.items()
    }
    return TrainConfig(**values)


def _check(name: str, kind: str, value: Any, where: str) -> None:
    right_type = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
    }[kind]
    if not right_type:
        hint = " (YAML reads 1e-3 as text; write 1.0e-3)" if isinstance(value, str) else ""
        raise UserError(f"{where}.{name}: is {value!r}, not of type {kind}{hint}")
    if not math.isfinite(value):
        raise UserError(f"{where}.{name}: is {value}; allowed: a finite number")
    if name in _POSITIVE_INTEGERS and value < 1:
        raise UserError(f"{where}.{name}: is {value}; allowed: 1 or more")
    if name in _POSITIVE and value <= 0:
        raise UserError(f"{where}.{name}: is {value}; allowed: more than 0")
    if name in _NOT_NEGATIVE and value < 0:
        raise UserError(f"{where}.{name}: is {value}; allowed: 0 or more")
    if name in _BELOW_ONE and not 0 <= value < 1:
        raise UserError(f"{where}.{name}: is {value}; allowed: from 0 to less than 1")
    if name == "crop_scale" and not 0 < value <= 1:
        raise UserError(f"{where}.{name}: is {value}; allowed: more than 0, up to 1")


def per_process_batch(global_batch_size: int, world_size: int) -> int:
    """Return the batch of one process.

    Raises:
        UserError: when the number of processes does not divide the global batch.
    """
    if global_batch_size % world_size:
        near = [n for n in range(world_size, 0, -1) if global_batch_size % n == 0]
        raise UserError(
            f"train.global_batch_size: {global_batch_size} cannot be shared by {world_size} "
            f"processes; run with NPROC={near[0]}, or make it a multiple of {world_size}"
        )
    return global_batch_size // world_size
