"""An index comes back as it was written, and a broken one is refused by name."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.archives import Member
from clip_mixtures.errors import UserError
from clip_mixtures.index import (
    SCHEMA,
    Index,
    check,
    nullable_integers,
    placed,
    read_chunks,
    read_index,
    write_index,
)

AWKWARD = ['a "quoted" word', "tab\tin it", "two\nlines", "NA", "None", "null", "nan", "", "'", ","]
texts = st.one_of(st.sampled_from(AWKWARD), st.text(max_size=20))


def rows(count: int = 3, **columns: list[Any]) -> pd.DataFrame:
    """Make a valid frame, with ``columns`` in place of its own."""
    data: dict[str, Any] = {
        "path": [f"sketch/ant/{number}.png" for number in range(count)],
        "corpus": ["domainnet"] * count,
        "domain": ["sketch"] * count,
        "class_id": pd.array([0] * count, dtype="Int32"),
        "class_name": ["ant"] * count,
        "caption": ["a sketch of a ant."] * count,
        "aligned_caption": [None] * count,
        "split": ["train"] * count,
        "archive": ["sketch.zip"] * count,
        "offset": nullable_integers(list(range(count))),
        "length": nullable_integers([1] * count),
        "compression": [None] * count,
    }
    return pd.DataFrame({**data, **columns})


def records(frame: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return rows as plain values, None for any kind of null."""
    plain = frame.astype(object)
    return plain.where(frame.notna(), None).to_dict("records")


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.tuples(texts, st.one_of(st.none(), texts)), min_size=1, max_size=6),
    folder=st.sampled_from(["data/domains", "données/ü", "/abs olute"]),
)
def test_index_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[tuple[str, str | None]],
    folder: str,
) -> None:
    frame = rows(
        len(values),
        caption=[caption for caption, _ in values],
        aligned_caption=[aligned for _, aligned in values],
    )
    path = tmp_path_factory.getbasetemp() / "round-trip.parquet"
    write_index(path, Index(frame, Path(folder)))
    read = read_index(path)
    assert records(read.frame) == records(frame)
    assert list(read.frame.columns) == SCHEMA.names
    assert read.root == Path(folder)


def test_places_in_large_archives_stay_exact_beside_rows_without_one(tmp_path: Path) -> None:
    # Nulls must not turn the column into floats of single precision or into text.
    far = 2**40 + 1
    frame = rows(
        2,
        archive=["real.zip", None],
        offset=nullable_integers([far, None]),
        length=nullable_integers([7, None]),
    )
    write_index(tmp_path / "i.parquet", Index(frame, tmp_path))
    read = read_index(tmp_path / "i.parquet").frame
    assert int(read["offset"][0]) == far
    assert records(read)[1]["offset"] is None
    assert records(read)[1]["archive"] is None


def test_rows_of_a_base_set_have_neither_class_nor_aligned_caption(tmp_path: Path) -> None:
    frame = rows(2, class_id=[None, None], class_name=[None, None])
    write_index(tmp_path / "i.parquet", Index(frame, tmp_path))
    read = read_index(tmp_path / "i.parquet")
    assert read.frame["class_id"].isna().all()
    assert read.class_names() == []


def test_empty_index_round_trip(tmp_path: Path) -> None:
    write_index(tmp_path / "i.parquet", Index(rows(0), tmp_path))
    assert len(read_index(tmp_path / "i.parquet")) == 0


def test_root_given_takes_the_place_of_the_recorded_one(tmp_path: Path) -> None:
    write_index(tmp_path / "i.parquet", Index(rows(), Path("gone")))
    assert read_index(tmp_path / "i.parquet", root=tmp_path).root == tmp_path


FAULTS: dict[str, tuple[pd.DataFrame, list[str]]] = {
    "missing column": (rows().drop(columns="caption"), ["missing", "'caption'"]),
    "unknown column": (rows(label=[1, 2, 3]), ["not in the schema", "'label'"]),
    "text for a class id": (rows(class_id=["x", "y", "z"]), ["class_id"]),
    "fraction for a class id": (rows(class_id=[0.0, 0.5, 1.0]), ["class_id"]),
    "class id beyond 32 bits": (rows(class_id=[0, 1, 2**40]), ["class_id"]),
    "number for a caption": (rows(caption=[1, 2, 3]), ["caption"]),
    "path listed twice": (
        rows(path=["sketch/ant/a", "sketch/ant/b", "sketch/ant/b"]),
        ["1 rows", "listed twice", "'sketch/ant/b'"],
    ),
    "unknown split": (
        rows(split=["train", "valid", "test"]),
        ["split other than train or test", "'sketch/ant/1.png'"],
    ),
    "class id without a name": (
        rows(class_name=["ant", "ant", None]),
        ["class id without a name", "'sketch/ant/2.png'"],
    ),
    "archive without an offset": (
        rows(offset=nullable_integers([0, None, 2])),
        ["archive but no offset", "'sketch/ant/1.png'"],
    ),
    "archive without a length": (
        rows(length=nullable_integers([1, 1, None])),
        ["archive but no offset", "'sketch/ant/2.png'"],
    ),
    "offset without an archive": (
        rows(archive=[None, "sketch.zip", "sketch.zip"]),
        ["archive but no offset", "'sketch/ant/0.png'"],
    ),
}
# The faults that Parquet itself can hold, so that a reader may meet them.
STORABLE = [name for name in FAULTS if name not in ("text for a class id",)]


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_refused_when_written_and_leaves_the_file_alone(
    tmp_path: Path, fault: str
) -> None:
    frame, words = FAULTS[fault]
    path = tmp_path / "index.parquet"
    path.write_bytes(b"what was there")
    with pytest.raises(UserError) as raised:
        write_index(path, Index(frame, tmp_path))
    for word in [str(path), *words]:
        assert word in str(raised.value)
    assert path.read_bytes() == b"what was there"


@pytest.mark.parametrize("fault", STORABLE)
def test_fault_is_refused_when_read(tmp_path: Path, fault: str) -> None:
    frame, words = FAULTS[fault]
    path = tmp_path / "index.parquet"
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({"root": "data"}), path)
    with pytest.raises(UserError) as raised:
        read_index(path)
    for word in [str(path), *words]:
        assert word in str(raised.value)


@pytest.mark.parametrize("column", ["path", "corpus", "domain", "caption", "split"])
def test_null_where_none_may_be_is_refused(column: str) -> None:
    frame = rows()
    frame[column] = [*frame[column][:-1], None]
    with pytest.raises(UserError, match=rf"my index: .*{column}"):
        check(frame, "my index")


def test_half_a_surrogate_pair_in_a_caption_is_refused() -> None:
    # A JSON escape such as "\ud83d" becomes one, and UTF-8 has no bytes for it.
    frame = rows(1)
    frame["caption"] = pd.Series(["half an emoji \ud83d"], dtype=object)
    with pytest.raises(UserError, match="my index"):
        check(frame, "my index")


def test_absent_index_names_the_command_that_builds_it(tmp_path: Path) -> None:
    path = tmp_path / "absent.parquet"
    with pytest.raises(UserError, match=rf"{path}: no such index; `dvc repro corpus`"):
        read_index(path)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no Parquet at all " * 20])
def test_unreadable_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.parquet"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}: not a readable Parquet file"):
        read_index(path)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 0.999))
def test_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    path = tmp_path_factory.getbasetemp() / "truncated.parquet"
    pq.write_table(check(rows()).replace_schema_metadata({"root": "data"}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=f"{path}: not a readable Parquet file"):
        read_index(path)


def test_damaged_page_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    write_index(path, Index(rows(300, caption=[f"caption {n * n}" for n in range(300)]), tmp_path))
    data = bytearray(path.read_bytes())
    # The first column's first page follows the four magic bytes.
    data[4:40] = b"\x55" * 36
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}: not a readable Parquet file"):
        read_index(path)


def test_parquet_that_is_no_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="no corpus root"):
        read_index(path)


def test_class_names_come_in_order_of_their_ids(tmp_path: Path) -> None:
    frame = rows(class_id=[2, 0, 1], class_name=["cat", "ant", "bee"])
    assert Index(frame, tmp_path).class_names() == ["ant", "bee", "cat"]


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        pytest.param([0, 2, 2], ["ant", "cat", "cat"], id="gap"),
        pytest.param([1, 2, 2], ["ant", "cat", "cat"], id="not from 0"),
        pytest.param([0, 1, 1], ["ant", "bee", "cat"], id="two names"),
    ],
)
def test_class_ids_with_a_gap_or_two_names_raise(
    tmp_path: Path, ids: list[int], names: list[str]
) -> None:
    with pytest.raises(UserError, match="labels are not 0"):
        Index(rows(class_id=ids, class_name=names), tmp_path).class_names()


def test_domains_come_in_order_of_first_appearance(tmp_path: Path) -> None:
    index = Index(rows(domain=["sketch", "clipart", "sketch"]), tmp_path)
    assert index.domains() == ["sketch", "clipart"]
    assert len(index) == 3


# --- Some of the columns


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    write_index(tmp_path / "i.parquet", Index(rows(), tmp_path))
    read = read_index(tmp_path / "i.parquet", columns=["split", "path"])
    assert sorted(read.frame.columns) == ["path", "split"]
    assert list(read.frame["path"]) == list(rows()["path"])
    assert read.root == tmp_path


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "i.parquet"
    pq.write_table(pa.table({"path": ["a"]}).replace_schema_metadata({"root": "x"}), path)
    with pytest.raises(UserError, match=rf"{path}: columns missing \['caption'\]; is it an index"):
        read_index(path, columns=["path", "caption"])


# --- Chosen rows, a chunk at a time


def grouped(path: Path, sizes: list[int]) -> pd.DataFrame:
    """Write an index in groups of ``sizes`` rows, with nulls in it."""
    count = sum(sizes)
    frame = rows(
        count,
        caption=[AWKWARD[number % len(AWKWARD)] for number in range(count)],
        aligned_caption=[None if number % 3 else f"aligned {number}" for number in range(count)],
        archive=[None if number % 2 else "a.zip" for number in range(count)],
        offset=nullable_integers([None if n % 2 else 2**40 + 1 + n for n in range(count)]),
        length=nullable_integers([None if number % 2 else number for number in range(count)]),
    )
    table = check(frame)
    start = 0
    with pq.ParquetWriter(path, table.schema) as writer:
        for size in sizes:
            writer.write_table(table.slice(start, size))
            start += size
    assert pq.ParquetFile(path).num_row_groups == len(sizes)
    return frame


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_chunks_put_together_are_the_rows_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # Up to more groups than are held at a time, so that some are read again.
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=14))
    count = sum(sizes)
    path = tmp_path_factory.getbasetemp() / "chunks.parquet"
    frame = grouped(path, sizes)
    wanted = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=60)), dtype=np.int64)
    size = data.draw(st.integers(1, 70))
    columns = data.draw(st.lists(st.sampled_from(SCHEMA.names), min_size=1, unique=True))
    chunks = list(read_chunks(path, wanted, columns, size))
    assert [len(chunk) for chunk in chunks] == [
        min(size, len(wanted) - start) for start in range(0, len(wanted), size)
    ]
    assert all(chunk.index.tolist() == list(range(len(chunk))) for chunk in chunks)
    assert all(set(chunk.columns) == set(columns) for chunk in chunks)
    found = [record for chunk in chunks for record in records(chunk[columns])]
    assert found == records(frame.iloc[wanted][columns])


def test_chunks_of_a_written_index_are_of_one_size_whatever_the_rows(tmp_path: Path) -> None:
    count = 70_000
    write_index(tmp_path / "i.parquet", Index(rows(count), tmp_path))
    assert pq.ParquetFile(tmp_path / "i.parquet").num_row_groups == 2
    wanted = np.random.default_rng(0).permutation(count)
    chunks = list(read_chunks(tmp_path / "i.parquet", wanted, ["path"]))
    assert [len(chunk) for chunk in chunks] == [65_536, 70_000 - 65_536]
    found = [path for chunk in chunks for path in chunk["path"]]
    assert found == [f"sketch/ant/{row}.png" for row in wanted]


def test_no_rows_are_no_chunks(tmp_path: Path) -> None:
    write_index(tmp_path / "i.parquet", Index(rows(), tmp_path))
    write_index(tmp_path / "empty.parquet", Index(rows(0), tmp_path))
    for name in ("i.parquet", "empty.parquet"):
        assert list(read_chunks(tmp_path / name, np.empty(0, dtype=np.int64), ["path"])) == []


@pytest.mark.parametrize(("asked", "named"), [([0, 3], 3), ([7, 1], 7), ([-1], -1), ([-2, 1], -2)])
def test_a_row_that_the_index_has_not_is_named(
    tmp_path: Path, asked: list[int], named: int
) -> None:
    path = tmp_path / "i.parquet"
    write_index(path, Index(rows(3), tmp_path))
    with pytest.raises(UserError, match=f"{path}: has 3 rows, and row {named} is asked for"):
        list(read_chunks(path, np.array(asked), ["path"]))


def test_an_empty_index_has_no_row(tmp_path: Path) -> None:
    path = tmp_path / "i.parquet"
    write_index(path, Index(rows(0), tmp_path))
    with pytest.raises(UserError, match=f"{path}: has 0 rows, and row 0 is asked for"):
        list(read_chunks(path, np.array([0]), ["path"]))


def test_chunks_of_an_absent_index_name_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.parquet: no such index; `dvc repro corpus`"):
        list(read_chunks(tmp_path / "absent.parquet", np.array([0]), ["path"]))


def test_chunks_of_what_is_no_index_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "i.parquet"
    path.write_bytes(b"no Parquet at all " * 20)
    with pytest.raises(UserError, match=f"{path}: not a readable Parquet file"):
        list(read_chunks(path, np.array([0]), ["path"]))


def test_chunks_without_a_column_that_is_asked_for_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "i.parquet"
    pq.write_table(pa.table({"path": ["a"]}), path)
    with pytest.raises(UserError, match=rf"{path}: .*'caption'"):
        list(read_chunks(path, np.array([0]), ["path", "caption"]))


def test_a_damaged_page_is_refused_by_chunks_too(tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    write_index(path, Index(rows(300), tmp_path))
    data = bytearray(path.read_bytes())
    data[4:40] = b"\x55" * 36
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}: not a readable Parquet file"):
        list(read_chunks(path, np.array([0]), ["path"]))


# --- Places


MEMBERS = [Member("a.jpg", 2**40, 7), Member("b.jpg", 512, 3, "deflate")]


def test_images_in_an_archive_have_a_place_in_it(tmp_path: Path) -> None:
    write_index(tmp_path / "i.parquet", Index(rows(2, **placed(MEMBERS, "a.zip")), tmp_path))
    columns = ["archive", "offset", "length", "compression"]
    assert records(read_index(tmp_path / "i.parquet").frame[columns]) == [
        {"archive": "a.zip", "offset": 2**40, "length": 7, "compression": None},
        {"archive": "a.zip", "offset": 512, "length": 3, "compression": "deflate"},
    ]


def test_images_that_are_files_have_no_place(tmp_path: Path) -> None:
    frame = rows(2, **placed([Member("a.jpg"), Member("b.jpg")], None))
    write_index(tmp_path / "i.parquet", Index(frame, tmp_path))
    columns = ["archive", "offset", "length", "compression"]
    read = read_index(tmp_path / "i.parquet").frame[columns]
    assert records(read) == [dict.fromkeys(columns)] * 2


def test_no_images_have_no_places(tmp_path: Path) -> None:
    write_index(tmp_path / "i.parquet", Index(rows(0, **placed([], "a.zip")), tmp_path))
    assert len(read_index(tmp_path / "i.parquet")) == 0
