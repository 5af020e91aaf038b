"""Training recipes as values, checked before any work starts."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from clip_mixtures.errors import UserError, unknown

# Where pixels come from: packed once at the network's size, or decoded in every epoch.
IMAGES = ("packed", "decoded")
# How images are decoded: as Pillow does to the last bit, or faster and within two grey levels.
DECODERS = ("exact", "fast")
# fp32, mixed with bfloat16, or mixed with float16 and scaled gradients; open_clip's names.
PRECISIONS = ("fp32", "amp_bf16", "amp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every kind of training is told. The global batch is the parameter, not a process' part.

    Attributes:
        epochs: passes over the mixture.
        global_batch_size: images a step, over all processes.
        learning_rate: peak of the schedule.
        weight_decay: on weights of two or more dimensions.
        crop_scale: smallest share of the area that a random crop keeps.
        flip: mirror half the images.
        images: one of :data:`IMAGES`.
        decoder: one of :data:`DECODERS`.
        precision: one of :data:`PRECISIONS`.
        grad_checkpointing: compute activations anew in the backward pass, to save memory.
        checkpoint_every: epochs between kept checkpoints; the first (epoch 0) and the last stay.
        keep_last: keep this many of them beside the first; 0 for all.
    """

    epochs: int
    global_batch_size: int
    learning_rate: float
    weight_decay: float
    crop_scale: float
    flip: bool
    images: str = "packed"
    decoder: str = "exact"
    precision: str = "fp32"
    grad_checkpointing: bool = False
    checkpoint_every: int = 1
    keep_last: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Recipe):
    """The recipe of CLIP.

    Attributes:
        warmup_steps: steps of linear warm-up, before a half cosine to zero.
        beta1: of AdamW.
        beta2: of AdamW.
        epsilon: of AdamW.
    """

    warmup_steps: int
    beta1: float
    beta2: float
    epsilon: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedConfig(Recipe):
    """The recipe of a classifier.

    Attributes:
        momentum: of SGD.
        nesterov: look ahead by the momentum.
        milestones: epochs after which the rate falls.
        gamma: the factor by which it falls.
    """

    momentum: float
    nesterov: bool
    milestones: tuple[int, ...]
    gamma: float


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)

_CHOICES = {"images": IMAGES, "decoder": DECODERS, "precision": PRECISIONS}
_POSITIVE_INTEGERS = ("epochs", "global_batch_size", "checkpoint_every")
_POSITIVE = ("learning_rate", "epsilon", "gamma")
_NOT_NEGATIVE = ("warmup_steps", "weight_decay", "keep_last", "momentum")
_BELOW_ONE = ("beta1", "beta2", "momentum")


def train_config_from_params(params: Mapping[str, Any], where: str = "train") -> TrainConfig:
    """Check the recipe of CLIP; see :func:`recipe_from_params`."""
    return recipe_from_params(TrainConfig, params, where)


def recipe_from_params(kind: type[AnyRecipe], params: Mapping[str, Any], where: str) -> AnyRecipe:
    """Check a recipe.

    Args:
        kind: of recipe.
        params: its values; those with a default may be left out.
        where: the section of the parameters, for messages.

    Raises:
        UserError: for an unknown or missing key, or a value out of range.
    """
    if not isinstance(params, Mapping):
        raise UserError(f"{where}: is {params!r}, not a mapping")
    fields = dataclasses.fields(kind)
    types = typing.get_type_hints(kind)
    names = [field.name for field in fields]
    for name in params:
        if name not in names:
            raise unknown("key", name, names, where)
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    missing = [name for name in needed if name not in params]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing; state every value of the recipe")
    values = {
        name: _checked(name, types[name], value, f"{where}.{name}")
        for name, value in params.items()
    }
    return kind(**values)


def _checked(name: str, kind: Any, value: Any, where: str) -> Any:
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise unknown(name, value, _CHOICES[name], where)
        return value
    if name == "milestones":
        return _milestones(value, where)
    right_type = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
    }[kind]
    if not right_type:
        raise UserError(f"{where}: is {value!r}, not of type {kind.__name__}{_hint(value)}")
    _check_range(name, value, where)
    return kind(value)


def _hint(value: Any) -> str:
    """Explain a number that YAML took for text."""
    try:
        float(value)
    except (TypeError, ValueError):
        return ""
    return " (YAML reads 1e-3 as text; write 1.0e-3)" if isinstance(value, str) else ""


def _check_range(name: str, value: float, where: str) -> None:
    if not math.isfinite(value):
        raise UserError(f"{where}: is {value}; allowed: a finite number")
    if name in _POSITIVE_INTEGERS and value < 1:
        raise UserError(f"{where}: is {value}; allowed: 1 or more")
    if name in _POSITIVE and value <= 0:
        raise UserError(f"{where}: is {value}; allowed: more than 0")
    if name in _NOT_NEGATIVE and value < 0:
        raise UserError(f"{where}: is {value}; allowed: 0 or more")
    if name in _BELOW_ONE and not 0 <= value < 1:
        raise UserError(f"{where}: is {value}; allowed: from 0 to less than 1")
    if name == "crop_scale" and not 0 < value <= 1:
        raise UserError(f"{where}: is {value}; allowed: more than 0, up to 1")


def _milestones(value: Any, where: str) -> tuple[int, ...]:
    whole = isinstance(value, list | tuple) and all(
        isinstance(epoch, int) and not isinstance(epoch, bool) and epoch > 0 for epoch in value
    )
    if not whole or list(value) != sorted(set(value)):
        raise UserError(f"{where}: is {value!r}; allowed: a list of epochs that rise")
    return tuple(value)


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
