"""The index: one row an image, one schema, checked whenever a file is written or read.

An index names every image of a corpus once and says where its bytes are, so that everything after
it (mixtures, training, evaluation) handles row numbers and never walks a directory again. It is
Parquet rather than a tab-separated text because free captions contain quotes, tabs and the words
``NA`` and ``None``, and text readers turn those into lost rows without a word.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clip_mixtures.archives import Member
from clip_mixtures.errors import UserError
from clip_mixtures.files import replacing

SPLITS = ("train", "test")
# Row numbers of an index.
Rows = npt.NDArray[np.int64]
# The index of a base set is called after it; the others are one of a kind.
BASE_PREFIX = "base-"
# Rows are read back in groups of this many, of which this many are held at a time.
_GROUP_ROWS = 1 << 16
_GROUPS_HELD = 8

SCHEMA = pa.schema(
    [
        # Relative to the corpus root, in the published naming: sketch/lion/sketch_174_000001.jpg
        pa.field("path", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        # Null in a base set, whose images carry free text instead of a label.
        pa.field("class_id", pa.int32()),
        pa.field("class_name", pa.string()),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("aligned_caption", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        # Relative to the corpus root; null when the image is a file of its own.
        pa.field("archive", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        # "deflate" for a compressed zip member, null when the bytes lie there as they are.
        pa.field("compression", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Index:
    """A corpus' rows and the folder that their paths and archives are relative to.

    Attributes:
        frame: one row an image, the columns of :data:`SCHEMA`, row numbers 0..n-1.
        root: the corpus root.
    """

    frame: pd.DataFrame
    root: Path

    def __len__(self) -> int:
        return len(self.frame)

    def class_names(self) -> list[str]:
        """Return the class names by class id, 0..C-1.

        Raises:
            UserError: when an id has no name or two.
        """
        pairs = self.frame[["class_id", "class_name"]].dropna().drop_duplicates()
        pairs = pairs.sort_values("class_id")
        ids = [int(number) for number in pairs["class_id"]]
        if ids != list(range(len(ids))):
            raise UserError(
                f"{self.root}: the labels are not 0, 1, ... {len(ids) - 1}, each with one class "
                "name; number the classes of the lists anew"
            )
        return [str(name) for name in pairs["class_name"]]

    def domains(self) -> list[str]:
        """Return the domains in order of first appearance."""
        return [str(domain) for domain in self.frame["domain"].unique()]


def placed(members: Sequence[Member], archive: str | None) -> dict[str, Any]:
    """Return the schema's columns that say where the bytes of some images are.

    Args:
        members: the images, in row order, all of one archive or folder.
        archive: the archive's path from the corpus root; None for a folder, whose images are files.
    """
    inside = archive is not None
    return {
        "archive": pd.Series([archive] * len(members), dtype="str"),
        "offset": nullable_integers([member.offset if inside else None for member in members]),
        "length": nullable_integers([member.length if inside else None for member in members]),
        "compression": pd.Series([member.compression for member in members], dtype="str"),
    }


def nullable_integers(values: Sequence[int | None]) -> Any:
    """Return a 64-bit integer column in which None is a null and no number becomes a float."""
    return pd.array(list(values), dtype="Int64")


def check(frame: pd.DataFrame, where: str = "index") -> pa.Table:
    """Return ``frame`` as a table of :data:`SCHEMA`.

    Raises:
        UserError: for a missing or unknown column, a wrong type, a null where none may be, a path
            listed twice, an unknown split or an incomplete place in an archive.
    """
    missing = [name for name in SCHEMA.names if name not in frame.columns]
    extra = [str(name) for name in frame.columns if name not in SCHEMA.names]
    if missing or extra:
        raise UserError(f"{where}: columns missing {missing}, not in the schema {extra}")
    for field in SCHEMA:
        if not field.nullable and frame[field.name].isna().any():
            raise UserError(f"{where}: column {field.name!r} has empty entries")
    try:
        table = pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False)
    # pyarrow raises plain ValueErrors for nulls, and for text that is no valid Unicode.
    except (ValueError, pa.ArrowTypeError) as error:
        raise UserError(f"{where}: a column does not fit the schema: {error}") from error
    for problem, rows in _problems(frame):
        if rows.any():
            first = frame.loc[rows, "path"].iloc[0]
            raise UserError(f"{where}: {int(rows.sum())} rows with {problem}, first {first!r}")
    return table


def _problems(frame: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    yield "a path that is listed twice", frame["path"].duplicated()
    yield f"a split other than {' or '.join(SPLITS)}", ~frame["split"].isin(SPLITS)
    yield "a class id without a name", frame["class_id"].notna() & frame["class_name"].isna()
    inside = frame["archive"].notna()
    placed = frame["offset"].notna() & frame["length"].notna()
    yield "an archive but no offset and length, or the reverse", inside != placed


def write_index(path: Path, index: Index) -> None:
    """Write an index as zstd-compressed Parquet, atomically, with its root in the metadata.

    Raises:
        UserError: when the rows do not fit the schema.
    """
    table = check(index.frame, str(path))
    table = table.replace_schema_metadata({"root": index.root.as_posix()})
    with replacing(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            write_page_checksum=True,
            row_group_size=_GROUP_ROWS,
        )


def read_index(path: Path, root: Path | None = None, columns: Sequence[str] | None = None) -> Index:
    """Read an index.

    Args:
        path: the Parquet file.
        root: where the corpus lies now, when it is not where it was indexed.
        columns: read these alone, where the others are not needed.

    Raises:
        UserError: when the file is absent, is no index, or breaks the schema.
    """
    with _open(path) as file:
        metadata = file.schema_arrow.metadata or {}
        try:
            table = file.read(columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a readable Parquet file ({error})") from error
    if b"root" not in metadata and root is None:
        raise UserError(f"{path}: no corpus root in the metadata; is it an index?")
    missing = [name for name in columns or () if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: columns missing {missing}; is it an index?")
    frame = table.to_pandas(ignore_metadata=True)
    if columns is None:
        check(frame, str(path))
    return Index(frame, root or Path(metadata[b"root"].decode()))


def base_sets(index_folder: Path) -> dict[str, Path]:
    """Return the base sets of a folder of indices by name."""
    files = sorted(index_folder.glob(f"{BASE_PREFIX}*.parquet"))
    return {file.stem.removeprefix(BASE_PREFIX): file for file in files}


def read_chunks(
    path: Path, rows: npt.NDArray[np.int64], columns: Sequence[str], size: int = _GROUP_ROWS
) -> Iterator[pd.DataFrame]:
    """Read chosen rows of an index, in the order given, without ever holding all of them.

    Args:
        path: the Parquet file.
        rows: (n,) int64 row numbers, in any order; going up is fastest.
        columns: which columns.
        size: rows a chunk.

    Yields:
        Frames of at most ``size`` rows.

    Raises:
        UserError: when the file is no index, or has no such row.
    """
    with _open(path) as file:
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        total = int(ends[-1]) if len(ends) else 0
        wrong = rows[(rows < 0) | (rows >= total)]
        if len(wrong):
            raise UserError(f"{path}: has {total} rows, and row {wrong[0]} is asked for")
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise UserError(f"{path}: columns missing {missing}; is it an index?")
        held: collections.OrderedDict[int, pd.DataFrame] = collections.OrderedDict()
        for start in range(0, len(rows), size):
            wanted = rows[start : start + size]
            group_of = np.searchsorted(ends, wanted, side="right")
            parts, places = [], []
            for group in map(int, np.unique(group_of)):
                if group not in held:
                    held[group] = _read_group(file, group, columns, path)
                held.move_to_end(group)
                here = np.flatnonzero(group_of == group)
                first = int(ends[group - 1]) if group else 0
                parts.append(held[group].iloc[wanted[here] - first])
                places.append(here)
                while len(held) > _GROUPS_HELD:
                    held.popitem(last=False)
            together = pd.concat(parts, ignore_index=True)
            order = np.argsort(np.concatenate(places), kind="stable")
            yield together.iloc[order].reset_index(drop=True)


def _read_group(
    file: pq.ParquetFile, group: int, columns: Sequence[str], path: Path
) -> pd.DataFrame:
    try:
        table = file.read_row_group(group, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from error
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    return frame


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise UserError(f"{path}: no such index; `dvc repro corpus` builds it")
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from error
