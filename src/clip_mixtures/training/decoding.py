"""From an encoded image to the square pixels that a network trains on.

*Exact*: the pixels that Pillow decodes, crops and resizes (bicubic, antialiased), as open_clip's
transforms do for the same crop; computed by :mod:`resampling`. *Fast*: the same pixels, resized by
torchvision's integer kernel, which differs from Pillow's by at most two grey levels. Only in crops
that are taller than wide, hard edges may differ by more: Pillow 13 resizes some of these from top
to bottom first, and rounds in between.

JPEGs are decoded by simplejpeg, which has the same libjpeg-turbo as Pillow, and less around it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, features
from torchvision.transforms.v2 import InterpolationMode, functional

from clip_mixtures.images import decode_rgb
from clip_mixtures.training.augmentation import Augmentation
from clip_mixtures.training.resampling import Box, resize

Pixels = npt.NDArray[np.uint8]

# Another libjpeg rounds in other places than simplejpeg's.
_SAME_LIBRARY = features.check_feature("libjpeg_turbo")


def crop_to(
    data: bytes, size: int, augmentation: Augmentation, draws: Sequence[float], decoder: str
) -> Pixels:
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
    return crop(decode(data), size, augmentation, draws, decoder)


def decode(data: bytes) -> Pixels:
    """Decode an image to what :func:`images.decode_rgb` makes of it.

    Returns:
        (H, W, 3) uint8, writable.

    Raises:
        Exception: what Pillow raises for bytes that are no whole image.
    """
    # Pillow reads the header alone here, and refuses what it would refuse.
    with Image.open(io.BytesIO(data)) as image:
        plain = _SAME_LIBRARY and image.format == "JPEG" and image.mode in ("RGB", "L")
        if plain:
            try:
                pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
            except ValueError:
                # Damaged; Pillow knows how badly.
                pass
            else:
                if pixels.shape[:2] == (image.height, image.width):
                    return pixels
    return np.array(decode_rgb(data), dtype=np.uint8)


def crop(
    pixels: Pixels, size: int, augmentation: Augmentation, draws: Sequence[float], decoder: str
) -> Pixels:
    """Take a random crop of a decoded image and bring it to size; see :func:`crop_to`.

    Args:
        pixels: (H, W, 3) uint8.
        size: side of the square in pixels.
        augmentation: which crops.
        draws: the five numbers that decide the crop and mirroring.
        decoder: "exact" or "fast".

    Returns:
        (size, size, 3) uint8.
    """
    box, mirrored = augmentation.box(draws, pixels.shape[1], pixels.shape[0])
    if decoder == "fast":
        made = _resized(pixels, box, size)
        return np.ascontiguousarray(made[:, ::-1] if mirrored else made)
    # Cut first, in effect: resizing a box of Pillow's would look at pixels beside it.
    return resize(pixels, box, size, size, mirrored)


def _resized(pixels: Pixels, box: Box, size: int) -> Pixels:
    left, top, right, bottom = box
    # Channels last stays as it is: torchvision's kernel for uint8 is made for that.
    whole = torch.from_numpy(pixels).permute(2, 0, 1)
    cut = whole[:, top:bottom, left:right]
    resized = functional.resize(
        cut, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return np.asarray(resized.permute(1, 2, 0).numpy(), dtype=np.uint8)
