"""The base set: one caption an image, a split by name alone, and nothing dropped uncounted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora_factory import make_base, tar_bytes
from hypothesis import given
from hypothesis import strategies as st

from clip_mixtures.corpora.imagenet_captions import (
    BaseIndex,
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
        ({"title": " \t", "tags": ["zoo"], "description": "\n"}, "zoo"),
        ({"title": "Two\r\n lines", "description": " a\t\tb \n\nc "}, "Two lines; a b c"),
        ({"title": None, "tags": None, "description": None}, ""),
        ({}, ""),
        ({"title": 1984, "tags": [7, "x"]}, "1984; 7 x"),
        ({"title": "NA", "description": "None"}, "NA; None"),
        ({"title": "one\u2028line\u00a0only"}, "one line only"),
    ],
)
def test_caption_rule(entry: dict[str, Any], caption: str) -> None:
    assert base_caption(entry) == caption


@given(
    title=st.text(max_size=20),
    tags=st.lists(st.text(max_size=8), max_size=3),
    description=st.text(max_size=20),
)
def test_caption_is_one_line_with_every_word(title: str, tags: list[str], description: str) -> None:
    caption = base_caption({"title": title, "tags": tags, "description": description})
    assert caption == " ".join(caption.split())
    words = [*title.split(), *" ".join(tags).split(), *description.split()]
    assert caption.replace(";", "").split() == " ".join(words).replace(";", "").split()


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


def test_split_file_takes_the_place_of_the_hash(tmp_path: Path) -> None:
    make_base(tmp_path, images=6)
    names = [entry["filename"] for entry in json.loads((tmp_path / "captions.json").read_text())]
    index = index_imagenet_captions(
        tmp_path / "captions.json", tmp_path / "images.tar", train_files={names[5], names[0]}
    ).index
    assert list(index.frame["split"]) == ["train", *["test"] * 4, "train"]


def test_tar_of_tars_is_indexed_in_the_captions_order(tmp_path: Path) -> None:
    images = make_base(tmp_path, images=10)
    found = index_imagenet_captions(tmp_path / "captions.json", tmp_path / "images.tar")
    frame = found.index.frame
    assert found.without_image == 0
    assert found.index.root == tmp_path
    assert [path.rsplit("/", 1)[-1] for path in frame["path"]] == list(images)
    assert set(frame["archive"]) == {"images.tar"}
    assert set(frame["corpus"]) == set(frame["domain"]) == {"base"}
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
    assert found.without_image == 3


def test_image_without_a_word_is_left_out(tmp_path: Path) -> None:
    entries = [{"filename": "a.jpg", "title": " "}, {"filename": "b.jpg", "title": "b"}]
    assert list(index_of(tmp_path, entries).index.frame["path"]) == ["images/b.jpg"]


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
