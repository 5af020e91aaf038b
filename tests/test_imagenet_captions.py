"""The base set: one caption an image, a split by name alone, and nothing dropped uncounted."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora_factory import make_base, tar_bytes
from hypothesis import given
from hypothesis import strategies as st

from clip_mixtures.corpora.base import BaseIndex
from clip_mixtures.corpora.imagenet_captions import (
    base_caption,
    default_split,
    index_imagenet_captions,
)
from clip_mixtures.errors import UserError
from clip_mixtures.images import pack
from clip_mixtures.index import check


def index_of(folder: Path, entries: Any, files: tuple[str, ...] = ("a.jpg", "b.jpg")) -> BaseIndex:
    """Index a caption list (JSON values or raw bytes) over a folder of ``files``."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for name in files:
        (images / name).write_bytes(b"")
    captions = folder / "captions.json"
    captions.write_bytes(entries if isinstance(entries, bytes) else json.dumps(entries).encode())
    return index_imagenet_captions(captions, images)


@pytest.mark.parametrize(
    ("entry", "caption"),
    [
        (
            {"title": "Lion", "tags": ["zoo", "big cat"], "description": "At noon."},
            "Lion; zoo big cat; At noon.",
        ),
        ({"title": "Lion", "tags": [], "description": "At noon."}, "Lion; At noon."),
        ({"title": "", "tags": ["zoo"], "description": ""}, "zoo"),
        # The published rule: what is only white space is joined as well,
        ({"title": " \t", "tags": ["zoo"], "description": "\n"}, "; zoo;"),
        # a line break is a space beside the spaces around it,
        ({"title": "Two\r\n lines", "description": " a\t\tb \n\nc "}, "Two  lines; a b  c"),
        ({"title": "a\v\r\n\n b\rc", "description": " \f "}, "a  b c;"),
        # and spaces without a width are no spaces.
        ({"title": "ze\u200bro \u2060\ufeff\twidth", "tags": ["\u200b"]}, "zero width;"),
        ({"title": None, "tags": None, "description": None}, ""),
        ({}, ""),
        ({"title": 1984, "tags": [7, "x"]}, "1984; 7 x"),
        ({"title": "NA", "description": "None"}, "NA; None"),
        ({"title": "one\u2028line\u00a0only"}, "one line only"),
    ],
)
def test_caption_rule(entry: dict[str, Any], caption: str) -> None:
    assert base_caption(entry) == caption


texts = st.text(
    alphabet=st.sampled_from("aé;.\u200b\ufeff \t\r\n\v\f\x85\u2028\u3000"), max_size=12
)


@given(title=texts, tags=st.lists(texts, max_size=3), description=texts)
def test_caption_follows_the_published_rule(title: str, tags: list[str], description: str) -> None:
    caption = base_caption({"title": title, "tags": tags, "description": description})
    joined = "; ".join(part for part in (title, " ".join(tags), description) if part)
    for character in "\u200b\u2060\ufeff":
        joined = joined.replace(character, "")
    breaks = joined.replace("\r\n", "\n").replace("\v", "\n")
    # A run of one kind, breaks or other white space, becomes one space; words stay.
    runs = itertools.groupby(breaks, key=lambda c: "break" if c == "\n" else c.isspace())
    expected = "".join(" " if kind else "".join(run) for kind, run in runs)
    assert caption == expected.strip()


@given(title=st.text(max_size=20), description=st.text(max_size=20))
def test_caption_is_one_line_of_text(title: str, description: str) -> None:
    caption = base_caption({"title": title, "description": description})
    assert len(caption.splitlines()) <= 1
    assert caption == caption.strip()
    assert caption.encode("utf-8").decode("utf-8") == caption


def test_default_split_keeps_the_published_share() -> None:
    names = [f"n{number // 1000:08}_{number}.JPEG" for number in range(20_000)]
    share = sum(default_split(name) == "train" for name in names) / len(names)
    published = 425_500 / 463_622
    # Four standard deviations of a share among this many names.
    assert abs(share - published) < 4 * (published * (1 - published) / len(names)) ** 0.5


def test_default_split_never_moves_an_image() -> None:
    # The remainder by 1000 of the first eight bytes of SHA-256: 918 and above are test images.
    remainders = {
        "229.jpg": 917,
        "1086.jpg": 918,
        "n01440764_0.JPEG": 409,
        "n01440764_2.JPEG": 936,
        "n01440764_33.JPEG": 905,
        "n01440764_34.JPEG": 941,
    }
    for name, remainder in remainders.items():
        assert default_split(name) == ("train" if remainder < 918 else "test"), name


def test_split_does_not_depend_on_order_or_company(tmp_path: Path) -> None:
    names = tuple(f"{number}.jpg" for number in range(60))
    entries = [{"filename": name, "title": "x"} for name in names]

    def splits(entries: list[dict[str, str]]) -> dict[str, str]:
        frame = index_of(tmp_path, entries, names).index.frame
        return dict(zip(frame["path"], frame["split"], strict=True))

    whole = splits(entries)
    assert set(whole.values()) == {"train", "test"}
    random.Random(0).shuffle(entries)
    assert splits(entries) == whole
    assert splits(entries[:20]).items() <= whole.items()


def write_split(folder: Path, value: Any) -> Path:
    path = folder / "split.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def test_split_file_takes_the_place_of_the_hash(tmp_path: Path) -> None:
    make_base(tmp_path, images=6)
    names = [entry["filename"] for entry in json.loads((tmp_path / "captions.json").read_text())]
    split = write_split(
        tmp_path, {"train": [names[5], names[0], "gone.png"], "val": [names[2], names[1]]}
    )
    found = index_imagenet_captions(
        tmp_path / "captions.json", tmp_path / "images.tar", split=split
    )
    frame = found.index.frame
    names_found = [path.rsplit("/", 1)[-1] for path in frame["path"]]
    splits = dict(zip(names_found, frame["split"], strict=True))
    assert splits == {names[0]: "train", names[1]: "test", names[2]: "test", names[5]: "train"}
    # A name of the split without an entry is nothing that was left out of the entries.
    assert found.left_out == {"in no split": 2}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(b"{", "not a split file", id="cut off"),
        pytest.param(["a.jpg"], "not a split file", id="list"),
        pytest.param({"train": ["a.jpg"]}, "not a split file.*'val'", id="no validation"),
        pytest.param({"train": [["a.jpg"]], "val": []}, "not a split file", id="list in a list"),
        pytest.param({"train": 3, "val": []}, "not a split file", id="number"),
        pytest.param(
            {"train": ["b.jpg", "a.jpg"], "val": ["a.jpg"]},
            r"1 files in both train and val, first 'a\.jpg'",
            id="both",
        ),
    ],
)
def test_fault_in_the_split_file_is_named(tmp_path: Path, value: Any, message: str) -> None:
    make_base(tmp_path)
    split = write_split(tmp_path, value)
    with pytest.raises(UserError, match=rf"split\.json: .*{message}"):
        index_imagenet_captions(tmp_path / "captions.json", tmp_path / "images.tar", split=split)


def test_split_that_names_no_image_is_refused(tmp_path: Path) -> None:
    make_base(tmp_path)
    split = write_split(tmp_path, {"train": ["x"], "val": []})
    with pytest.raises(UserError, match=r"none of its 12 captions .* a place in a split"):
        index_imagenet_captions(tmp_path / "captions.json", tmp_path / "images.tar", split=split)


def test_tar_of_tars_is_indexed_in_the_captions_order(tmp_path: Path) -> None:
    images = make_base(tmp_path, images=10)
    found = index_imagenet_captions(tmp_path / "captions.json", tmp_path / "images.tar")
    frame = found.index.frame
    assert found.left_out == {}
    assert found.index.root == tmp_path
    assert [path.rsplit("/", 1)[-1] for path in frame["path"]] == list(images)
    assert set(frame["archive"]) == {"images.tar"}
    assert set(frame["corpus"]) == {"imagenet_captions"}
    assert set(frame["domain"]) == {"base"}
    assert frame["caption"][3] == "thing 3; tiny tag3; A thing, number 3."
    assert frame[["class_id", "class_name", "aligned_caption"]].isna().all(axis=None)
    check(frame)
    for path, pixels in zip(frame["path"], pack(frame, tmp_path, 16), strict=True):
        np.testing.assert_array_equal(pixels, images[path.rsplit("/", 1)[-1]])


def test_unpacked_images_are_indexed_as_files(tmp_path: Path) -> None:
    images = make_base(tmp_path, images=6)
    packed = index_imagenet_captions(tmp_path / "captions.json", tmp_path / "images.tar")
    folder = tmp_path / "unpacked"
    frame = packed.index.frame
    for member, offset, length in zip(frame["path"], frame["offset"], frame["length"], strict=True):
        (folder / member).parent.mkdir(parents=True, exist_ok=True)
        data = (tmp_path / "images.tar").read_bytes()[offset : offset + length]
        (folder / member).write_bytes(data)
    unpacked = index_imagenet_captions(tmp_path / "captions.json", folder).index
    assert list(unpacked.frame["path"]) == [f"unpacked/{path}" for path in frame["path"]]
    assert unpacked.frame[["archive", "offset", "length"]].isna().all(axis=None)
    assert list(unpacked.frame["split"]) == list(frame["split"])
    check(unpacked.frame)
    expected = np.stack(list(images.values()))
    np.testing.assert_array_equal(pack(unpacked.frame, unpacked.root, 16), expected)


def test_captions_without_an_image_are_counted(tmp_path: Path) -> None:
    entries = [{"filename": f"{name}.jpg", "title": name} for name in "abcde"]
    found = index_of(tmp_path, entries)
    assert list(found.index.frame["caption"]) == ["a", "b"]
    assert found.left_out == {"without image": 3}


def test_image_without_a_word_stays_as_in_the_published_set(tmp_path: Path) -> None:
    entries = [{"filename": "a.jpg", "title": " "}, {"filename": "b.jpg", "title": "b"}]
    found = index_of(tmp_path, entries)
    assert list(found.index.frame["path"]) == ["images/a.jpg", "images/b.jpg"]
    assert list(found.index.frame["caption"]) == ["", "b"]
    assert found.left_out == {}
    check(found.index.frame)


def test_name_that_comes_again_is_counted_and_its_first_caption_stays(tmp_path: Path) -> None:
    entries = [
        {"filename": name, "title": f"{number}"}
        for number, name in enumerate(("a.jpg", "x.jpg", "a.jpg", "b.jpg", "a.jpg", "x.jpg"))
    ]
    found = index_of(tmp_path, entries)
    assert list(found.index.frame["caption"]) == ["0", "3"]
    assert found.left_out == {"without image": 2, "named before": 2}
    assert len(entries) == len(found.index) + sum(found.left_out.values())


def test_captions_alone_are_indexed_by_synset(tmp_path: Path) -> None:
    captions = tmp_path / "captions.json"
    entries = [{"filename": f"{name}.JPEG", "wnid": "n01440764", "title": name} for name in "ab"]
    captions.write_text(json.dumps(entries))
    found = index_imagenet_captions(captions, None)
    assert list(found.index.frame["path"]) == ["n01440764/a.JPEG", "n01440764/b.JPEG"]
    assert found.index.frame[["archive", "offset", "length"]].isna().all(axis=None)
    assert found.index.root == tmp_path
    check(found.index.frame)
    captions.write_text(json.dumps([*entries, {"filename": "c.JPEG", "title": "c"}]))
    with pytest.raises(UserError, match=r"captions\.json: entry 2 has no 'wnid'"):
        index_imagenet_captions(captions, None)


def test_file_name_that_is_no_text_is_counted_like_any_other_without_an_image(
    tmp_path: Path,
) -> None:
    found = index_of(tmp_path, [{"filename": "\ud800.jpg"}, {"filename": "a.jpg", "title": "a"}])
    assert list(found.index.frame["caption"]) == ["a"]
    assert found.left_out == {"without image": 1}


def test_captions_without_a_single_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"captions\.json: none of its 2 captions"):
        index_of(tmp_path, [{"filename": "x", "title": "x"}, {"filename": "y", "title": "y"}])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        pytest.param(b"[{", "not valid JSON", id="cut off"),
        pytest.param(b"", "not valid JSON", id="empty"),
        pytest.param({"filename": "a.jpg"}, "holds a dict, not a list", id="no list"),
        pytest.param([{"filename": "a.jpg"}, {"title": "x"}], "entry 1 has no", id="no file"),
        pytest.param([{"filename": 7}], "entry 0 has no 'filename'", id="file is a number"),
        pytest.param(["a.jpg"], "entry 0 has no 'filename'", id="no object"),
        pytest.param(
            b'[{"filename": "a.jpg", "title": "\xff"}]',
            "not UTF-8",
            id="not UTF-8",
        ),
        pytest.param(
            [{"filename": "a.jpg", "tags": 5}],
            "entry 0",
            id="tags are a number",
        ),
        pytest.param(
            [{"filename": "a.jpg", "tags": "zoo"}],
            "entry 0",
            id="tags are a text",
        ),
    ],
)
def test_fault_in_the_captions_is_named(tmp_path: Path, entries: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path / 'captions.json'}: .*{message}"):
        index_of(tmp_path, entries)


def test_absent_captions_and_images_are_named(tmp_path: Path) -> None:
    make_base(tmp_path)
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        index_imagenet_captions(tmp_path / "none.json", tmp_path / "images.tar")
    with pytest.raises(UserError, match=r"none\.tar: no such archive"):
        index_imagenet_captions(tmp_path / "captions.json", tmp_path / "none.tar")


def test_truncated_images_are_named(tmp_path: Path) -> None:
    make_base(tmp_path)
    archive = tmp_path / "images.tar"
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(UserError, match=f"{archive}: damaged or truncated"):
        index_imagenet_captions(tmp_path / "captions.json", archive)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    # The captions know bare names only, so nothing tells which of the two is meant.
    (tmp_path / "captions.json").write_text('[{"filename": "1.jpg", "title": "x"}]')
    inner = {"a.tar": tar_bytes({"1.jpg": b"a"}), "b.tar": tar_bytes({"1.jpg": b"b"})}
    (tmp_path / "images.tar").write_bytes(tar_bytes(inner))
    with pytest.raises(UserError, match=r"images\.tar: .*1\.jpg"):
        index_imagenet_captions(tmp_path / "captions.json", tmp_path / "images.tar")


def test_half_a_surrogate_pair_does_not_stop_the_corpus() -> None:
    assert base_caption({"title": "zoo \ud83d", "tags": ["a"]}) == "zoo ?; a"
