"""A mixture comes back from disk as it was, and goes out as text that every reader understands."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.corpora.captions import corrected_captions, published_captions
from clip_mixtures.corpora.domainnet import index_lists
from clip_mixtures.errors import UserError
from clip_mixtures.index import Index, nullable_integers, write_index
from clip_mixtures.mixtures import export as export_module
from clip_mixtures.mixtures import published_mixture
from clip_mixtures.mixtures import store as store_module
from clip_mixtures.mixtures.build import select_rows
from clip_mixtures.mixtures.captions import captions_of
from clip_mixtures.mixtures.export import export
from clip_mixtures.mixtures.spec import Mixture, mixture_from_params
from clip_mixtures.mixtures.store import (
    StoredMixture,
    read_mixture,
    read_rows,
    write_mixture,
    write_rows,
)

DOMAINS = ("clipart", "real", "sketch")
DEFAULTS = {"test_domain": "sketch", "held_out": ["lion"]}
Rows = npt.NDArray[np.int64]

AWKWARD = [
    "",
    " ",
    "NA",
    "None",
    "null",
    "nan",
    '"',
    '""',
    '"an unclosed quote',
    'a "quoted" word',
    'an end"',
    "'single'",
    "a\ttab",
    "two\nlines",
    "two\r\nlines",
    "a\rreturn",
    "\n",
    "\t",
    '\t"\n\r"\t',
    " spaces around ",
    "comma, comma",
    "back\\slash",
    "a \0 zero",
    "#hash",
    "naïve ünïcode 🦁",
    "a line\u2028separator and\u0085another\x0b\x0c\x1c",
]


def mixture(kind: str = "cg_high_diversity", **more: Any) -> Mixture:
    return mixture_from_params("m", {"kind": kind, **more}, DEFAULTS, DOMAINS)


def frame_of(
    paths: Sequence[str], captions: Sequence[str], aligned: Sequence[str | None] | None = None
) -> pd.DataFrame:
    count = len(paths)
    return pd.DataFrame(
        {
            "path": pd.Series(list(paths), dtype="str"),
            "corpus": ["tiny"] * count,
            "domain": ["sketch"] * count,
            "class_id": pd.array([0] * count, dtype="Int32"),
            "class_name": ["ant"] * count,
            "caption": pd.Series(list(captions), dtype="str"),
            "aligned_caption": pd.Series(
                [None] * count if aligned is None else list(aligned), dtype="str"
            ),
            "split": ["train"] * count,
            "archive": pd.Series([None] * count, dtype="str"),
            "offset": nullable_integers([None] * count),
            "length": nullable_integers([None] * count),
            "compression": pd.Series([None] * count, dtype="str"),
        }
    )


def write_frame(path: Path, frame: pd.DataFrame) -> Path:
    write_index(path, Index(frame, path.parent))
    return path


def numbered(count: int, folder: str = "sketch/ant") -> list[str]:
    return [f"{folder}/{number}.jpg" for number in range(count)]


def rows_of(*numbers: int) -> Rows:
    return np.array(numbers, dtype=np.int64)


def as_lists(rows: Mapping[str, Rows]) -> dict[str, list[int]]:
    return {name: numbers.tolist() for name, numbers in rows.items()}


# --- Selections


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(["domains", "base-cc3m", "NA", "None"]), st.text(min_size=1)),
        st.lists(st.integers(0, 2**62), min_size=1, max_size=30),
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_rows_in_any_order_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[str, list[int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "selection.parquet"
    write_rows(path, {name: rows_of(*numbers) for name, numbers in rows.items()})
    back = read_rows(path)
    assert list(as_lists(back).items()) == list(rows.items())
    assert all(numbers.dtype == np.int64 for numbers in back.values())


def test_an_index_without_rows_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_rows(path, {"base-x": rows_of(), "domains": rows_of(5, 2)})
    assert {name: rows for name, rows in as_lists(read_rows(path)).items() if rows} == {
        "domains": [5, 2]
    }


def test_a_selection_of_150_000_rows_takes_kilobytes(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    scattered = np.sort(np.random.default_rng(0).choice(500_000, 150_000, replace=False))
    write_rows(path, {"domains": scattered})
    # Half a byte a row, where a number takes eight and a published line a hundred.
    assert path.stat().st_size < 75_000
    # Prefixes of 345 classes, as the published protocol takes them.
    prefixes = np.concatenate([np.arange(435) + 1_000 * name for name in range(345)])
    write_rows(path, {"domains": prefixes})
    assert path.stat().st_size < 15_000
    assert read_rows(path)["domains"].tolist() == prefixes.tolist()


def test_the_folders_name_says_nothing_of_the_rows(tmp_path: Path) -> None:
    # Readers of Parquet take "seed=1" for a column.
    path = tmp_path / "seed=1" / "row=2" / "train.parquet"
    write_rows(path, {"domains": rows_of(3, 1)})
    assert as_lists(read_rows(path)) == {"domains": [3, 1]}


def test_an_absent_selection_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    with pytest.raises(UserError, match=f"{path}: no such mixture; build it first"):
        read_rows(path)


@given(share=st.floats(0, 0.999))
@settings(max_examples=25, deadline=None)
def test_a_truncated_selection_is_refused(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.parquet"
    write_rows(path, {"domains": np.arange(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=f"{path}: not a readable mixture"):
        read_rows(path)


@given(place=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_damaged_selection_is_refused(
    tmp_path_factory: pytest.TempPathFactory, place: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    scattered = np.sort(np.random.default_rng(1).choice(10**9, 5000, replace=False))
    write_rows(path, {"domains": scattered})
    data = bytearray(path.read_bytes())
    # Anywhere within the middle half, which is rows and nothing else.
    start = int(len(data) * (0.25 + place / 2))
    data[start : start + 8] = bytes(byte ^ 0x55 for byte in data[start : start + 8])
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}: not a readable mixture"):
        read_rows(path)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"nonsense", b"filepath\ttitle\nx\ty\n" * 50])
def test_what_is_no_parquet_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}: not a readable mixture"):
        read_rows(path)


FOREIGN = {
    "other columns": pa.table({"a": [1]}),
    "no columns": pa.table({}),
    "one column": pa.table({"row": [1]}),
    "one more column": pa.table({"index": ["a"], "row": [1], "more": [2]}),
    "columns swapped": pa.table({"row": [1], "index": ["a"]}),
    "rows that are text": pa.table({"index": ["a"], "row": ["1"]}),
    "rows that are fractions": pa.table({"index": ["a"], "row": [1.5]}),
    "a row that is null": pa.table({"index": ["a", "a"], "row": pa.array([1, None])}),
    "an index that is null": pa.table({"index": pa.array(["a", None]), "row": [1, 2]}),
    "an index that is a number": pa.table({"index": [1], "row": [1]}),
}


@pytest.mark.parametrize("table", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_parquet_file_is_refused(tmp_path: Path, table: pa.Table) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(table, path)
    with pytest.raises(UserError, match=str(path)):
        read_rows(path)


def test_a_selection_takes_the_place_of_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.parquet"
    write_rows(path, {"domains": rows_of(1)})

    def killed(table: Any, target: Path, **_: Any) -> None:
        Path(target).write_bytes(b"PAR1 half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        write_rows(path, {"domains": rows_of(2)})
    assert as_lists(read_rows(path)) == {"domains": [1]}
    assert os.listdir(tmp_path) == ["train.parquet"]


# --- Folders


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Write a mixture of two indices."""
    indices = {
        "base-x": write_frame(tmp_path / "index" / "base-x.parquet", base_frame()),
        "domains": write_frame(tmp_path / "index" / "domains.parquet", domain_frame()),
    }
    splits = {
        "train": {"base-x": rows_of(0, 1), "domains": rows_of(4, 0, 2)},
        "validation": {"base-x": rows_of(2), "domains": rows_of(1, 3)},
    }
    folder = tmp_path / "mixtures" / "m"
    write_mixture(folder, mixture(), splits, indices, {"identifier": "a name"})
    return folder


def base_frame() -> pd.DataFrame:
    return frame_of(numbered(3, "n01"), ["one", "two", "three"])


def domain_frame() -> pd.DataFrame:
    captions = [f"a sketch {number}" for number in range(5)]
    aligned = [f"an image {number}" for number in range(5)]
    return frame_of(numbered(5), captions, aligned)


def test_a_mixture_comes_back_as_it_was_written(stored: Path) -> None:
    back = read_mixture(stored)
    assert back.folder == stored
    assert back.mixture == mixture()
    assert as_lists(back.rows("train")) == {"base-x": [0, 1], "domains": [4, 0, 2]}
    assert as_lists(back.rows("validation")) == {"base-x": [2], "domains": [1, 3]}
    index = stored.parents[1] / "index"
    assert {name: path.resolve() for name, path in back.indices.items()} == {
        "base-x": (index / "base-x.parquet").resolve(),
        "domains": (index / "domains.parquet").resolve(),
    }


@pytest.mark.parametrize(
    "params",
    [
        {"allow": 0.2, "captions": "aligned"},
        {"protocol": "corrected", "subsample_seed": 9, "mix_sketches": 0.05},
        {"mix_sketches": "one", "base": "none"},
        {"kind": "domains", "domains": ["sketch", "real"], "size": 7, "dose_matched": True},
        {"kind": "natural_only", "add_sketches": True, "base": "cc3m"},
    ],
)
def test_every_definition_comes_back(tmp_path: Path, params: dict[str, Any]) -> None:
    chosen = mixture(**params)
    empty: dict[str, dict[str, Rows]] = {"train": {}, "validation": {}}
    write_mixture(tmp_path / "m", chosen, empty, {})
    assert read_mixture(tmp_path / "m").mixture == chosen


def test_the_definition_says_what_was_taken(stored: Path) -> None:
    facts = json.loads((stored / "mixture.json").read_text())
    assert facts["images"] == {
        "train": {"base-x": 2, "domains": 3},
        "validation": {"base-x": 1, "domains": 2},
    }
    assert facts["identifier"] == "a name"
    assert facts["indices"]["domains"]["file"] == "../../index/domains.parquet"
    # Nothing that differs between two machines.
    assert str(stored.parents[1]) not in (stored / "mixture.json").read_text()


def test_a_mixture_moves_together_with_its_indices(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("index", "mixtures"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    back = read_mixture(tmp_path / "elsewhere" / "mixtures" / "m")
    assert as_lists(back.rows("train"))["domains"] == [4, 0, 2]


def test_a_half_written_folder_is_no_mixture(stored: Path) -> None:
    (stored / "mixture.json").unlink()
    with pytest.raises(UserError, match=rf"{stored / 'mixture.json'}: absent, so .* is no mixture"):
        read_mixture(stored)


def test_a_folder_that_is_not_there_is_no_mixture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent, so .* is no mixture"):
        read_mixture(tmp_path / "nowhere")


def test_a_rewrite_that_is_killed_leaves_no_mixture_of_two_halves(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indices = read_mixture(stored).indices
    splits = {split: {"domains": rows_of(0)} for split in ("train", "validation")}
    whole = store_module.write_rows

    def killed(path: Path, rows: Mapping[str, Rows]) -> None:
        if path.name == "validation.parquet":
            raise KeyboardInterrupt
        whole(path, rows)

    monkeypatch.setattr(store_module, "write_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        write_mixture(stored, mixture(), splits, indices)
    with pytest.raises(UserError, match="is no mixture"):
        read_mixture(stored)
    monkeypatch.undo()
    write_mixture(stored, mixture(), splits, indices)
    # An index that no row is taken of has no rows.
    assert as_lists(read_mixture(stored).rows("train")) == {"base-x": [], "domains": [0]}


def test_a_missing_index_is_named(stored: Path) -> None:
    index = stored.parents[1] / "index" / "domains.parquet"
    index.unlink()
    with pytest.raises(UserError, match=rf"domains\.parquet: absent; the mixture at {stored}"):
        read_mixture(stored)


def test_a_changed_index_is_refused(stored: Path) -> None:
    index = stored.parents[1] / "index" / "base-x.parquet"
    write_frame(index, base_frame().iloc[::-1].reset_index(drop=True))
    with pytest.raises(UserError, match=r"base-x\.parquet: not the index .* build the mixture"):
        read_mixture(stored)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "null",
        lambda text: "{}",
        lambda text: text.replace('"kind"', '"sort"'),
        lambda text: text.replace('"held_out"', '"left_out"'),
        lambda text: text.replace('"sha256"', '"md5"'),
        lambda text: text.replace('"indices"', '"index"'),
    ],
)
def test_a_damaged_definition_is_refused(stored: Path, damage: Callable[[str], str]) -> None:
    path = stored / "mixture.json"
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(UserError, match=rf"{path}: not a mixture .*build it again"):
        read_mixture(stored)


# --- Captions


PATHS = ["sketch/ant/1.jpg", "sketch/ant/2.jpg", "real/hourglass/3.jpg"]


def captioned() -> pd.DataFrame:
    return frame_of(PATHS, ["s1", "s2", "s3"], ["a1", "a2", "a3"])


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, ["s1", "s2", "s3"]),
        ({"captions": "aligned"}, ["a1", "a2", "a3"]),
        ({"protocol": "corrected"}, corrected_captions(PATHS)),
        (
            {"protocol": "corrected", "captions": "aligned"},
            corrected_captions(PATHS, aligned=True),
        ),
    ],
)
def test_images_of_the_domains_are_captioned_by_the_protocol(
    params: dict[str, Any], expected: list[str]
) -> None:
    chosen = mixture(**params)
    assert captions_of("domains", captioned(), chosen) == expected
    assert captions_of("domains", captioned().iloc[[2, 0]], chosen) == [expected[2], expected[0]]


@pytest.mark.parametrize("captions", ["standard", "aligned"])
@pytest.mark.parametrize(
    ("name", "protocol"),
    [("base-cc3m", "published"), ("base-cc3m", "corrected"), ("imagenet_sketch", "published")],
)
def test_images_of_other_sets_keep_their_text(name: str, captions: str, protocol: str) -> None:
    frame = frame_of(numbered(2), ["NA", '"x'])
    chosen = mixture(captions=captions, protocol=protocol)
    assert captions_of(name, frame, chosen) == ["NA", '"x']


def test_corrected_mixtures_say_an_elephant_of_imagenet_sketch_too() -> None:
    frame = frame_of([f"sketch/n02504458/{i}.JPEG" for i in range(40)], ["a elephant"] * 40)
    frame["class_id"] = 386
    texts = captions_of("imagenet_sketch", frame, mixture(protocol="corrected"))
    assert all("African bush elephant" in text for text in texts)
    assert any("an African" in text for text in texts)
    assert not any("a African" in text for text in texts)


def test_an_image_without_the_caption_that_is_asked_for_is_named() -> None:
    frame = frame_of(PATHS, ["s1", "s2", "s3"], ["a1", None, "a3"])
    message = r"mixtures\.m\.captions: is 'aligned', and 'sketch/ant/2\.jpg' has no such caption"
    with pytest.raises(UserError, match=message):
        captions_of("domains", frame, mixture(captions="aligned"))
    assert captions_of("domains", frame, mixture()) == ["s1", "s2", "s3"]
    corrected = mixture(captions="aligned", protocol="corrected")
    assert captions_of("domains", frame, corrected) == corrected_captions(PATHS, aligned=True)


# --- Export


def small_mixture(
    folder: Path, frame: pd.DataFrame, rows: Rows | None = None, chosen: Mixture | None = None
) -> StoredMixture:
    index = write_frame(folder / "domains.parquet", frame)
    rows = np.arange(len(frame)) if rows is None else rows
    splits = {"train": {"domains": rows}, "validation": {"domains": rows[:1]}}
    write_mixture(folder / "m", chosen or mixture(), splits, {"domains": index})
    return read_mixture(folder / "m")


def test_plain_captions_come_out_as_published(tmp_path: Path) -> None:
    classes = ("lion", "ant", "The_Eiffel_Tower")
    lists = {
        (domain, split): [
            f"{domain}/{folder}/{split}{number}.jpg {label}"
            for label, folder in enumerate(classes)
            for number in range(count)
        ]
        for domain in ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
        for split, count in (("train", 30), ("test", 3))
    }
    index = index_lists(tmp_path, lists, images=False)
    for name, captions in (
        ("lso-cipqrs-nosketchclasses", "standard"),
        ("lso-cipqrs-nosketchclasses-aligned", "aligned"),
    ):
        chosen = mixture_from_params(
            "m",
            {"kind": "cg_high_diversity", "captions": captions},
            {"test_domain": "sketch", "held_out": "published"},
            index.domains(),
        )
        write_index(tmp_path / "domains.parquet", index)
        rows = select_rows(index.frame, chosen)
        splits = {"train": {"domains": rows.train}, "validation": {"domains": rows.validation}}
        write_mixture(tmp_path / "m", chosen, splits, {"domains": tmp_path / "domains.parquet"})
        published = published_mixture(name, lists)
        for split in ("train", "val"):
            out = tmp_path / f"{split}.tsv"
            assert export(read_mixture(tmp_path / "m"), split, out) == len(published[split])
            pairs = published[split][["path", "caption"]].itertuples(index=False)
            lines = [f"{path}\t{caption}\n" for path, caption in pairs]
            assert out.read_bytes() == ("filepath\ttitle\n" + "".join(lines)).encode()
    captions_there = published_captions(lists, aligned=True)["clipart", "train"]
    assert captions_there[0] in (tmp_path / "train.tsv").read_text()


def read_with_csv(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", strict=True))


def read_with_pandas(path: Path) -> list[list[str]]:
    frame = pd.read_csv(path, sep="\t", keep_default_na=False, dtype=str)
    return [list(frame.columns), *frame.to_numpy().tolist()]


# Half of a surrogate pair is no text.
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    captions=st.lists(st.one_of(st.sampled_from(AWKWARD), anything), min_size=1, max_size=12),
    folders=st.lists(
        st.sampled_from(["sketch", " ", 'a"', '"', '"a"', "ü", "'", "a\tb"]), min_size=12
    ),
)
@settings(max_examples=60, deadline=None)
def test_any_caption_comes_back_row_for_row(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str], folders: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-caption"
    names = [f"{folders[number]}/ant/{number}.jpg" for number in range(len(captions))]
    stored = small_mixture(folder, frame_of(names, captions))
    out = folder / "out.tsv"
    assert export(stored, "train", out) == len(captions)
    expected = [["filepath", "title"], *map(list, zip(names, captions, strict=True))]
    assert read_with_csv(out) == expected
    assert read_with_pandas(out) == expected


@pytest.mark.parametrize("reader", [read_with_csv, read_with_pandas])
def test_awkward_captions_come_back_row_for_row(
    tmp_path: Path, reader: Callable[[Path], list[list[str]]]
) -> None:
    stored = small_mixture(tmp_path, frame_of(numbered(len(AWKWARD)), AWKWARD))
    export(stored, "train", tmp_path / "out.tsv")
    found = reader(tmp_path / "out.tsv")
    assert [caption for _, caption in found[1:]] == AWKWARD
    assert [path for path, _ in found[1:]] == numbered(len(AWKWARD))


def test_only_what_needs_quotes_has_them(tmp_path: Path) -> None:
    captions = ["plain", "NA", "", "it's, #1", 'a "b"', "c\td", "e\nf"]
    stored = small_mixture(tmp_path, frame_of(numbered(7), captions))
    export(stored, "train", tmp_path / "out.tsv")
    fields = ["plain", "NA", "", "it's, #1", '"a ""b"""', '"c\td"', '"e\nf"']
    lines = [f"{path}\t{field}\n" for path, field in zip(numbered(7), fields, strict=True)]
    assert (tmp_path / "out.tsv").read_bytes() == ("filepath\ttitle\n" + "".join(lines)).encode()


def test_rows_come_out_in_the_mixture_s_order_set_after_set(stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tsv"
    assert export(read_mixture(stored), "train", out) == 5
    assert out.read_text() == (
        "filepath\ttitle\n"
        "n01/0.jpg\tone\n"
        "n01/1.jpg\ttwo\n"
        "sketch/ant/4.jpg\ta sketch 4\n"
        "sketch/ant/0.jpg\ta sketch 0\n"
        "sketch/ant/2.jpg\ta sketch 2\n"
    )
    assert export(read_mixture(stored), "val", out) == 3
    assert out.read_text() == (
        "filepath\ttitle\n"
        "n01/2.jpg\tthree\n"
        "sketch/ant/1.jpg\ta sketch 1\n"
        "sketch/ant/3.jpg\ta sketch 3\n"
    )


def test_many_chunks_make_one_text(tmp_path: Path) -> None:
    count = 150_000
    captions = [f"caption {number}" for number in range(count)]
    rows = np.random.default_rng(0).permutation(count)
    stored = small_mixture(tmp_path, frame_of(numbered(count), captions), rows)
    assert export(stored, "train", tmp_path / "out.tsv") == count
    with open(tmp_path / "out.tsv", encoding="utf-8") as file:
        assert next(file) == "filepath\ttitle\n"
        assert [line.rsplit(" ", 1)[1] for line in file] == [f"{row}\n" for row in rows]


@pytest.mark.parametrize(
    ("roots", "base", "domains"),
    [
        (None, "n01/0.jpg", "sketch/ant/4.jpg"),
        ({}, "n01/0.jpg", "sketch/ant/4.jpg"),
        ({"": ""}, "n01/0.jpg", "sketch/ant/4.jpg"),
        ({"": "/data"}, "/data/n01/0.jpg", "/data/sketch/ant/4.jpg"),
        ({"": "/data/"}, "/data/n01/0.jpg", "/data/sketch/ant/4.jpg"),
        ({"": "/"}, "/n01/0.jpg", "/sketch/ant/4.jpg"),
        ({"domains": "/d"}, "n01/0.jpg", "/d/sketch/ant/4.jpg"),
        ({"": "/b", "domains": "/d/"}, "/b/n01/0.jpg", "/d/sketch/ant/4.jpg"),
        ({"base-x": "s3://b", "domains": "../d"}, "s3://b/n01/0.jpg", "../d/sketch/ant/4.jpg"),
        ({"": "/b", "domains": ""}, "/b/n01/0.jpg", "sketch/ant/4.jpg"),
    ],
)
def test_paths_begin_with_what_is_asked_for(
    stored: Path, tmp_path: Path, roots: dict[str, str] | None, base: str, domains: str
) -> None:
    export(read_mixture(stored), "train", tmp_path / "out.tsv", roots)
    lines = read_with_csv(tmp_path / "out.tsv")
    assert (lines[1][0], lines[3][0]) == (base, domains)


def test_a_root_of_an_unknown_index_is_refused_before_anything_is_written(
    stored: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.tsv"
    with pytest.raises(UserError, match="unknown index 'domain'; did you mean 'domains'"):
        export(read_mixture(stored), "train", out, {"domain": "/data"})
    assert not out.exists()


@pytest.mark.parametrize("split", ["validation", "test", ""])
def test_an_unknown_split_is_refused(stored: Path, tmp_path: Path, split: str) -> None:
    with pytest.raises(UserError, match=f"unknown split '{split}'.*allowed: train, val"):
        export(read_mixture(stored), split, tmp_path / "out.tsv")


def test_a_text_takes_the_place_of_the_old_one_whole(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "train.tsv"
    out.parent.mkdir()
    out.write_text("what was there")

    def killed(name: str, *rest: Any) -> list[str]:
        if name == "domains":
            raise KeyboardInterrupt
        return captions_of(name, *rest)

    monkeypatch.setattr(export_module, "captions_of", killed)
    with pytest.raises(KeyboardInterrupt):
        export(read_mixture(stored), "train", out)
    assert out.read_text() == "what was there"
    assert os.listdir(out.parent) == ["train.tsv"]
    monkeypatch.undo()
    export(read_mixture(stored), "train", out)
    assert out.read_text().startswith("filepath\ttitle\nn01/0.jpg\tone\n")


def test_a_caption_that_is_missing_stops_the_text(tmp_path: Path) -> None:
    frame = frame_of(numbered(2), ["s1", "s2"], ["a1", None])
    stored = small_mixture(tmp_path, frame, chosen=mixture(captions="aligned"))
    with pytest.raises(UserError, match=r"sketch/ant/1\.jpg' has no such caption"):
        export(stored, "train", tmp_path / "out.tsv")
    assert not (tmp_path / "out.tsv").exists()


def test_rows_that_the_index_has_not_stop_the_text(tmp_path: Path) -> None:
    stored = small_mixture(tmp_path, frame_of(numbered(2), ["s1", "s2"]), rows_of(0, 2))
    with pytest.raises(UserError, match="has 2 rows, and row 2 is asked for"):
        export(stored, "train", tmp_path / "out.tsv")


def test_an_empty_split_is_a_header_alone(tmp_path: Path) -> None:
    stored = small_mixture(tmp_path, frame_of(numbered(2), ["s1", "s2"]), rows_of())
    assert export(stored, "train", tmp_path / "out.tsv") == 0
    assert (tmp_path / "out.tsv").read_text() == "filepath\ttitle\n"


def test_progress_is_shown_where_a_label_is_given(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(read_mixture(stored), "train", tmp_path / "out.tsv")
    assert capsys.readouterr().err == ""
    export(read_mixture(stored), "train", tmp_path / "out.tsv", progress="my rows")
    assert "my rows" in capsys.readouterr().err


def test_corrected_captions_do_not_depend_on_the_mixture(tmp_path: Path) -> None:
    frame = frame_of(PATHS, ["s1", "s2", "s3"])
    chosen = mixture(protocol="corrected")
    found = []
    for number, rows in enumerate((rows_of(0, 1, 2), rows_of(2, 0))):
        folder = tmp_path / str(number)
        export(small_mixture(folder, frame, rows, chosen), "train", folder / "out.tsv")
        found.append({tuple(line) for line in read_with_csv(folder / "out.tsv")})
    assert found[1] < found[0]
    seeded = dataclasses.replace(chosen, subsample_seed=5)
    assert captions_of("domains", frame, seeded) == captions_of("domains", frame, chosen)


def test_text_written_by_hand_means_the_same_to_both_readers() -> None:
    # What the two readers are trusted with above.
    text = 'filepath\ttitle\na\t"x ""y"""\nb\t"two\nlines"\nc\tNA\n'
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    assert rows[1:] == [["a", 'x "y"'], ["b", "two\nlines"], ["c", "NA"]]
    frame = pd.read_csv(io.StringIO(text, newline=""), sep="\t", keep_default_na=False)
    assert frame.to_numpy().tolist() == rows[1:]
