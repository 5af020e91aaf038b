"""A PNG writer whose bytes depend on the pixels alone.

Compressed PNGs differ between versions of zlib, and a dataset pinned by its hash cannot live with
that. Stored (uncompressed) deflate blocks leave no choice to a library.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST_BLOCK = 65_535
_GREY, _COLOUR = 0, 2


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode (H, W) grey or (H, W, 3) colour pixels, uint8, without compression.

    Raises:
        ValueError: for another shape or type.
    """
    if image.dtype != np.uint8 or not (
        image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    ):
        raise ValueError(f"cannot encode {image.dtype} of shape {image.shape}")
    height, width = image.shape[:2]
    rows = np.ascontiguousarray(image).reshape(height, -1)
    # Each row starts with its filter type; 0 is none.
    raw = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    colour = _GREY if image.ndim == 2 else _COLOUR
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _stored(raw)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _stored(raw: bytes) -> bytes:
    blocks = [raw[start : start + _LARGEST_BLOCK] for start in range(0, len(raw), _LARGEST_BLOCK)]
    body = b"".join(
        struct.pack("<BHH", number == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block
        for number, block in enumerate(blocks)
    )
    return b"\x78\x01" + body + struct.pack(">I", zlib.adler32(raw))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
