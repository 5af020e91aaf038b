"""What it costs to train and evaluate a cell, from the speed of a measured step."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

from clip_mixtures.errors import UserError
from clip_mixtures.files import atomic_write_json, read_text
from clip_mixtures.training.config import Recipe
from clip_mixtures.training.data import fingerprint

# A training step is about three forward passes: one forward, and twice its products backward.
_FORWARD_SHARE = 1 / 3
_SECONDS_AN_HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a dry run measured of a model.

    Attributes:
        device: cuda or cpu.
        processes: that shared the step, each with a device of its own.
        precision: that it was tried in.
        images_per_second: of all processes together, in a training step.
        checkpoint_bytes: size of a checkpoint on disk.
    """

    device: str
    processes: int
    precision: str
    images_per_second: float
    checkpoint_bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """Device hours and disk; costs add up.

    Attributes:
        hours: of one device: of a GPU, or of the cores that a process has.
        disk_bytes: of what stays.
    """

    hours: float = 0.0
    disk_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.hours + other.hours, self.disk_bytes + other.disk_bytes)


def speed_key(model: str, architecture: str, recipe: Recipe, device: str) -> str:
    """Return the name of a measurement: another recipe or device is another one.

    Args:
        model: its key in params.
        architecture: of the network.
        recipe: that it is trained by.
        device: cuda or cpu.
    """
    return f"{model}-{device}-{fingerprint(architecture, recipe)}"


def kept_checkpoints(recipe: Recipe) -> int:
    """Return how many checkpoints of a run stay: that before training, and those after it."""
    made = math.ceil(recipe.epochs / recipe.checkpoint_every)
    return 1 + (min(made, recipe.keep_last) if recipe.keep_last else made)


def training_cost(recipe: Recipe, train_images: int, speed: Speed) -> Cost:
    """Return the cost of a training run.

    Args:
        recipe: of the run.
        train_images: of its mixture.
        speed: of its model.
    """
    images = recipe.epochs * (train_images // recipe.global_batch_size) * recipe.global_batch_size
    hours = images / speed.images_per_second * speed.processes / _SECONDS_AN_HOUR
    return Cost(hours, kept_checkpoints(recipe) * speed.checkpoint_bytes)


def evaluation_cost(recipe: Recipe, test_images: int, speed: Speed) -> Cost:
    """Return the cost of evaluating every checkpoint of a run, which is one forward pass of each.

    Args:
        recipe: of the run.
        test_images: of all test sets.
        speed: of its model.
    """
    images = kept_checkpoints(recipe) * test_images
    seconds = images * _FORWARD_SHARE / speed.images_per_second
    return Cost(seconds * speed.processes / _SECONDS_AN_HOUR)


def write_speeds(path: Path, speeds: Mapping[str, Speed]) -> None:
    """Write measurements by their keys (:func:`speed_key`); others in the file stay."""
    known = read_speeds(path) if path.is_file() else {}
    values = {**known, **speeds}
    atomic_write_json(path, {key: dataclasses.asdict(speed) for key, speed in values.items()})


def read_speeds(path: Path) -> dict[str, Speed]:
    """Read what :func:`write_speeds` wrote.

    Raises:
        UserError: for an absent or damaged file.
    """
    try:
        values = json.loads(read_text(path))
        return {key: Speed(**value) for key, value in values.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no measured speeds ({error}); measure them again") from error
