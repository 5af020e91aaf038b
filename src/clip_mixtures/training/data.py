"""A mixture as tensors: packed images in a memory map, captions as token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clip_mixtures.code_versions import digest
from clip_mixtures.files import replacing
from clip_mixtures.images import pack
from clip_mixtures.index import Index

_TOKENIZER_CHUNK = 50_000


def pack_rows(
    parts: Sequence[tuple[Index, npt.NDArray[np.int64]]], size: int, path: Path, write: bool
) -> npt.NDArray[np.uint8]:
    """Pack the chosen rows of several indices into one memory map and open it.

    Args:
        parts: an index and the row numbers taken from it, in training order.
        size: side of the images in pixels.
        path: the file to make; one that is there is used as it is, since it appears only whole.
        write: whether this process makes it; the others come after.

    Returns:
        (N, size, size, 3) uint8, read-only.

    Raises:
        UserError: for the first image that cannot be read.
    """
    count = sum(len(rows) for _, rows in parts)
    shape = (count, size, size, 3)
    if write and not path.is_file():
        with replacing(path) as temporary:
            pixels = np.memmap(temporary, dtype=np.uint8, mode="w+", shape=shape)
            start = 0
            for index, rows in parts:
                pack(
                    index.frame.iloc[rows],
                    index.root,
                    size,
                    out=pixels[start : start + len(rows)],
                    progress=f"decoding {index.root.name}",
                )
                start += len(rows)
            pixels.flush()
    return np.memmap(path, dtype=np.uint8, mode="r", shape=shape)


def tokenize(
    captions: Sequence[str], tokenizer: Callable[[list[str]], torch.Tensor]
) -> torch.Tensor:
    """Turn captions into (N, context length) int32 token ids, a chunk at a time."""
    chunks = [
        tokenizer(list(captions[start : start + _TOKENIZER_CHUNK])).int()
        for start in range(0, len(captions), _TOKENIZER_CHUNK)
    ]
    return torch.cat(chunks)


def fingerprint(*parts: Any) -> str:
    """Return 16 hexadecimal digits that stand for the text of ``parts``."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:16]


def source_hash(*sources: Path) -> str:
    """Return a hash over source files and folders, so that no run continues another code's.

    Comments and docstrings do not count.
    """
    found = hashlib.sha256()
    for source in sources:
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.suffix == ".py":
                found.update(f"{path.name}\0{digest(path)}".encode())
            elif path.suffix in (".json", ".csv"):
                found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
