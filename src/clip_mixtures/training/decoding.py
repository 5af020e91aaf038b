"""From an encoded image to the square pixels that a network trains on.

*Exact*: Pillow decodes, crops and resizes (bicubic, antialiased), as open_clip's transforms do for
the same crop. *Fast*: the same pixels, resized by torchvision's integer kernel, which differs from
Pillow's by at most two grey levels. Only in crops that are taller than wide, hard edges may differ
by more: Pillow 13 resizes some of these from top to bottom first, and rounds in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional

from clip_mixtures.images import decode_rgb
from clip_mixtures.training.augmentation import Augmentation


def crop_to(
    data: bytes, size: int, augmentation: Augmentation, draws: Sequence[float], decoder: str
) -> npt.NDArray[np.uint8]:
    """Decode an image, take a random crop and bring it to size.

    Args:
        data: the encoded image.
        size: side of the square in pixels.
        augmentation: which crops.
        draws: the five numbers that decide the crop and mirroring.
        decoder: "exact" or "fast".

    Returns:
        (size, size, 3) uint8.

    Raises:
        Exception: what Pillow raises for bytes that are no whole image.
    """
    image = decode_rgb(data)
    box, mirrored = augmentation.box(draws, image.width, image.height)
    if decoder == "fast":
        pixels = _resized(np.asarray(image), box, size)
    else:
        # Cut first: resizing a box would look at pixels beside it.
        cut = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
        pixels = np.asarray(cut, dtype=np.uint8)
    # A copy, because what Pillow shows of its own memory cannot be written to.
    return np.array(pixels[:, ::-1] if mirrored else pixels, order="C")


def _resized(
    pixels: npt.NDArray[np.uint8], box: tuple[int, int, int, int], size: int
) -> npt.NDArray[np.uint8]:
    left, top, right, bottom = box
    # Channels last stays as it is: torchvision's kernel for uint8 is made for that.
    whole = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    cut = whole[:, top:bottom, left:right]
    resized = functional.resize(
        cut, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return np.asarray(resized.permute(1, 2, 0).numpy(), dtype=np.uint8)
