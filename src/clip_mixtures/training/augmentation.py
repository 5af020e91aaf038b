"""Augmentation of a whole batch at once, on the device that trains.

Every random number is drawn for the global batch from a generator that the caller seeds with the
epoch and step, so that what an image goes through depends neither on the number of processes nor
on whether the run was interrupted.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random resized crop and mirror image.

    Attributes:
        scale: smallest and largest share of the area that a crop keeps.
        ratio: smallest and largest width over height of a crop.
        flip: mirror half the images.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw affine maps, (count, 2, 3) float32, from output to input coordinates in [-1, 1]."""
        area, log_ratio, x, y, mirror = torch.rand((5, count), generator=generator)
        area = self.scale[0] + area * (self.scale[1] - self.scale[0])
        low, high = (math.log(bound) for bound in self.ratio)
        ratio = torch.exp(low + log_ratio * (high - low))
        # A side may not leave the image; the crop of a large area is then nearer to a square.
        width = torch.sqrt(area * ratio).clamp(max=1)
        height = torch.sqrt(area / ratio).clamp(max=1)
        maps = torch.zeros(count, 2, 3)
        maps[:, 0, 0] = torch.where(mirror < 0.5, -width, width) if self.flip else width
        maps[:, 1, 1] = height
        maps[:, 0, 2] = (2 * x - 1) * (1 - width)
        maps[:, 1, 2] = (2 * y - 1) * (1 - height)
        return maps


def apply_maps(pixels: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Resample (B, C, H, W) float pixels through (B, 2, 3) affine maps, bilinearly."""
    grid = functional.affine_grid(maps.to(pixels.device), list(pixels.shape), align_corners=False)
    return functional.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
