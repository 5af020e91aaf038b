"""Where the files of an archive or a folder lie, so that an image is one ``pread`` away.

A distributed corpus is a handful of archives holding hundreds of thousands of images. Unpacked,
they cost a file-system entry each and hours of hashing; listed once, each member is an offset and
a length. Zip files and (uncompressed) tar files are understood, and a tar inside a tar, which is
how ImageNet's training images come.

Nothing outside the corpus is ever read: links and names with ``..`` in them are refused.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from clip_mixtures.errors import UserError

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_LOCAL_MAGIC = b"PK\x03\x04"
_TAR_BLOCK = 512
# tar fills up records of 20 blocks, or of as many as it is told; a megabyte is beyond all use.
_LARGEST_PADDING = 1 << 20
_TAR_MAGICS = (b"ustar\x0000", b"ustar  \0")
_TAR_NUMBER = re.compile(rb" *([0-7]+)[ \0]*")
_TAR_TIMES = re.compile(rb"([0-9]+ [acm]time=[0-9.]+\n)+")

# What the standard library raises, between them, for archives that are not whole.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    UnicodeDecodeError,
    NotImplementedError,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A file inside an archive or a folder.

    Attributes:
        name: its path in the archive; for a folder, from the folder's parent.
        offset: of its bytes from the start of the archive; None for a file of its own.
        length: of its bytes as they are stored; None for a file of its own.
        compression: "deflate", or None for bytes that lie there as they are.
    """

    name: str
    offset: int | None = None
    length: int | None = None
    compression: str | None = None


def list_files(source: Path) -> list[Member]:
    """List the files of an archive in its order, or of a folder in the order of their names.

    Raises:
        UserError: as :func:`list_members` and :func:`list_folder` do.
    """
    return list_folder(source) if source.is_dir() else list_members(source)


def list_folder(folder: Path) -> list[Member]:
    """List the files under a folder, sorted by path, each named from the folder's parent.

    Raises:
        UserError: when there is no such folder, or it contains a link to anything but a file in it
            or a name that is not UTF-8.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if folder.name in ("", ".."):
        raise UserError(f"{folder}: its files are named after it, so give the folder by its name")
    home = folder.resolve()
    names: list[str] = []
    waiting = [(str(folder), folder.name)]
    while waiting:
        path, name = waiting.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                below = f"{name}/{entry.name}"
                if entry.is_symlink():
                    _check_link(Path(entry.path), home)
                if entry.is_dir():
                    waiting.append((entry.path, below))
                elif entry.is_file():
                    _check_text(folder, below)
                    names.append(below)
    return [Member(name) for name in sorted(names)]


def _check_link(link: Path, home: Path) -> None:
    # Not resolve, which fails for a link to itself.
    target = Path(os.path.realpath(link))
    if not target.is_file() or not target.is_relative_to(home):
        raise UserError(
            f"{link}: a link to {target}; links are followed to files inside {home} only. Put the "
            "files there (with DVC: cache.type hardlink or copy), or pack them into an archive"
        )


def list_members(path: Path) -> list[Member]:
    """List the regular files of a ``.zip`` or ``.tar`` archive in archive order.

    Members of a tar inside a tar are named ``inner/member`` after the inner archive's stem.

    Raises:
        UserError: when the archive is absent, truncated, damaged, or packed in a way that cannot be
            read by offset, or when a member is a link or has a name that leaves the archive or is
            not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such archive")
    try:
        if path.suffix == ".zip":
            return list(_zip_members(path))
        with open(path, "rb") as file:
            return list(_tar_members(path, file, 0, path.stat().st_size, prefix=""))
    except _DAMAGE as error:
        raise UserError(
            f"{path}: damaged or truncated archive ({error}); fetch or build it again"
        ) from error


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            _check_name(path, info.filename, is_link=stat.S_ISLNK(info.external_attr >> 16))
            if info.filename.endswith("/"):
                continue
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(
                    f"{path}: {info.filename} is packed with zip method {info.compress_type}; "
                    "only stored and deflated members can be read in place"
                )
            # The central directory does not say how long the local header is.
            file.seek(info.header_offset)
            fields = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if fields[0] != _LOCAL_MAGIC:
                raise zipfile.BadZipFile(f"no local header for {info.filename}")
            offset = info.header_offset + _LOCAL_HEADER.size + fields[-2] + fields[-1]
            if offset + info.compress_size > archive.start_dir:
                raise zipfile.BadZipFile(f"{info.filename} reaches past the end")
            stored = info.compress_type == zipfile.ZIP_STORED
            yield Member(info.filename, offset, info.compress_size, None if stored else "deflate")


def _tar_members(
    path: Path, file: BinaryIO, start: int, length: int, prefix: str
) -> Iterator[Member]:
    for entry in _tar_entries(path, file, start, length):
        _check_name(path, entry.name, is_link=entry.kind == "link")
        if entry.kind != "file":
            continue
        if entry.offset + entry.size > start + length:
            raise tarfile.ReadError(f"{entry.name} reaches past the end")
        if entry.name.endswith(".tar"):
            inner = prefix + entry.name.removesuffix(".tar") + "/"
            yield from _tar_members(path, file, entry.offset, entry.size, inner)
        else:
            yield Member(prefix + entry.name, entry.offset, entry.size)


class _Entry(NamedTuple):
    """An entry of a tar: its kind ("file", "link" or other) and where its bytes are."""

    kind: str
    name: str
    offset: int
    size: int


def _tar_entries(path: Path, file: BinaryIO, start: int, length: int) -> Iterator[_Entry]:
    """Yield the entries of a tar.

    Most archives of images consist of plain entries only, and these are read here, several times
    faster than tarfile does. All else, the end of the archive too, is left to tarfile.
    """
    position = start
    while entry := _plain_entry(file, position, start + length):
        if entry.kind != "times":
            yield entry
        position = entry.offset + -(-entry.size // _TAR_BLOCK) * _TAR_BLOCK
    rest = _Slice(file, position, start + length - position)
    with tarfile.open(fileobj=rest, mode="r:", encoding="utf-8") as archive:
        for info in archive:
            if info.issparse():
                raise UserError(f"{path}: {info.name} is a sparse file; pack it as a plain one")
            kind = "link" if info.issym() or info.islnk() else "file" if info.isfile() else "other"
            yield _Entry(kind, info.name, position + info.offset_data, info.size)
        # tarfile takes a damaged header or a clean cut for the end. A whole archive says so itself.
        mark = position + archive.offset
        if mark + _TAR_BLOCK > start + length or any(os.pread(file.fileno(), _TAR_BLOCK, mark)):
            raise tarfile.ReadError(f"no end mark at byte {mark}")
        _check_padding(file, mark, start + length)


def _check_padding(file: BinaryIO, mark: int, end: int) -> None:
    """Refuse what follows the end of a tar, unless it is the zeros that fill up its last record.

    Archives that were joined end to end, and archives whose rest was lost and filled with zeros,
    would otherwise pass for shorter ones.
    """
    if end - mark > _LARGEST_PADDING or any(os.pread(file.fileno(), end - mark, mark)):
        raise tarfile.ReadError(f"{end - mark} bytes follow the end mark at byte {mark}")


def _plain_entry(file: BinaryIO, position: int, end: int) -> _Entry | None:
    """Return the file, the folder or the times of a file whose header is here; None if another."""
    header = os.pread(file.fileno(), _TAR_BLOCK, position)
    size = _TAR_NUMBER.fullmatch(header, 124, 136)
    checksum = _TAR_NUMBER.fullmatch(header, 148, 156)
    if position + _TAR_BLOCK > end or header[257:265] not in _TAR_MAGICS or not (size and checksum):
        return None
    # The checksum is taken as if its own eight bytes were spaces.
    if int(checksum[1], 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        return None
    kind, offset, count = header[156:157], position + _TAR_BLOCK, int(size[1], 8)
    if kind == b"x" and count <= _TAR_BLOCK:
        records = os.pread(file.fileno(), count, offset)
        return _Entry("times", "", offset, count) if _TAR_TIMES.fullmatch(records) else None
    name = _plain_name(header)
    if name is None or kind not in (b"0", b"5"):
        return None
    return _Entry("file", name, offset, count) if kind == b"0" else _Entry("other", name, offset, 0)


def _plain_name(header: bytes) -> str | None:
    name, above = (header[a:b].partition(b"\0")[0] for a, b in ((0, 100), (345, 500)))
    try:
        return (above + b"/" + name if above else name).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _check_name(archive: Path, name: str, is_link: bool) -> None:
    if is_link:
        raise UserError(f"{archive}: {name} is a link; pack the file itself")
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise UserError(f"{archive}: member {name!r} leaves the archive; it is not to be trusted")
    _check_text(archive, name)


def _check_text(source: Path, name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{source}: the name {name!r} is not UTF-8; rename the file") from error


class _Slice(io.RawIOBase):
    """A window of a larger file that tarfile can read as if it were a file of its own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = origin + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        remaining = max(self._length - self._position, 0)
        size = remaining if size < 0 else min(size, remaining)
        data = os.pread(self._file.fileno(), size, self._start + self._position)
        self._position += len(data)
        return data
