"""From an index row to pixels: read the bytes in place, decode, bring to size, pack.

Reading is one ``pread`` at a known offset, which needs no shared file position, so one reader
serves forked workers. Nothing is skipped in silence: an image that cannot be read or decoded
raises with the file's name.
"""

from __future__ import annotations

import collections
import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from tqdm import tqdm

from clip_mixtures.errors import UserError

# Archives that a reader keeps open.
_OPEN_ARCHIVES = 64


class ImageReader:
    """Read images of one corpus by index row; archives are opened once and stay open."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptors: collections.OrderedDict[str, int] = collections.OrderedDict()

    def read(self, row: Any) -> bytes:
        """Return the encoded bytes of an index row (anything with the schema's attributes).

        Raises:
            UserError: when the file or archive is absent or ends too early.
        """
        if pd.isna(row.archive):
            path = self._root / str(row.path)
            try:
                return path.read_bytes()
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}") from error
        data: bytes = os.pread(self._descriptor(row.archive), int(row.length), int(row.offset))
        if len(data) != row.length:
            raise UserError(
                f"{self._root / row.archive}: ends inside {row.path} "
                f"({len(data)} of {int(row.length)} bytes); the archive is truncated"
            )
        if row.compression == "deflate":
            try:
                return zlib.decompress(data, wbits=-15)
            except zlib.error as error:
                raise UserError(f"{self._root / row.archive}: {row.path}: {error}") from error
        return data

    def decode(self, row: Any) -> Image.Image:
        """Return the image of an index row as RGB.

        Raises:
            UserError: when it cannot be read or is no image.
        """
        data = self.read(row)
        try:
            return decode_rgb(data)
        # Damaged data make Pillow's decoders raise nearly everything there is.
        except Exception as error:
            place = self._root if pd.isna(row.archive) else self._root / row.archive
            raise UserError(f"{place}: {row.path} is not a readable image ({error})") from error

    def close(self) -> None:
        """Close the archives."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _descriptor(self, archive: str) -> int:
        if archive not in self._descriptors:
            path = self._root / archive
            try:
                self._descriptors[archive] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}") from error
            # A corpus of a thousand shards would use up what a process may open.
            while len(self._descriptors) > _OPEN_ARCHIVES:
                os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors.move_to_end(archive)
        return self._descriptors[archive]


def decode_rgb(data: bytes) -> Image.Image:
    """Return an encoded image as RGB, decoded to its last pixel.

    Raises:
        Exception: what Pillow raises for bytes that are no whole image; its decoders keep to no
            one type.
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.mode == "P" and "transparency" in image.info:
        # Pillow wants to be told that the colours' own alpha is to be dropped.
        image = image.convert("RGBA")
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Scale the shorter side to ``size`` (bicubic, antialiased) and take the centre square.

    Returns:
        (size, size, 3) uint8.
    """
    if image.size != (size, size):
        width, height = image.size
        scale = size / min(width, height)
        scaled = (max(size, round(width * scale)), max(size, round(height * scale)))
        image = image.resize(scaled, Image.Resampling.BICUBIC)
        left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8)


def pack(
    frame: pd.DataFrame,
    root: Path,
    size: int,
    out: npt.NDArray[np.uint8] | None = None,
    progress: str | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode every row of an index once.

    Args:
        frame: rows of an index.
        root: the corpus root.
        size: the side of the square images, in pixels.
        out: where to put them, (N, size, size, 3) uint8, such as a memory map; new memory if None.
        progress: label of the progress bar; no bar if None.

    Returns:
        (N, size, size, 3) uint8.

    Raises:
        UserError: for the first image that cannot be read.
    """
    if out is None:
        out = np.empty((len(frame), size, size, 3), dtype=np.uint8)
    if out.shape != (len(frame), size, size, 3):
        raise ValueError(f"out has shape {out.shape}, not {(len(frame), size, size, 3)}")
    rows = frame.itertuples(index=False)
    with ImageReader(root) as reader:
        bar = tqdm(rows, total=len(frame), desc=progress, unit="img", disable=progress is None)
        for position, row in enumerate(bar):
            out[position] = resize_and_crop(reader.decode(row), size)
    return out


def thumbnails(
    frame: pd.DataFrame,
    root: Path,
    rows: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    size: int,
) -> npt.NDArray[np.uint8]:
    """Decode a few images for pictures, each once.

    Args:
        frame: an index.
        root: the corpus root.
        rows: row numbers of the index, (N,).
        places: which of them, of any shape; -1 for no image.
        size: side of the square images in pixels.

    Returns:
        Shape of ``places`` + (size, size, 3) uint8, white where there is no image.

    Raises:
        UserError: for an image that cannot be read.
    """
    wanted = np.unique(places[places >= 0])
    images = np.full((len(wanted) + 1, size, size, 3), 255, dtype=np.uint8)
    pack(frame.loc[rows[wanted]], root, size, images[:-1])
    return images[np.where(places < 0, len(wanted), np.searchsorted(wanted, places))]
