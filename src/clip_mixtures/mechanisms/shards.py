"""Features that do not fit in memory: shards on disk, and a shuffle that reads them in order.

A folder holds ``shard-00000.npy``, ... and ``shards.json`` with rows, width, type and hashes, which
is written last, so a folder that has it is whole. Shards are memory-mapped.

A full shuffle would read one row here and one there. An epoch goes through blocks of neighbouring
rows instead, in random order over all shards; as many blocks as a pool holds are read, each at one
go, and the rows of the pool are shuffled. A batch therefore mixes rows of hundreds of places. The
order follows from seed and epoch alone, so a reader can begin at any batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy

from clip_mixtures.errors import UserError
from clip_mixtures.files import atomic_write_json, read_text, replacing, sha256_file
from clip_mixtures.mechanisms.config import FEATURE_DTYPES

CPU = torch.device("cpu")

MANIFEST = "shards.json"
ROWS_PER_SHARD = 65_536

# 256 rows of 1024 half-precision numbers are half a megabyte; a pool of 64 blocks is 16,384 rows.
BLOCK_ROWS = 256
POOL_BLOCKS = 64

FloatArray = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of rows.

    Attributes:
        file: its name in the folder.
        rows: how many it holds.
        sha256: of the file.
    """

    file: str
    rows: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class ShardSet:
    """The rows of a folder.

    Attributes:
        folder: where they lie.
        width: numbers a row.
        dtype: one of :data:`FEATURE_DTYPES`.
        shards: the files, in order.
    """

    folder: Path
    width: int
    dtype: str
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(shard.rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Return what stands for the content and its order."""
        parts = [self.width, self.dtype, *((shard.rows, shard.sha256) for shard in self.shards)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write_shards(
    folder: Path,
    batches: Iterable[FloatArray | torch.Tensor],
    *,
    dtype: str = "float16",
    rows_per_shard: int = ROWS_PER_SHARD,
) -> ShardSet:
    """Write a stream of features; one shard is held in memory at a time.

    Shards that were in the folder before are replaced, and leftover ones removed.

    Args:
        folder: where to.
        batches: arrays or tensors (B, width) of any floating type and any B.
        dtype: one of :data:`FEATURE_DTYPES`, which the features become.
        rows_per_shard: rows of every shard but the last.

    Returns:
        What was written, as :func:`open_shards` finds it.

    Raises:
        ValueError: for no rows, another width than before, or numbers that are not finite in
            ``dtype``; the message counts rows from 0. The folder then holds no manifest.
    """
    if dtype not in FEATURE_DTYPES:
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(FEATURE_DTYPES)}")
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard is {rows_per_shard}; allowed: 1 or more")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    shards: list[Shard] = []
    width = 0
    for rows in _regrouped(_checked(batches, dtype), rows_per_shard):
        width = rows.shape[1]
        path = folder / f"shard-{len(shards):05}.npy"
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, rows, allow_pickle=False)
        shards.append(Shard(path.name, len(rows), sha256_file(path)))
    if not shards:
        raise ValueError(f"{folder}: no features to write; give at least one row")
    written = ShardSet(folder, width, dtype, tuple(shards))
    for path in set(folder.glob("shard-*.npy")) - {folder / shard.file for shard in shards}:
        path.unlink()
    listed = [dataclasses.asdict(shard) for shard in shards]
    facts = {"rows": len(written), "width": width, "dtype": dtype, "shards": listed}
    atomic_write_json(folder / MANIFEST, facts)
    return written


def open_shards(folder: Path, width: int | None = None) -> ShardSet:
    """Find the shards of a folder; their sizes are checked, their bytes not yet read.

    Args:
        folder: where they lie.
        width: what the rows should have, if it is known.

    Raises:
        UserError: when there is no manifest, it is damaged, a shard is absent, cut short or not
            what the manifest says, or rows have another width.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path}: absent, so {folder} holds no features; extract them first")
    try:
        facts = json.loads(read_text(path))
        shards = tuple(Shard(**entry) for entry in facts["shards"])
        found = ShardSet(folder, int(facts["width"]), str(facts["dtype"]), shards)
        usable = found.dtype in FEATURE_DTYPES and len(found) == facts["rows"] > 0
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of shards ({error!r}); extract again") from error
    if not usable:
        raise UserError(f"{path}: rows or dtype are not those of its shards; extract again")
    if width is not None and found.width != width:
        raise UserError(
            f"{path}: rows are {found.width} wide, expected {width}; extract features of the "
            "same model"
        )
    for shard in shards:
        _map(found, shard)
    return found


def verify_shards(shards: ShardSet) -> None:
    """Read every shard and compare its SHA-256.

    Raises:
        UserError: naming the first shard that has changed.
    """
    for shard in shards.shards:
        path = shards.folder / shard.file
        if sha256_file(path) != shard.sha256:
            raise UserError(f"{path}: changed since it was written; extract the features again")


def steps_per_epoch(shards: ShardSet, batch_size: int) -> int:
    """Return the number of batches of an epoch; the last may be short, none is dropped."""
    return -(-len(shards) // batch_size)


def shuffled_batches(
    shards: ShardSet,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    block_rows: int = BLOCK_ROWS,
    pool_blocks: int = POOL_BLOCKS,
    device: torch.device = CPU,
) -> Iterator[torch.Tensor]:
    """Yield the batches of an epoch, every row once.

    Args:
        shards: the rows.
        batch_size: rows of every batch but the last.
        seed: of the order.
        epoch: each has an order of its own.
        start: the batch to begin with; those before it are not read.
        block_rows: neighbouring rows that are read at one go.
        pool_blocks: blocks that are shuffled together; a pool lies in memory.
        device: where they go; a GPU takes one while it works on the one before.

    Yields:
        (B, width) float32, on the device.

    Raises:
        UserError: when a shard is damaged or holds a number that is not finite.
    """
    for rows in _pooled(_pools(shards, seed, epoch, block_rows, pool_blocks), batch_size, start):
        if device.type == "cuda":
            # As they are stored: half of the bytes of single precision, where that is half.
            yield rows.pin_memory().to(device, non_blocking=True).float()
        else:
            yield rows.float()


def ordered_batches(shards: ShardSet, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield all rows in the order of the files, (B, width) float32; a batch stays in its shard.

    Raises:
        UserError: when a shard is damaged or holds a number that is not finite.
    """
    for shard in shards.shards:
        mapped = _map(shards, shard)
        for first in range(0, shard.rows, batch_size):
            yield _read(shards, shard, mapped, first, min(first + batch_size, shard.rows)).float()


@dataclasses.dataclass(frozen=True)
class _Pool:
    """Blocks that are shuffled together, as (shard, first row, row after the last)."""

    shards: ShardSet
    blocks: list[tuple[int, int, int]]
    seed: tuple[int, ...]
    mapped: dict[int, FloatArray]

    def __len__(self) -> int:
        return sum(end - first for _, first, end in self.blocks)

    def read(self) -> torch.Tensor:
        """Return the rows in their shuffled order, in the type of the files."""
        parts = []
        for number, first, end in self.blocks:
            shard = self.shards.shards[number]
            if number not in self.mapped:
                self.mapped[number] = _map(self.shards, shard)
            parts.append(_read(self.shards, shard, self.mapped[number], first, end))
        rows = torch.cat(parts)
        return rows[torch.from_numpy(np.random.default_rng(self.seed).permutation(len(rows)))]


def _pools(
    shards: ShardSet, seed: int, epoch: int, block_rows: int, pool_blocks: int
) -> Iterator[_Pool]:
    blocks = [
        (number, first, min(first + block_rows, shard.rows))
        for number, shard in enumerate(shards.shards)
        for first in range(0, shard.rows, block_rows)
    ]
    order = np.random.default_rng((seed, epoch)).permutation(len(blocks))
    mapped: dict[int, FloatArray] = {}
    for place in range(0, len(blocks), pool_blocks):
        chosen = [blocks[number] for number in order[place : place + pool_blocks]]
        # The pool's own stream begins where it does, whether or not those before it were read.
        yield _Pool(shards, chosen, (seed, epoch, place + 1), mapped)


def _pooled(pools: Iterable[_Pool], batch_size: int, start: int) -> Iterator[torch.Tensor]:
    """Cut the rows of successive pools into batches, leaving out the first ``start``."""
    skip = start * batch_size
    left: list[torch.Tensor] = []
    waiting = 0
    for pool in pools:
        if skip >= len(pool):
            skip -= len(pool)
            continue
        rows = pool.read()[skip:]
        skip = 0
        while waiting + len(rows) >= batch_size:
            missing = batch_size - waiting
            yield torch.cat([*left, rows[:missing]])
            rows, left, waiting = rows[missing:], [], 0
        if len(rows):
            left.append(rows)
            waiting += len(rows)
    if left:
        yield torch.cat(left)


def _map(shards: ShardSet, shard: Shard) -> FloatArray:
    """Map a shard into memory after a look at its header and length."""
    path = shards.folder / shard.file
    try:
        with open(path, "rb") as file:
            npy.read_magic(file)
            shape, by_column, dtype = npy.read_array_header_1_0(file)
            complete = path.stat().st_size == file.tell() + int(np.prod(shape)) * dtype.itemsize
    except FileNotFoundError as error:
        raise UserError(f"{path}: absent; extract the features again") from error
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a NumPy file ({error}); extract again") from error
    if not complete:
        raise UserError(f"{path}: cut short; extract the features again")
    if shape != (shard.rows, shards.width) or dtype != np.dtype(shards.dtype) or by_column:
        raise UserError(
            f"{path}: holds {shape} {dtype}, expected {(shard.rows, shards.width)} {shards.dtype} "
            f"as {MANIFEST} says; extract the features again"
        )
    mapped: FloatArray = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _read(shards: ShardSet, shard: Shard, mapped: FloatArray, first: int, end: int) -> torch.Tensor:
    rows = torch.from_numpy(np.array(mapped[first:end]))
    # A sum is enough to see that a number is not finite, and far cheaper than looking at each.
    if not torch.isfinite(rows.sum(dtype=torch.float32)):
        wrong = int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])
        raise UserError(
            f"{shards.folder / shard.file}: row {first + wrong} holds a number that is not finite; "
            "extract the features again in float32"
        )
    return rows


def _checked(batches: Iterable[FloatArray | torch.Tensor], dtype: str) -> Iterator[FloatArray]:
    width: int | None = None
    seen = 0
    for batch in batches:
        given = batch.detach().cpu().float().numpy() if isinstance(batch, torch.Tensor) else batch
        if given.ndim != 2 or given.shape[1] == 0 or width not in (None, given.shape[1]):
            raise ValueError(
                f"features from row {seen} have shape {given.shape}; expected (rows, "
                f"{width or 'width'})"
            )
        width = given.shape[1]
        with np.errstate(over="ignore"):
            rows = given.astype(dtype)
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"features of row {seen + int(wrong[0])} are not finite in {dtype}; mend the model "
                "or image that they come from, or use float32"
            )
        seen += len(rows)
        yield rows


def _regrouped(batches: Iterable[FloatArray], size: int) -> Iterator[FloatArray]:
    """Regroup rows into arrays of the given size; the last may be shorter."""
    held: list[FloatArray] = []
    count = 0
    for batch in batches:
        rows = batch
        while count + len(rows) >= size:
            missing = size - count
            yield np.concatenate([*held, rows[:missing]])
            rows, held, count = rows[missing:], [], 0
        if len(rows):
            held.append(rows)
            count += len(rows)
    if held:
        yield np.concatenate(held)
