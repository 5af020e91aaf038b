"""Augmentation: random resized crop and mirror image, from random numbers drawn elsewhere.

Five numbers in [0, 1) decide what becomes of an image, so that it depends neither on the number of
processes nor on whether the run was interrupted. They make an affine map for images that lie on the
device already, or a box of pixels for images that are decoded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch.nn import functional

# Numbers that an image is augmented with: area, aspect ratio, two of position, mirroring.
DRAWS = 5


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

    def maps(self, draws: torch.Tensor) -> torch.Tensor:
        """Turn draws (5, n) into affine maps (n, 2, 3) from output to input, both in [-1, 1]."""
        area, log_ratio, x, y, mirror = draws
        area = self.scale[0] + area * (self.scale[1] - self.scale[0])
        low, high = (math.log(bound) for bound in self.ratio)
        ratio = torch.exp(low + log_ratio * (high - low))
        # A side may not leave the image; the crop of a large area is then nearer to a square.
        width = torch.sqrt(area * ratio).clamp(max=1)
        height = torch.sqrt(area / ratio).clamp(max=1)
        maps = torch.zeros(draws.shape[1], 2, 3)
        maps[:, 0, 0] = torch.where(mirror < 0.5, -width, width) if self.flip else width
        maps[:, 1, 1] = height
        maps[:, 0, 2] = (2 * x - 1) * (1 - width)
        maps[:, 1, 2] = (2 * y - 1) * (1 - height)
        return maps

    def box(
        self, draws: Sequence[float], width: int, height: int
    ) -> tuple[tuple[int, int, int, int], bool]:
        """Turn the five draws of an image into a box (left, top, right, bottom), and mirroring.

        The box is as in torchvision's RandomResizedCrop, but that a box which does not fit is made
        to fit, where torchvision draws again.
        """
        share, log_ratio, x, y, mirror = draws
        area = (self.scale[0] + share * (self.scale[1] - self.scale[0])) * width * height
        low, high = (math.log(bound) for bound in self.ratio)
        ratio = math.exp(low + log_ratio * (high - low))
        wide = min(max(round(math.sqrt(area * ratio)), 1), width)
        tall = min(max(round(math.sqrt(area / ratio)), 1), height)
        left, top = int(x * (width - wide + 1)), int(y * (height - tall + 1))
        return (left, top, left + wide, top + tall), self.flip and mirror < 0.5


def apply_maps(pixels: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Resample (B, C, H, W) float pixels through (B, 2, 3) affine maps, bilinearly."""
    grid = functional.affine_grid(maps.to(pixels.device), list(pixels.shape), align_corners=False)
    return functional.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
