"""Training recipes as values, checked before any work starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from clip_mixtures.errors import UserError
from clip_mixtures.settings import (
    BelowOne,
    NaturalInt,
    NotNegative,
    OneOf,
    Positive,
    PositiveInt,
    Share,
    settings_from_params,
)

# Where pixels come from: packed once at the network's size, or decoded in every epoch.
IMAGES = ("packed", "decoded")
# How images are decoded: as Pillow does to the last bit, or faster and within two grey levels.
DECODERS = ("exact", "fast")
# fp32, mixed with bfloat16, or mixed with float16 and scaled gradients; open_clip's names.
PRECISIONS = ("fp32", "amp_bf16", "amp")


@dataclasses.dataclass(frozen=True)
class Rising:
    """Epochs that rise, the first of them 1 or later."""

    def check(self, value: Any, where: str) -> None:
        """Refuse anything else."""
        whole = isinstance(value, list | tuple) and all(
            isinstance(epoch, int) and not isinstance(epoch, bool) and epoch > 0 for epoch in value
        )
        if not whole or list(value) != sorted(set(value)):
            raise UserError(f"{where}: is {value!r}; allowed: a list of epochs that rise")


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
        grad_checkpointing: compute activations of transformers anew in the backward pass, to save
            memory; the ResNets of open_clip keep theirs.
        checkpoint_every: epochs between kept checkpoints; the first (epoch 0) and the last stay.
        keep_last: keep this many of them beside the first; 0 for all.
    """

    epochs: PositiveInt
    global_batch_size: PositiveInt
    learning_rate: Positive
    weight_decay: NotNegative
    crop_scale: Share
    flip: bool
    images: Annotated[str, OneOf(IMAGES)] = "packed"
    decoder: Annotated[str, OneOf(DECODERS)] = "exact"
    precision: Annotated[str, OneOf(PRECISIONS)] = "fp32"
    grad_checkpointing: bool = False
    checkpoint_every: PositiveInt = 1
    keep_last: NaturalInt = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Recipe):
    """The recipe of CLIP.

    Attributes:
        warmup_steps: steps of linear warm-up, before a half cosine to zero.
        beta1: of AdamW.
        beta2: of AdamW.
        epsilon: of AdamW.
    """

    warmup_steps: NaturalInt
    beta1: BelowOne
    beta2: BelowOne
    epsilon: Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedConfig(Recipe):
    """The recipe of a classifier.

    Attributes:
        momentum: of SGD.
        nesterov: look ahead by the momentum.
        milestones: epochs after which the rate falls.
        gamma: the factor by which it falls.
    """

    momentum: BelowOne
    nesterov: bool
    milestones: Annotated[tuple[int, ...], Rising()]
    gamma: Positive


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


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
    return settings_from_params(kind, params, where)


def per_process_batch(
    global_batch_size: int, world_size: int, where: str = "global_batch_size"
) -> int:
    """Return the batch of one process.

    Args:
        global_batch_size: of a step, over all processes.
        world_size: number of processes.
        where: the name of the global batch size, for messages.

    Raises:
        UserError: when the number of processes does not divide the global batch.
    """
    if global_batch_size % world_size:
        near = [n for n in range(world_size, 0, -1) if global_batch_size % n == 0]
        raise UserError(
            f"{where}: {global_batch_size} cannot be shared by {world_size} "
            f"processes; run with NPROC={near[0]}, or make it a multiple of {world_size}"
        )
    return global_batch_size // world_size
