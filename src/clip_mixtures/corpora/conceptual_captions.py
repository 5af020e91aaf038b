"""Captioned base sets such as CC3M and CC12M, as a list of captions or as WebDataset shards.

A list has the header ``filepath<TAB>title`` and one row an image; shards are tar files in which an
image and its caption lie side by side, ``000012.jpg`` and ``000012.txt``. Shards are read into
columns one by one; a list with images takes about half a gigabyte of memory for a million rows.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import multiprocessing
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from clip_mixtures.archives import Member, list_files, list_members
from clip_mixtures.corpora.base import BaseIndex, base_frame, left_out
from clip_mixtures.errors import UserError
from clip_mixtures.index import Index

HEADER = ("filepath", "title")
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")

# Rows are turned into columns this many at a time.
_CHUNK = 1 << 17

_Record = tuple[int, Sequence[str]]


def index_tsv(
    corpus: str,
    train: Path,
    validation: Path | None,
    images: Path | None,
    quoted: bool = False,
) -> BaseIndex:
    r"""Index a base set whose captions are lists with the columns filepath and title.

    The paths of the lists may start inside ``images`` (``0001.jpg``, ``./0001.jpg``), with its
    name, for an archive without the ending (``images/0001.jpg``), or be absolute paths into it, as
    if an archive were unpacked beside itself. All rows have one form: the one that finds the most
    images.

    Args:
        corpus: the base set's name.
        train: the list of the training images.
        validation: the list of the validation images, which get the split "test"; None for none.
        images: the folder or archive with the images; its parent is the corpus root. None to index
            the text alone, the paths as they are.
        quoted: the lists quote fields with tabs, line breaks or quotes, and double the quotes.
            Without it, a line is a path, a tab and the caption, whatever the caption contains;
            lines end with "\n" or, if the header does, with "\r\n".

    Raises:
        UserError: for an absent list or images, a fault in a row, a path that is listed twice, or
            when no path names an image.
    """
    files = {"train": train} | ({} if validation is None else {"test": validation})
    read = [_read_list(path, quoted).assign(split=split) for split, path in files.items()]
    rows = pd.concat(read, ignore_index=True)
    _check_paths(rows, files)
    if images is None:
        frame = _frame(corpus, rows, None, None)
        return BaseIndex(Index(frame, train.parent))
    # The leading dot is how `tar cf images.tar .` writes names.
    there = {member.name.removeprefix("./"): member for member in list_files(images)}
    places = _Places(there, *_form(rows["path"], images, there))
    frame = _frame(corpus, rows, places, images.name if images.is_file() else None)
    if frame.empty:
        raise UserError(
            f"{train}: none of its paths names an image in {images}; the first path is "
            f"{rows['path'].iloc[0]!r} and the first image {next(iter(there), 'absent')!r}"
        )
    missing = len(rows) - len(frame)
    return BaseIndex(Index(frame, images.parent), left_out(without_an_image=missing))


def _read_list(path: Path, quoted: bool) -> pd.DataFrame:
    """Return the columns path, caption and line, which is the one where a row begins."""
    with contextlib.closing(_quoted(path) if quoted else _unquoted(path)) as records:
        _, header = next(records, (1, ()))
        if tuple(header) != HEADER:
            found = "\t".join(header)[:80]
            raise UserError(
                f"{path}:1: the header is {found!r}; a list of captions begins with "
                f"{chr(9).join(HEADER)!r}"
            )
        parts = []
        while chunk := list(itertools.islice(records, _CHUNK)):
            parts.append(_columns(path, chunk))
    if not parts:
        raise UserError(f"{path}: has a header and no rows")
    return pd.concat(parts, ignore_index=True)


def _columns(path: Path, records: Sequence[_Record]) -> pd.DataFrame:
    for line, fields in records:
        if len(fields) < 2:
            found = "".join(fields)[:80]
            raise UserError(f"{path}:{line}: {found!r} has no tab; a row is <path><TAB><caption>")
        if len(fields) > 2:
            raise UserError(
                f"{path}:{line}: {len(fields)} fields; quote a caption with tabs, or read the list "
                "as one without quoting"
            )
        if not fields[0]:
            raise UserError(f"{path}:{line}: the path is empty; a row is <path><TAB><caption>")
    return pd.DataFrame(
        {
            "path": pd.Series([fields[0] for _, fields in records], dtype="str"),
            "caption": pd.Series([fields[1] for _, fields in records], dtype="str"),
            "line": pd.Series([line for line, _ in records], dtype="int64"),
        }
    )


def _unquoted(path: Path) -> Generator[_Record]:
    """Yield the number and the fields of every line."""
    carriage = ""
    for number, line in enumerate(_lines(path), start=1):
        if number == 1 and line.endswith("\r\n"):
            carriage = "\r"
        yield number, line.removesuffix("\n").removesuffix(carriage).split("\t", 1)


def _quoted(path: Path) -> Generator[_Record]:
    """Yield the first line's number and the fields of every record."""
    reader = csv.reader(_lines(path), delimiter="\t", strict=True)
    first = 1
    try:
        for fields in reader:
            yield first, fields
            first = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}:{first}: the row that begins here is not quoted properly ({error}); close its "
            "quotes and double those inside it, or read the list as one without quoting"
        ) from error


def _lines(path: Path) -> Iterator[str]:
    r"""Yield the lines with their ends; nothing but "\n" ends one."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}:{number}: not UTF-8 (byte {error.start} of the line); convert it"
                    ) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _check_paths(rows: pd.DataFrame, files: Mapping[str, Path]) -> None:
    """Refuse a path that is listed twice, in one list or in both."""
    repeated = rows["path"].duplicated()
    if not repeated.any():
        return
    path = rows.loc[repeated, "path"].iloc[0]
    both = rows.loc[rows["path"] == path, ["split", "line"]].itertuples(index=False)
    first, again = (f"{files[str(split)]}:{line}" for split, line in itertools.islice(both, 2))
    raise UserError(f"{again}: {path!r} is listed already at {first}; keep one of the two rows")


class _Places(NamedTuple):
    """The images by name, and what to take from a listed path's start and put there instead."""

    there: Mapping[str, Member]
    old: str
    new: str

    def find(self, path: str) -> Member | None:
        if not path.startswith(self.old):
            return None
        return self.there.get(self.new + path[len(self.old) :])


def _form(paths: pd.Series, images: Path, there: Mapping[str, Member]) -> tuple[str, str]:
    """Return the start of the listed paths and that of the images' names which finds the most."""
    is_folder = images.is_dir()
    new = f"{images.name}/" if is_folder else ""
    unpacked = images if is_folder else images.with_suffix("")
    absolute = [Path(os.path.abspath(unpacked)), unpacked.resolve()]
    starts = ["", "./", f"{unpacked.name}/", *(f"{path.as_posix()}/" for path in absolute)]
    best, most = starts[0], 0
    for old in starts:
        find = _Places(there, old, new).find
        found = sum(find(path) is not None for path in paths)
        if found > most:
            best, most = old, found
        if most == len(paths):
            break
    return best, new


def _frame(
    corpus: str, rows: pd.DataFrame, places: _Places | None, archive: str | None
) -> pd.DataFrame:
    """Return the index rows of those that have an image, or of all if no images are given."""
    parts = []
    missing = 0
    for start in range(0, len(rows), _CHUNK):
        chunk = rows.iloc[start : start + _CHUNK]
        find = Member if places is None else places.find
        found = [find(path) for path in chunk["path"]]
        kept = chunk[[member is not None for member in found]]
        members = [member for member in found if member is not None]
        missing += len(chunk) - len(members)
        captions, splits = kept["caption"].tolist(), kept["split"].tolist()
        parts.append(base_frame(corpus, members, captions, splits, archive))
    frame = pd.concat(parts, ignore_index=True)
    assert len(frame) + missing == len(rows), "rows out are rows in"
    return frame


def index_webdataset(
    corpus: str,
    shards: Path,
    validation_per_mille: int = 0,
    workers: int | None = None,
    progress: str | None = None,
) -> BaseIndex:
    """Index a base set that comes as WebDataset shards.

    A sample is an image, ``<key>.jpg`` (or jpeg, png, webp), with its caption in ``<key>.txt`` or,
    where there is none, under "caption" in ``<key>.json``. Other and hidden files are passed over.
    An image's path is ``<shard>/<key>.jpg``.

    Args:
        corpus: the base set's name.
        shards: the folder with the ``*.tar`` files, which is the corpus root.
        validation_per_mille: how many of 1000 images, chosen by the hash of their path, get the
            split "test".
        workers: processes to read with; one for each core by default, 1 reads in this process. The
            result is the same.
        progress: label of the progress bar; no bar if None.

    Raises:
        UserError: when there are no shards or samples, a shard is damaged, a sample has two images
            or captions, or a caption cannot be read.
    """
    if not 0 <= validation_per_mille < 1000:
        raise UserError(f"{shards}: validation_per_mille is {validation_per_mille}, not 0 to 999")
    if not shards.is_dir():
        raise UserError(f"{shards}: no such folder of shards")
    paths = sorted(path for path in shards.glob("*.tar") if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{shards}: holds no .tar file; a shard is one")
    jobs = [_Job(corpus, path, validation_per_mille) for path in paths]
    if workers is None:
        # A cluster lends a process some cores of a machine, not all.
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    with contextlib.closing(_read_shards(jobs, workers)) as results:
        bar = tqdm(results, total=len(jobs), desc=progress, unit="shard", disable=progress is None)
        read = list(bar)
    frame = pd.concat([shard.frame for shard in read], ignore_index=True)
    if frame.empty:
        raise UserError(
            f"{shards}: no sample in {len(paths)} shards has both an image and a caption; a sample "
            "is <key>.jpg with <key>.txt or <key>.json"
        )
    without_caption = sum(shard.without_caption for shard in read)
    without_image = sum(shard.without_image for shard in read)
    return BaseIndex(
        Index(frame, shards),
        left_out(without_a_caption=without_caption, without_an_image=without_image),
    )


class _Job(NamedTuple):
    corpus: str
    shard: Path
    validation_per_mille: int


class _Shard(NamedTuple):
    frame: pd.DataFrame
    without_caption: int
    without_image: int


def _read_shards(jobs: Sequence[_Job], workers: int) -> Generator[_Shard]:
    """Yield the shards' samples in order."""
    workers = min(workers, len(jobs))
    if workers == 1:
        yield from map(_read_shard, jobs)
        return
    # Processes that start anew share no locks or threads with whatever calls this.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context) as pool:
            yield from pool.map(_read_shard, jobs)
    except BrokenProcessPool as error:
        raise UserError(
            f"{jobs[0].shard.parent}: a worker was killed, often for want of memory, which fewer "
            "workers need less of"
        ) from error


def _read_shard(job: _Job) -> _Shard:
    images, texts, metadata = _samples(job.shard)
    members, captions, splits = [], [], []
    with open(job.shard, "rb") as file:
        for key, image in images.items():
            caption = _caption(job.shard, file.fileno(), texts.get(key), metadata.get(key))
            if caption is not None:
                path = f"{job.shard.stem}/{image.name.removeprefix('./')}"
                members.append(Member(path, image.offset, image.length))
                captions.append(caption)
                splits.append(_split(path, job.validation_per_mille))
    return _Shard(
        base_frame(job.corpus, members, captions, splits, job.shard.name),
        without_caption=len(images) - len(members),
        without_image=len((texts.keys() | metadata.keys()) - images.keys()),
    )


def _samples(shard: Path) -> tuple[dict[str, Member], dict[str, Member], dict[str, Member]]:
    """Return a shard's images, texts and metadata by key, in the order in which they lie there."""
    images: dict[str, Member] = {}
    texts: dict[str, Member] = {}
    metadata: dict[str, Member] = {}
    kinds = dict.fromkeys(IMAGE_ENDINGS, images) | {"txt": texts, "json": metadata}
    for member in list_members(shard):
        name = member.name.removeprefix("./")
        key, _, ending = name.rpartition(".")
        of_kind = kinds.get(ending.lower())
        if of_kind is None or name.rsplit("/", 1)[-1].startswith("."):
            continue
        if key in of_kind:
            raise UserError(
                f"{shard}: sample {key!r} has both {of_kind[key].name!r} and {member.name!r}; one "
                "has to go"
            )
        of_kind[key] = member
    return images, texts, metadata


def _caption(shard: Path, file: int, text: Member | None, metadata: Member | None) -> str | None:
    """Return a sample's caption, or None if it has none."""
    if text is not None:
        caption = _read(shard, file, text)
        # One line end belongs to the file, not to the caption.
        return caption.removesuffix("\r\n" if caption.endswith("\r\n") else "\n")
    if metadata is None:
        return None
    try:
        value = json.loads(_read(shard, file, metadata)).get("caption")
    except (json.JSONDecodeError, AttributeError) as error:
        raise UserError(f"{shard}: {metadata.name!r} is no JSON object ({error})") from error
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(f"{shard}: {metadata.name!r}: the caption {value!r} is no text")
    # JSON can hold half a surrogate pair, which no UTF-8 file can.
    return value.encode("utf-8", errors="replace").decode("utf-8")


def _read(shard: Path, file: int, member: Member) -> str:
    assert member.length is not None
    assert member.offset is not None
    try:
        return os.pread(file, member.length, member.offset).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{shard}: {member.name!r} is not UTF-8 (byte {error.start}); convert it"
        ) from error


def _split(path: str, validation_per_mille: int) -> str:
    digest = hashlib.sha256(path.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 1000 < validation_per_mille else "train"
