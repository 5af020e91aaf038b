"""Where the members of an archive lie, so that an image is one ``pread`` away.

A distributed corpus is a handful of archives holding hundreds of thousands of images. Unpacked,
they cost a file-system entry each and hours of hashing; listed once, each member is an offset and
a length. Zip files and (uncompressed) tar files are understood, and a tar inside a tar, which is
how ImageNet's training images come.
"""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from clip_mixtures.errors import UserError

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_LOCAL_MAGIC = b"PK\x03\x04"
_TAR_BLOCK = 512


# What the standard library raises, between them, for archives that are not whole.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
)


@dataclasses.dataclass(frozen=True)
class Member:
    """A file inside an archive: its name and where its bytes are, in bytes from the start."""

    name: str
    offset: int
    length: int
    compression: str | None = None


def list_members(path: Path) -> list[Member]:
    """List the regular files of a ``.zip`` or ``.tar`` archive in archive order.

    Members of a tar inside a tar are named ``inner/member`` after the inner archive's stem.

    Raises:
        UserError: when the archive is absent, truncated, damaged, or packed in a way that cannot be
            read by offset.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such archive")
    try:
        if path.suffix == ".zip":
            return list(_zip_members(path))
        with open(path, "rb") as file:
            return list(_tar_members(file, 0, path.stat().st_size, prefix=""))
    except _DAMAGE as error:
        raise UserError(
            f"{path}: damaged or truncated archive ({error}); fetch or build it again"
        ) from error


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            if info.is_dir():
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
            stored = info.compress_type == zipfile.ZIP_STORED
            yield Member(info.filename, offset, info.compress_size, None if stored else "deflate")


def _tar_members(file: BinaryIO, start: int, length: int, prefix: str) -> Iterator[Member]:
    with tarfile.open(fileobj=_Slice(file, start, length), mode="r:") as archive:
        for info in archive:
            if not info.isfile():
                continue
            offset = start + info.offset_data
            if info.offset_data + info.size > length:
                raise tarfile.ReadError(f"{info.name} reaches past the end")
            if info.name.endswith(".tar"):
                inner = prefix + info.name.removesuffix(".tar") + "/"
                yield from _tar_members(file, offset, info.size, inner)
            else:
                yield Member(prefix + info.name, offset, info.size)
        # tarfile takes a damaged header or a clean cut for the end. A whole archive says so itself.
        mark = start + archive.offset
        if archive.offset + _TAR_BLOCK > length or any(os.pread(file.fileno(), _TAR_BLOCK, mark)):
            raise tarfile.ReadError(f"no end mark at byte {mark}")


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
