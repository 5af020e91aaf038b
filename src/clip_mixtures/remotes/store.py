"""Objects by the MD5 of their bytes, on a remote or in the cache: list, hash, read and replace.

This and :mod:`~clip_mixtures.remotes.records` are all that touches DVC's Python interface.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from clip_mixtures.errors import UserError
from clip_mixtures.remotes.failures import explain, says_no_bucket

if TYPE_CHECKING:
    from dvc_data.hashfile.db import HashFileDB

# Objects are read in pieces of this many bytes; s3fs would fetch 50 MB ahead, in every thread.
_CHUNK = 1 << 20
_AHEAD = 8 << 20
# How DVC marks the object that lists a folder.
FOLDER_SUFFIX = ".dir"


class Store:
    """Objects by the MD5 of their bytes.

    Every failure but the absence of an object is a UserError that says what to do.

    Args:
        odb: DVC's view of the place.
        url: its address, for messages.
        name: of the remote; None for the cache.
    """

    def __init__(self, odb: HashFileDB, url: str, name: str | None = None) -> None:
        self.name, self.url = name, url
        self._odb = odb
        self._options: dict[str, Any] = {"block_size": _AHEAD} if odb.fs.protocol == "s3" else {}

    def check_reachable(self) -> None:
        """Refuse a remote that cannot be looked into.

        Raises:
            UserError: naming it and the way out.
        """
        if not self._odb.fs.CAN_TRAVERSE:
            raise UserError(
                f"remote {self.name!r} ({self.url}): cannot be listed; use one on S3, on another "
                "object store, by SSH, or in a folder"
            )
        with self._explained():
            self._list("")

    def sizes(self, prefix: str) -> dict[str, int]:
        """List the objects whose names begin with two hexadecimal digits, with their bytes."""
        with self._explained():
            entries = self._list(prefix)
        return {
            prefix + str(entry["name"]).rstrip("/").rpartition("/")[2]: int(entry["size"])
            for entry in entries
            if entry["type"] == "file"
        }

    def digest(self, oid: str, tell: Callable[[int], object] | None = None) -> str:
        """Read an object, in pieces, and return the MD5 of its bytes as hexadecimal digits.

        Args:
            oid: its name.
            tell: called with the number of bytes of every piece; what it raises ends the reading.

        Raises:
            FileNotFoundError: when there is no such object.
            UserError: when it cannot be read.
        """
        md5 = hashlib.md5(usedforsecurity=False)
        for piece in self._pieces(oid):
            md5.update(piece)
            if tell is not None:
                tell(len(piece))
        return md5.hexdigest()

    def listing(self, oid: str) -> bytes | None:
        """Return the bytes of an object that lists a folder; None if it is absent or harmed."""
        try:
            content = b"".join(self._pieces(oid))
        except FileNotFoundError:
            return None
        good = hashlib.md5(content, usedforsecurity=False).hexdigest() == digest_of(oid)
        return content if good else None

    def replace(self, oid: str, source: Store) -> None:
        """Put an object of another store here, in place of what has its name.

        Readers see the old bytes or the new.
        """
        path = self._odb.oid_to_path(oid)
        with self._explained():
            self._odb.fs.makedirs(self._odb.fs.parent(path), exist_ok=True)
            # Not DVC's add(): where the disk can clone files, it leaves one alone that is there.
            self._odb.fs.put_file(source._odb.oid_to_path(oid), path)
            self._odb.protect(path)  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """Make DVC look anew what is here; it keeps a list, and would not push what is gone."""
        from dvc_data.hashfile.db import get_index

        with contextlib.closing(get_index(self._odb)) as index:
            index.clear()

    def _list(self, prefix: str) -> list[dict[str, Any]]:
        path = self._odb.fs.join(self._odb.path, prefix) if prefix else self._odb.path
        try:
            entries: list[dict[str, Any]] = list(self._odb.fs.ls(path, detail=True))
        except FileNotFoundError as error:
            if says_no_bucket(error):
                raise
            # S3 has no folders, and what nobody has pushed to yet is not there.
            return []
        finally:
            # Some file systems keep every entry, which are hundreds of bytes each.
            self._odb.fs.fs.invalidate_cache()
        return entries

    def _pieces(self, oid: str) -> Iterator[bytes]:
        path = self._odb.oid_to_path(oid)
        with self._explained(), self._odb.fs.open(path, "rb", **self._options) as file:
            while piece := file.read(_CHUNK):
                yield piece

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except FileNotFoundError as error:
            if says_no_bucket(error):
                raise explain(error, self.name, self.url) from error
            raise
        except Exception as error:
            raise explain(error, self.name, self.url) from error


def digest_of(oid: str) -> str:
    """Return the MD5 that an object's name stands for."""
    return oid.removesuffix(FOLDER_SUFFIX)
