"""Every image of an index is opened once, and what was found becomes a table.

A corpus of a million images has some that are empty, cut off or no images at all. They are better
known before a training run meets them. Verifying opens each image exactly as training does, in
parallel, and notes what it is: readable or why not, its size, its digest and a perceptual hash to
find duplicates by. Finished chunks of rows are files, so a run that is interrupted goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from clip_mixtures.errors import UserError
from clip_mixtures.files import replacing, sha256_file
from clip_mixtures.images import ImageReader
from clip_mixtures.index import SCHEMA as INDEX_SCHEMA
from clip_mixtures.index import Index, read_index
from clip_mixtures.judgement import GOES_ON, REMARKS, UNREADABLE, Place, Verdict, judge
from clip_mixtures.scratch import end_with_parent

SCHEMA = pa.schema(
    [
        # The row of the index, 0..n-1.
        pa.field("row", pa.int64(), nullable=False),
        pa.field("readable", pa.bool_(), nullable=False),
        # Names of the vocabulary, separated by spaces: one reason, or any number of remarks.
        pa.field("findings", pa.string(), nullable=False),
        # What the decoder said of an unreadable image, in one line.
        pa.field("message", pa.string()),
        # Pillow's names. Null, as is the size in pixels, when there is not even a whole header.
        pa.field("format", pa.string()),
        pa.field("mode", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        # Length and hexadecimal BLAKE2b (16 bytes) of the image as a file of its own, so after
        # inflating; null when those bytes cannot be had.
        pa.field("bytes", pa.int64()),
        pa.field("digest", pa.string()),
        # See perceptual_hash; null when unreadable.
        pa.field("perceptual_hash", pa.uint64()),
    ]
)

DEFAULT_CHUNK = 1024

# Key of the metadata that says what index a table was made from.
_INDEX = "index"

# Bump when the same bytes would be judged differently, so that old chunks are not mixed in.
_VERSION = 1

_FINGERPRINT_ROWS = 65536

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_PANDAS_TYPES: dict[pa.DataType, pd.api.extensions.ExtensionDtype] = {
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}


def verify(
    index: Index,
    scratch: Path,
    workers: int | None = None,
    progress: str | None = None,
    chunk: int = DEFAULT_CHUNK,
) -> pd.DataFrame:
    """Open every image of an index once.

    Finished chunks stay in a folder under ``scratch`` that belongs to exactly these rows and
    archives, and are not done again. The result depends neither on the number of workers nor on
    interruptions. Images that are files of their own are not looked at again once their chunk is
    done, even if they are mended: remove the folder for that.

    Args:
        index: the images; path, archive, offset, length and compression are the columns needed.
        scratch: where to keep finished chunks.
        workers: processes to read with; one for each core by default, 1 reads in this process.
        progress: label of the progress bar; no bar if None.
        chunk: rows that a worker takes at a time.

    Returns:
        One row an image in the index's order, the columns of :data:`SCHEMA`; integers that may be
        null have pandas' nullable types.

    Raises:
        UserError: when the root or an archive is absent, the disk or a permission fails, or a
            worker was killed.
    """
    table, _ = _verify(index, scratch, workers, progress, chunk)
    return _to_frame(table)


def write_verification(
    index: Index,
    out: Path,
    scratch: Path,
    workers: int | None = None,
    progress: str | None = None,
    chunk: int = DEFAULT_CHUNK,
    index_hash: str = "",
) -> pd.DataFrame:
    """Verify an index, write the table as Parquet, then remove the finished chunks.

    Args:
        index: the images.
        out: the Parquet file, which appears whole or not at all.
        scratch: where to keep finished chunks until then.
        workers: see :func:`verify`.
        progress: see :func:`verify`.
        chunk: see :func:`verify`.
        index_hash: SHA-256 of the index file, to be kept with the table.

    Returns:
        The table, see :func:`verify`.

    Raises:
        UserError: see :func:`verify`.
    """
    table, folder = _verify(index, scratch, workers, progress, chunk)
    _write_table(table.replace_schema_metadata({_INDEX: index_hash}), out)
    # What cannot be removed does no harm: it is never taken for the chunks of anything else.
    shutil.rmtree(folder, ignore_errors=True)
    return _to_frame(table)


def read_verification(path: Path, index_length: int, index_hash: str = "") -> pd.DataFrame:
    """Read the table of an index.

    Args:
        path: the Parquet file.
        index_length: how many rows the index has.
        index_hash: SHA-256 of the index file; a table that was made from another is refused.

    Raises:
        UserError: when the file is absent, damaged, no such table, or of another index.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; verify the images first")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable Parquet file ({detail}); run it again") from error
    if not table.schema.equals(SCHEMA):
        raise UserError(f"{path}: not a table of verified images; move it away and run it again")
    made_from = (table.schema.metadata or {}).get(_INDEX.encode(), b"").decode()
    if index_hash and made_from and made_from != index_hash:
        raise UserError(f"{path}: was made from another index; verify the images again")
    if not _has_rows(table, range(index_length)):
        raise UserError(
            f"{path}: has {table.num_rows} rows where the index has {index_length}, so it was made "
            "from another index; run it again"
        )
    return _to_frame(table)


def verification_of(index: Path, verification: Path) -> pd.DataFrame:
    """Read what was found when the images of an index were opened.

    Args:
        index: the index file.
        verification: folder with a table of the same name.

    Raises:
        UserError: when it is absent, damaged or of another index.
    """
    length = len(read_index(index, columns=["split"]))
    return read_verification(verification / index.name, length, sha256_file(index))


def quarantine(table: pd.DataFrame, index: Index) -> pd.DataFrame:
    """List the images that cannot be read.

    Args:
        table: what :func:`verify` returned for the index.
        index: the images.

    Returns:
        One row an unreadable image, in the index's order: row, path, archive, reason (one of
        :data:`UNREADABLE`) and message.
    """
    if len(table) != len(index):
        raise ValueError(f"the table has {len(table)} rows, the index {len(index)}")
    found = table.loc[~table["readable"]].reset_index(drop=True)
    places = index.frame.iloc[found["row"].to_numpy()].reset_index(drop=True)
    return pd.DataFrame(
        {
            "row": found["row"],
            "path": places["path"],
            "archive": places["archive"],
            "reason": found["findings"],
            "message": found["message"],
        }
    )


def remarks(table: pd.DataFrame) -> dict[str, int]:
    """Count the readable images that each remark was made on, in the order of :data:`REMARKS`."""
    counts = _count_findings(table.loc[table["readable"], "findings"])
    return {name: counts.get(name, 0) for name in REMARKS}


def check_share(table: pd.DataFrame, allowed: float, where: str) -> None:
    """Refuse a corpus of which too much cannot be read.

    Args:
        table: what :func:`verify` returned.
        allowed: the share of unreadable images that is still accepted, from 0 to 1.
        where: the file or corpus to name.

    Raises:
        UserError: when the share is larger than that.
    """
    unreadable = table.loc[~table["readable"], "findings"]
    share = len(unreadable) / max(len(table), 1)
    if share <= allowed:
        return
    counts = _count_findings(unreadable)
    listed = ", ".join(f"{counts[name]} {name}" for name in UNREADABLE if name in counts)
    raise UserError(
        f"{where}: {len(unreadable)} of {len(table)} images ({100 * share:.3g} %) cannot be read, "
        f"allowed are {100 * allowed:.3g} % ({listed}); mend the corpus or raise the allowed share"
    )


@dataclasses.dataclass(frozen=True)
class _Job:
    """A chunk of rows to do, as plain values, and the file to put the outcome into."""

    rows: range
    places: Sequence[tuple[object, ...]]
    path: Path


def _verify(
    index: Index, scratch: Path, workers: int | None, progress: str | None, chunk: int
) -> tuple[pa.Table, Path]:
    """Return the whole table and the folder with its chunks."""
    workers = _cores() if workers is None else workers
    if workers < 1 or chunk < 1:
        raise ValueError(f"workers {workers} and chunk {chunk} must be 1 or more")
    places = _places(index)
    folder = scratch / f"verification-{_fingerprint(places, index.root)}"
    starts = range(0, len(index), chunk)
    chunks = [range(start, min(start + chunk, len(index))) for start in starts]
    tables = {rows: table for rows in chunks if (table := _read_chunk(folder, rows)) is not None}
    todo = [rows for rows in chunks if rows not in tables]
    jobs = (_make_job(places, rows, folder) for rows in todo)
    done = sum(len(rows) for rows in tables)
    try:
        with (
            tqdm(
                total=len(index), initial=done, desc=progress, unit="img", disable=progress is None
            ) as bar,
            contextlib.closing(_do_all(jobs, index.root, min(workers, len(todo)))) as outcomes,
        ):
            for rows, table in outcomes:
                tables[rows] = table
                bar.update(len(rows))
    except BrokenProcessPool as error:
        raise UserError(
            f"{folder}: a worker was killed, often for want of memory, which fewer workers need "
            f"less of; {GOES_ON}"
        ) from error
    in_order = [tables[rows] for rows in chunks]
    return pa.concat_tables([SCHEMA.empty_table(), *in_order]), folder


def _places(index: Index) -> pa.Table:
    names = list(Place._fields)
    schema = pa.schema([INDEX_SCHEMA.field(name) for name in names])
    # Only these: an index may have been read without the rest.
    return pa.Table.from_pandas(index.frame[names], schema, preserve_index=False)


def _cores() -> int:
    # A cluster lends a process some cores of a machine, not all.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _fingerprint(places: pa.Table, root: Path) -> str:
    """Return a name for exactly these rows, archives and rules.

    Raises:
        UserError: when the root or an archive is absent. Every image in it would be `missing`, and
            hours later.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, and the index has its images there; fetch them")
    archives = []
    for archive in sorted(places["archive"].unique().drop_null().to_pylist()):
        path = root / archive
        if not path.is_file():
            raise UserError(f"{path}: no such archive, and the index has images in it; fetch it")
        facts = path.stat()
        archives.append((archive, facts.st_size, facts.st_mtime_ns))
    # The decoders are part of the rules.
    rules = (_VERSION, PIL.__version__, str(root.resolve()), archives)
    digest = hashlib.blake2b(json.dumps(rules).encode(), digest_size=16)
    for start in range(0, places.num_rows, _FINGERPRINT_ROWS):
        columns = places.slice(start, _FINGERPRINT_ROWS).to_pydict()
        digest.update(json.dumps(columns).encode())
    return digest.hexdigest()


def _make_job(places: pa.Table, rows: range, folder: Path) -> _Job:
    columns = places.slice(rows.start, len(rows)).to_pydict()
    return _Job(rows, list(zip(*columns.values(), strict=True)), _chunk_path(folder, rows))


def _chunk_path(folder: Path, rows: range) -> Path:
    return folder / f"{rows.start:09}-{rows.stop:09}.parquet"


def _read_chunk(folder: Path, rows: range) -> pa.Table | None:
    """Return a finished chunk, or None if there is none or it is damaged."""
    path = _chunk_path(folder, rows)
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError):
        return None
    return table if table.schema.equals(SCHEMA) and _has_rows(table, rows) else None


def _has_rows(table: pa.Table, rows: range) -> bool:
    return np.array_equal(table["row"].to_numpy(), np.arange(rows.start, rows.stop))


def _write_table(table: pa.Table, path: Path) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def _to_frame(table: pa.Table) -> pd.DataFrame:
    # pandas' usual integers have no null, and its floats cannot hold 64 bits of a hash.
    frame: pd.DataFrame = table.to_pandas(types_mapper=_PANDAS_TYPES.get)
    return frame.astype({"row": "int64"})


def _count_findings(findings: pd.Series) -> dict[str, int]:
    counts: dict[str, int] = {}
    # Few combinations occur, so this is a short loop for a million rows too.
    for names, count in findings.value_counts().items():
        for name in str(names).split():
            counts[name] = counts.get(name, 0) + int(count)
    return counts


def _do_all(jobs: Iterable[_Job], root: Path, workers: int) -> Generator[tuple[range, pa.Table]]:
    """Do the jobs, in any order; yield the rows of each and their part of the table."""
    if workers > 1:
        yield from _do_in_processes(jobs, root, workers)
        return
    with ImageReader(root) as reader:
        for job in jobs:
            yield job.rows, _do(job, reader, stopped=lambda: False)


def _do_in_processes(
    jobs: Iterable[_Job], root: Path, workers: int
) -> Iterator[tuple[range, pa.Table]]:
    # Processes that start anew share no locks or threads with whatever calls this.
    context = multiprocessing.get_context("spawn")
    # Without a lock: a worker that is killed holding one would block everybody.
    stop = context.RawValue(ctypes.c_bool, False)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (root, stop))
    remaining = iter(jobs)

    def submit(count: int) -> set[Future[tuple[range, pa.Table]]]:
        return {pool.submit(_work, job) for job in itertools.islice(remaining, count)}

    try:
        # One chunk in hand and one to follow each, so that a million rows are not all in flight.
        pending = submit(2 * workers)
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            pending |= submit(len(finished))
            for future in finished:
                yield future.result()
    finally:
        # After an error or Ctrl-C, workers leave off after the image in hand.
        stop.value = True
        pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class _Worker:
    """What a worker process keeps from one job to the next."""

    reader: ImageReader
    stop: ctypes.c_bool


_worker: _Worker | None = None


def _start_worker(root: Path, stop: ctypes.c_bool) -> None:
    global _worker
    end_with_parent()
    # Ctrl-C reaches all processes of a terminal; the parent ends the workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _keep_freed_memory()
    _worker = _Worker(ImageReader(root), stop)


def _keep_freed_memory() -> None:
    """Ask glibc to keep what an image leaves behind for the next one; elsewhere do nothing.

    It gives megabytes back to the system at once, and fetching them again page by page takes a
    third of the time on a virtual machine.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def _work(job: _Job) -> tuple[range, pa.Table]:
    worker = _worker
    assert worker is not None, "the pool starts every worker"
    return job.rows, _do(job, worker.reader, stopped=lambda: bool(worker.stop.value))


class _StoppedError(Exception):
    """The parent wants no more; nobody is left to see this."""


def _do(job: _Job, reader: ImageReader, stopped: Callable[[], bool]) -> pa.Table:
    """Judge a chunk and write its part of the table."""
    verdicts = []
    with _silence():
        for values in job.places:
            if stopped():
                raise _StoppedError
            verdicts.append(judge(Place(*values), reader))  # type: ignore[arg-type]
    table = _to_table(verdicts, job.rows)
    _write_table(table, job.path)
    return table


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the decoders from talking: what they have to say is in the table.

    Pillow warns and logs, and the C libraries below it write to standard error by themselves.
    """
    logger = logging.getLogger("PIL")
    level = logger.level
    stderr = os.dup(2)
    try:
        with warnings.catch_warnings(), open(os.devnull, "wb") as nowhere:
            warnings.simplefilter("ignore")
            logger.setLevel(logging.CRITICAL + 1)
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        logger.setLevel(level)


def _to_table(verdicts: Sequence[Verdict], rows: range) -> pa.Table:
    columns: dict[str, Sequence[object]] = {"row": rows}
    for name in SCHEMA.names[1:]:
        if name in Verdict.__dataclass_fields__:
            columns[name] = [getattr(verdict, name) for verdict in verdicts]
        else:
            columns[name] = [getattr(verdict.header, name) for verdict in verdicts]
    return pa.table(columns, schema=SCHEMA)
