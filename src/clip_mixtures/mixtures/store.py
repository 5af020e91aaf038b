"""A mixture on disk: row numbers into named indices, beside the indices' hashes.

A folder holds ``train.parquet`` and ``validation.parquet`` (columns index and row, in training
order) and ``mixture.json`` with the definition. Row numbers mean nothing without the very index
they were drawn from, so its SHA-256 is kept and compared whenever the mixture is read.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clip_mixtures.errors import UserError
from clip_mixtures.files import atomic_write_json, read_text, replacing, sha256_file
from clip_mixtures.index import Rows
from clip_mixtures.mixtures.spec import Mixture

SPLITS = ("train", "validation")
FACTS = "mixture.json"
_SCHEMA = pa.schema(
    [
        pa.field("index", pa.dictionary(pa.int32(), pa.string())),
        pa.field("row", pa.int64()),
    ]
)


@dataclasses.dataclass(frozen=True)
class StoredMixture:
    """A mixture that was built.

    Attributes:
        folder: where it lies.
        mixture: its definition.
        indices: index name to index file.
    """

    folder: Path
    mixture: Mixture
    indices: dict[str, Path]

    def rows(self, split: str) -> dict[str, Rows]:
        """Return index name to row numbers (int64), both in training order.

        Args:
            split: "train" or "validation".
        """
        rows = read_rows(self.folder / f"{split}.parquet")
        # An index that a split takes no row of does not occur in its file.
        return {name: rows.get(name, np.empty(0, dtype=np.int64)) for name in self.indices}


def write_mixture(
    folder: Path,
    mixture: Mixture,
    splits: Mapping[str, Mapping[str, Rows]],
    indices: Mapping[str, Path],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a mixture's folder; ``mixture.json`` comes last, so a folder that has it is whole.

    Args:
        folder: where to.
        mixture: the definition.
        splits: "train" and "validation" to index name to rows.
        indices: index name to index file.
        facts: what else to say in ``mixture.json``.
    """
    (folder / FACTS).unlink(missing_ok=True)
    for split in SPLITS:
        write_rows(folder / f"{split}.parquet", splits[split])
    stored = {
        name: {"file": _relative(path, folder), "sha256": sha256_file(path)}
        for name, path in indices.items()
    }
    counts = {split: {name: len(rows) for name, rows in splits[split].items()} for split in SPLITS}
    atomic_write_json(
        folder / FACTS,
        {
            "mixture": dataclasses.asdict(mixture),
            "images": counts,
            **(facts or {}),
            "indices": stored,
        },
    )


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def read_mixture(folder: Path) -> StoredMixture:
    """Read a mixture's definition, and make sure that its indices are those it was drawn from.

    Raises:
        UserError: for an absent or damaged folder, or an index that is absent or has changed.
    """
    mixture, entries = _definition(folder)
    indices = {}
    for name, (file, wanted) in entries.items():
        index = indices[name] = folder / file
        if not index.is_file():
            raise UserError(f"{index}: absent; the mixture at {folder} draws from it")
        if sha256_file(index) != wanted:
            raise UserError(
                f"{index}: not the index that the mixture at {folder} was drawn from; build the "
                "mixture again"
            )
    return StoredMixture(folder, mixture, indices)


def definition_of(folder: Path) -> Mixture:
    """Read what a mixture is, defaults filled in, without looking at what it was drawn from.

    Raises:
        UserError: for an absent or damaged folder.
    """
    return _definition(folder)[0]


def _definition(folder: Path) -> tuple[Mixture, dict[str, tuple[str, str]]]:
    """Return a mixture, and of each of its indices the file relative to the folder and its hash."""
    path = folder / FACTS
    if not path.is_file():
        raise UserError(
            f"{path}: absent, so {folder} is no mixture; `dvc repro` or the command `mixture` "
            "builds one"
        )
    try:
        facts = json.loads(read_text(path))
        entries = {
            name: (str(entry["file"]), str(entry["sha256"]))
            for name, entry in facts["indices"].items()
        }
        return _mixture_from_json(facts["mixture"]), entries
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a mixture ({error!r}); build it again") from error


def _mixture_from_json(value: Mapping[str, Any]) -> Mixture:
    lists = {name: tuple(value[name]) for name in ("held_out", "domains")}
    return Mixture(**{**value, **lists})


def write_rows(path: Path, rows: Mapping[str, Rows]) -> None:
    """Write a selection as Parquet: columns index (whose rows) and row (int64), in order.

    Row numbers mostly go up by small steps, which is what their encoding is for: a mixture of half
    a million images takes kilobytes.

    Args:
        path: the file to write, atomically.
        rows: index name to chosen row numbers, in training order.
    """
    names = np.repeat(np.arange(len(rows)), [len(chosen) for chosen in rows.values()])
    numbers = [np.asarray(chosen, dtype=np.int64) for chosen in rows.values()]
    table = pa.table(
        {
            "index": pa.DictionaryArray.from_arrays(
                pa.array(names, pa.int32()), pa.array(list(rows), pa.string())
            ),
            "row": np.concatenate(numbers) if numbers else np.empty(0, dtype=np.int64),
        }
    )
    with replacing(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            use_dictionary=["index"],
            column_encoding={"row": "DELTA_BINARY_PACKED"},
            write_page_checksum=True,
        )


def count_rows(path: Path) -> int:
    """Return how many rows a selection has.

    Raises:
        UserError: when the file is absent or no selection.
    """
    return sum(len(rows) for rows in read_rows(path).values())


def read_rows(path: Path) -> dict[str, Rows]:
    """Read a selection: index name to row numbers, both in the file's order.

    Raises:
        UserError: when the file is absent or no selection.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such mixture; build it first")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable mixture ({error}); build it again") from error
    if not table.schema.equals(_SCHEMA) or any(column.null_count for column in table.columns):
        raise UserError(f"{path}: columns {table.column_names} are not those of a mixture")
    codes, names = pd.factorize(table["index"].to_pandas())
    rows = table["row"].to_numpy()
    return {str(name): rows[codes == code] for code, name in enumerate(names)}
