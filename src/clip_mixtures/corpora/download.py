"""The public corpora, fetched over HTTP: continued after a break, checked, in place whole.

An unfinished download is ``<file>.part``. Beside it, ``<file>.part.json`` remembers the address and
the server's mark of the version (ETag or Last-Modified), so that a part is never continued with the
bytes of another file. The part itself is the lock: one process at a time writes to it.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import http.client
import importlib.resources
import io
import json
import os
import re
import shutil
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Collection, Iterator
from email.message import Message
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NoReturn

from tqdm import tqdm

from clip_mixtures import __version__
from clip_mixtures.errors import UserError, unknown
from clip_mixtures.files import atomic_write_json, replacing

# Archives of which one member is wanted beside them, as a file.
UNPACKED = {"imagenet_captions.zip": "imagenet_captions.json"}

_TIMEOUT_SECONDS = 60
_LONGEST_PAUSE_SECONDS = 60
_CHUNK_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")

# What a connection that fails raises, between urllib and the sockets under it; a ValueError is for
# a redirect to what is no address.
_NETWORK = (OSError, http.client.HTTPException, ValueError)
# What zipfile raises for archives that are not whole, or packed in a way it does not know.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError)


@dataclasses.dataclass(frozen=True)
class Download:
    """One row of downloads.csv: a file of a public corpus, and what is known of its bytes.

    Attributes:
        dataset: the corpus.
        file: the name to keep it under.
        url: where its makers publish it.
        size: its length in bytes, where known.
        md5: its MD5 in hexadecimal digits, where known.
    """

    dataset: str
    file: str
    url: str
    size: int | None
    md5: str | None


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Where the bytes of a part are from; the validator is the server's mark of the version."""

    url: str
    validator: str | None


@dataclasses.dataclass(frozen=True)
class _Part:
    """An unfinished download that this process alone has open, for appending."""

    path: Path
    file: BinaryIO

    @property
    def sidecar(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def size(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def origin(self) -> _Origin | None:
        """Return what is remembered; a damaged sidecar is as good as none."""
        try:
            recorded = json.loads(self.sidecar.read_text(encoding="utf-8"))
            url, validator = recorded["url"], recorded["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return _Origin(url, validator) if isinstance(validator, str | None) else None

    def begin(self, origin: _Origin) -> None:
        # In this order: bytes never lie beside a memory of another origin.
        self.file.truncate(0)
        atomic_write_json(self.sidecar, dataclasses.asdict(origin))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.sidecar.unlink(missing_ok=True)


class _Broken(Exception):
    """A transfer that ended before its end, and is worth another attempt."""


def datasets() -> list[str]:
    """Return the corpora that can be fetched."""
    return list(dict.fromkeys(download.dataset for download in _table()))


def downloads(dataset: str) -> list[Download]:
    """Return the files of a corpus.

    Args:
        dataset: one of :func:`datasets`.

    Raises:
        UserError: for an unknown dataset.
    """
    if dataset not in datasets():
        raise unknown("dataset", dataset, datasets(), "download")
    return [download for download in _table() if download.dataset == dataset]


def _table() -> list[Download]:
    file = importlib.resources.files("clip_mixtures.corpora") / "data/downloads.csv"
    return [
        Download(
            dataset=row["dataset"],
            file=row["file"],
            url=row["url"],
            size=int(row["bytes"]) if row["bytes"] else None,
            md5=row["md5"] or None,
        )
        for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))
    ]


def download_dataset(
    dataset: str,
    folder: Path,
    only: Collection[str] | None = None,
    mirror: str | None = None,
    progress: bool = True,
) -> list[Path]:
    """Fetch the files of a corpus, and unpack those that are wanted unpacked.

    Args:
        dataset: one of :func:`datasets`.
        folder: where to put the files; made when it is not there.
        only: names of the files to fetch; all by default.
        mirror: an address under which the files lie by their bare names; by default each is
            fetched from its makers.
        progress: show a bar for each file.

    Returns:
        The files, in the order of :func:`downloads`; what was unpacked from them is not listed.

    Raises:
        UserError: for an unknown dataset or file, and as :func:`fetch` does; also when an archive
            lacks the member wanted from it, or a file that is there differs from that member.
    """
    listed = downloads(dataset)
    names = [download.file for download in listed]
    for name in only or ():
        if name not in names:
            raise unknown("file", name, names, f"download {dataset}")
    paths = []
    for download in listed:
        if only is not None and download.file not in only:
            continue
        paths.append(fetch(download, folder, mirror, progress))
        if download.file in UNPACKED:
            _unpack(paths[-1], UNPACKED[download.file])
    return paths


def fetch(
    download: Download,
    folder: Path,
    mirror: str | None = None,
    progress: bool = True,
    attempts: int = 5,
    pause: float = 1.0,
) -> Path:
    """Fetch one file, unless it is there; go on from where an earlier call was cut off.

    Args:
        download: which file.
        folder: where to put it; made when it is not there.
        mirror: an address under which the file lies by its bare name, in place of its own address.
        progress: show a bar.
        attempts: how many attempts in a row may fail to bring the download any further.
        pause: seconds to wait after a failed attempt; each further one without progress doubles it,
            up to a minute.

    Returns:
        The finished file, whose size and MD5 are the known ones.

    Raises:
        UserError: when the file that is there is not the right one (it is left as it is), the
            server refuses or keeps breaking off, what it sends is not the right file, the disk has
            no room, another process fetches the file, or the address is not http or https.
    """
    url = _address(download, mirror)
    target = folder / download.file
    try:
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{download.file}.part") as part:
                # Whoever held the part before may have finished it.
                if not target.exists():
                    _transfer(download, url, part, progress, attempts, pause)
                    _finish(download, url, part, target, progress)
                    return target
        if fault := _fault(download, target, progress):
            raise UserError(f"{target}: {fault}; move the file away and it is fetched again")
        return target
    except OSError as error:
        # Those of the network are dealt with where they happen.
        raise UserError(
            f"{error.filename or target}: {error.strerror or error}; mend that and try again"
        ) from error


def _address(download: Download, mirror: str | None) -> str:
    """Return the address of a file, after a look at the mirror that a user wrote."""
    if mirror is None:
        return download.url
    try:
        parts = urllib.parse.urlsplit(mirror)
        # A login would be sent as part of the host's name; a bad port is found when asked for.
        usable = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.username or parts.query or parts.fragment)
            and all("!" <= character <= "~" for character in mirror)
        )
    except ValueError:
        usable = False
    if not usable:
        raise UserError(
            f"mirror {mirror!r}: not an http or https address of a folder; "
            "write it like https://host/folder"
        )
    return f"{mirror.rstrip('/')}/{download.file}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[_Part]:
    """Hold an unfinished download; the kernel lets go of it however the process ends."""
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(open(path, "a+b"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{path}: another process is fetching this file; wait for it to end"
                ) from None
            # Between the two calls the last holder may have given the file its final name.
            if _has_name(file, path):
                break
        part = _Part(path, file)
        try:
            yield part
        finally:
            if part.size() == 0 and _has_name(file, path):
                part.remove()


def _has_name(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _transfer(
    download: Download, url: str, part: _Part, progress: bool, attempts: int, pause: float
) -> None:
    """Bring the part to its end, in as many attempts as it takes while they bring it further."""
    # A server that cannot continue starts anew each time. Progress is what no attempt had reached,
    # or one that always breaks off would be asked for ever.
    furthest = _reached(download, url, part)
    failures = 0
    with tqdm(
        desc=download.file, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress
    ) as bar:
        while True:
            try:
                _attempt(download, url, part, bar)
                return
            except _Broken as broken:
                reached = _reached(download, url, part)
                failures = 0 if reached > furthest else failures + 1
                furthest = max(furthest, reached)
                if failures >= attempts:
                    kept = f"; {reached:,} bytes are kept in {part.path}" if reached else ""
                    raise UserError(
                        f"{url}: {broken}; gave up after {attempts} attempts without progress"
                        f"{kept}; try again later, or name a mirror"
                    ) from broken
                bar.set_postfix_str("trying again")
                time.sleep(min(pause * 2 ** max(failures - 1, 0), _LONGEST_PAUSE_SECONDS))


def _reached(download: Download, url: str, part: _Part) -> int:
    """Return how many bytes of the part the next attempt can go on from."""
    origin = part.origin()
    if origin is None or origin.url != url:
        return 0
    # Without either, nothing would tell the halves of two versions from one whole file.
    return part.size() if origin.validator or download.md5 else 0


def _attempt(download: Download, url: str, part: _Part, bar: tqdm[NoReturn]) -> None:
    """Ask for what the part lacks, and append it."""
    offset = _reached(download, url, part)
    try:
        response = _open(url, offset, part.origin())
    except urllib.error.HTTPError as error:
        with error:
            _take_refusal(download, url, part, offset, error)
    except _NETWORK as error:
        raise _Broken(_reason(error)) from error
    else:
        with response:
            _receive(download, url, part, offset, response, bar)


def _open(url: str, offset: int, origin: _Origin | None) -> http.client.HTTPResponse:
    headers = {"User-Agent": f"clip-mixtures/{__version__}"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    if offset and origin and origin.validator:
        headers["If-Range"] = origin.validator
    # Not urlopen, which would follow a redirect to ftp as well.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers=headers)
    response: http.client.HTTPResponse = opener.open(request, timeout=_TIMEOUT_SECONDS)
    return response


def _reason(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__


def _take_refusal(
    download: Download, url: str, part: _Part, offset: int, error: urllib.error.HTTPError
) -> None:
    """Return when the part turns out to be whole, else raise what a refusal comes to."""
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
        if _content_range(error.headers)[1] == offset:
            return
        part.file.truncate(0)
        raise _Broken("the server has fewer bytes than the part")
    answer = f"the server answers {error.code} ({_reason(error)})"
    if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _Broken(answer)
    raise UserError(
        f"{url}: {answer}; name a mirror, or put {download.file} into {part.path.parent} yourself"
    )


def _receive(
    download: Download,
    url: str,
    part: _Part,
    offset: int,
    response: http.client.HTTPResponse,
    bar: tqdm[NoReturn],
) -> None:
    """Append the body of an answer to the part, from byte ``offset`` or from the start."""
    origin = _Origin(url, _validator(response.headers))
    total = _total(url, part, offset, origin, response)
    if response.status == HTTPStatus.OK:
        offset = 0
    if total is None:
        total = download.size
    elif download.size not in (None, total):
        # An answer from the start says nothing against a part of before.
        if offset:
            part.remove()
        raise UserError(
            f"{url}: the server has {total:,} bytes, not the {download.size:,} of the published "
            "file; try again later, or name a mirror"
        )
    if offset == 0:
        part.begin(origin)
    if total is not None:
        _check_room(part.path.parent, download.file, total - offset)
    _restart_bar(bar, offset, total)
    _append(part.file, response, bar)
    size = part.size()
    if total is not None and size < total:
        raise _Broken(f"the connection ended after {size:,} of {total:,} bytes")


def _total(
    url: str, part: _Part, offset: int, origin: _Origin, response: http.client.HTTPResponse
) -> int | None:
    """Return how long the whole file is, or None where the answer does not say."""
    if response.status == HTTPStatus.OK:
        return response.length
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        raise UserError(
            f"{url}: the server answers {response.status} ({response.reason}) and no file; "
            "name a mirror"
        )
    start, total = _content_range(response.headers)
    remembered = part.origin() if offset else None
    # A server may overlook If-Range; its answer then has the mark of another version.
    other = remembered and origin.validator and remembered.validator not in (None, origin.validator)
    if start != offset or other:
        part.file.truncate(0)
        raise _Broken("the server answers with other bytes than it was asked for")
    if total is None and response.length is not None:
        return offset + response.length
    return total


def _content_range(headers: Message) -> tuple[int | None, int | None]:
    """Return first byte and whole length of a Content-Range, each None where it is not said."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if match is None:
        return None, None
    start, total = match.groups()
    return int(start) if start else None, int(total) if total != "*" else None


def _validator(headers: Message) -> str | None:
    """Return the mark of the version that If-Range may name: a strong ETag, else the date."""
    tag: str | None = headers.get("ETag")
    return tag if tag and tag.startswith('"') else headers.get("Last-Modified")


def _check_room(folder: Path, name: str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: {name} needs {needed:,} bytes and {free:,} are free; "
            "make room or choose another folder"
        )


def _restart_bar(bar: tqdm[NoReturn], offset: int, total: int | None) -> None:
    """Set a bar to where the transfer goes on; its rate counts from there."""
    bar.reset(total)
    bar.initial = bar.n = bar.last_print_n = offset
    bar.set_postfix_str("")


def _append(file: BinaryIO, response: http.client.HTTPResponse, bar: tqdm[NoReturn]) -> None:
    left = response.length
    # Not past the length: a server that keeps the connection open would keep us waiting.
    while left is None or left > 0:
        try:
            # read1 hands out what has come in; read would lose it when the connection breaks.
            chunk = response.read1(_CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES))
        except _NETWORK as error:
            raise _Broken(_reason(error)) from error
        if not chunk:
            return
        file.write(chunk)
        bar.update(len(chunk))
        left = None if left is None else left - len(chunk)


def _finish(download: Download, url: str, part: _Part, target: Path, progress: bool) -> None:
    """Give a part that is the right file its name, or remove it."""
    part.file.flush()
    os.fsync(part.file.fileno())
    if fault := _fault(download, part.path, progress):
        part.remove()
        raise UserError(f"{url}: {fault}; the download was removed, try again or name a mirror")
    os.replace(part.path, target)
    part.sidecar.unlink(missing_ok=True)


def _fault(download: Download, path: Path, progress: bool) -> str | None:
    """Say why a file is not the published one, or nothing when as far as is known it is."""
    size = path.stat().st_size
    if download.size not in (None, size):
        return f"has {size:,} bytes, not the {download.size:,} of the published file"
    if download.md5 is not None:
        found = _md5(path, progress)
        return None if found == download.md5 else f"MD5 is {found}, not {download.md5}"
    if download.file.endswith(".zip"):
        return _zip_fault(path)
    return None


def _md5(path: Path, progress: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with (
        open(path, "rb") as file,
        tqdm(
            desc=f"checking {path.name}",
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            leave=False,
            disable=not progress,
        ) as bar,
    ):
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _zip_fault(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (*_DAMAGE, OSError) as error:
        return f"not a whole zip archive ({_reason(error)})"
    return f"damaged zip archive (at {damaged!r})" if damaged else None


def _unpack(archive: Path, name: str) -> None:
    """Put the member ``name`` of a zip beside it, unless it lies there already."""
    target = archive.with_name(name)
    try:
        with zipfile.ZipFile(archive) as opened:
            info = _member(archive, opened, name)
            if target.exists():
                if (target.stat().st_size, _crc32(target)) != (info.file_size, info.CRC):
                    raise UserError(
                        f"{target}: differs from {info.filename} in {archive.name}; move the file "
                        "away and it is unpacked again"
                    )
                return
            _check_room(target.parent, name, info.file_size)
            with (
                opened.open(info) as source,
                replacing(target) as temporary,
                open(temporary, "wb") as unpacked,
            ):
                shutil.copyfileobj(source, unpacked, _CHUNK_BYTES)
    except OSError as error:
        raise UserError(
            f"{error.filename or target}: {error.strerror or error}; mend that and try again"
        ) from error
    except _DAMAGE as error:
        raise UserError(
            f"{archive}: cannot unpack {name} ({_reason(error)}); move the archive away and it is "
            "fetched again"
        ) from error


def _member(archive: Path, opened: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Find the one member of that name, at the top or in a folder of the archive."""
    found = [info for info in opened.infolist() if PurePosixPath(info.filename).name == name]
    if len(found) != 1:
        raise UserError(
            f"{archive}: has {len(found)} members named {name}, not one; unpack it yourself"
        )
    place = PurePosixPath(found[0].filename)
    if place.is_absolute() or ".." in place.parts:
        raise UserError(
            f"{archive}: member {found[0].filename!r} points out of the archive; do not trust it, "
            "move it away"
        )
    return found[0]


def _crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
