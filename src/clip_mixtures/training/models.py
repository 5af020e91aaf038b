"""Models by name: open_clip's own, and small ones of this project for the sample."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator

import open_clip
import torch

from clip_mixtures.training.architectures import (
    OWN_CONFIGS,
    check_architecture,
    own_architectures,
)


@dataclasses.dataclass(frozen=True)
class ClipModel:
    """A CLIP model with what its inputs need.

    Attributes:
        network: with ``encode_image``, ``encode_text`` and ``logit_scale``.
        tokenizer: list of texts to (n, context length) int64 token ids.
        image_size: side of the square input, in pixels.
        mean: of each colour channel, on a scale of 0 to 1.
        std: of each colour channel, likewise.
    """

    network: torch.nn.Module
    tokenizer: Callable[[list[str]], torch.Tensor]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def create_clip(architecture: str, device: torch.device | None = None) -> ClipModel:
    """Make a model with random weights; torch's global seed decides them.

    Args:
        architecture: an open_clip name such as ``RN50``, or one of this project's own.
        device: where to put it; the CPU by default.

    Raises:
        UserError: for an unknown architecture.
    """
    check_architecture(architecture, "models.<key>.architecture")
    if architecture in own_architectures():
        open_clip.add_model_config(OWN_CONFIGS)
    with _without_warnings():
        network = open_clip.create_model(architecture, precision="fp32", pretrained=None)
    network = network.to(device or torch.device("cpu"), memory_format=torch.channels_last)
    size = network.visual.image_size
    return ClipModel(
        network=network,
        tokenizer=open_clip.get_tokenizer(architecture),
        image_size=int(size[0] if isinstance(size, tuple) else size),
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
    )


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep open_clip from warning that the weights are random: here they always are."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """What brings pixels to a network's mean and standard deviation, on its device.

    Attributes:
        mean: of each colour channel, on a scale of 0 to 1.
        std: of each colour channel, likewise.
        device: where the network is.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise (B, 3, H, W) pixels from 0 to 1, channels last in memory."""
        mean, std = (_by_channel(values, pixels.device) for values in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=16)
def _by_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Bring numbers to a device once: a GPU that is handed numbers is waited for."""
    with torch.inference_mode(mode=False):
        return torch.tensor(values, device=device).view(1, -1, 1, 1)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Turn packed images (B, H, W, 3) uint8 into (B, 3, H, W) float32 from 0 to 1."""
    return images.permute(0, 3, 1, 2).float().div(255)


def normalise(pixels: torch.Tensor, model: ClipModel) -> torch.Tensor:
    """Bring (B, 3, H, W) pixels from 0 to 1 to the model's mean and standard deviation."""
    return Normalisation(model.mean, model.std, pixels.device).apply(pixels)
