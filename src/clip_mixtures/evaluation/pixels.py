"""Images as open_clip's evaluation transform makes them, to the bit and several times as fast.

The shorter side is resized to the network's size (bicubic, antialiased, Pillow's) and the centre is
cut out; torchvision rounds the longer side down, and the margins of the centre to even numbers
(``transforms.Resize`` and ``CenterCrop``). Only images that are neither grey nor RGB may differ:
they become RGB before they are resized, and not after it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clip_mixtures.errors import UserError
from clip_mixtures.images import ImageReader
from clip_mixtures.training.decoding import decode
from clip_mixtures.training.resampling import resize

Pixels = npt.NDArray[np.uint8]


def pack(frame: pd.DataFrame, root: Path, size: int, out: Pixels) -> None:
    """Decode rows of an index.

    Args:
        frame: N rows of an index.
        root: the corpus root.
        size: side of the square images in pixels.
        out: (N, size, size, 3) uint8, where to put them.

    Raises:
        UserError: for the first image that cannot be read.
    """
    with ImageReader(root) as reader:
        for position, row in enumerate(frame.itertuples(index=False)):
            out[position] = _pixels(row, reader.read(row), root, size)


def _pixels(row: Any, data: bytes, root: Path, size: int) -> Pixels:
    try:
        return centre(decode(data), size)
    # Damaged data make Pillow's decoders raise nearly everything there is.
    except Exception as error:
        place = root if pd.isna(row.archive) else root / row.archive
        raise UserError(f"{place}: {row.path} is not a readable image ({error})") from error


def centre(pixels: Pixels, size: int) -> Pixels:
    """Resize the shorter side of an image and cut out the centre.

    Args:
        pixels: (H, W, 3) uint8.
        size: side of the square in pixels.

    Returns:
        (size, size, 3) uint8.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short != size:
        wide, tall = size * width // short, size * height // short
        pixels = resize(pixels, (0, 0, width, height), wide, tall)
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]
