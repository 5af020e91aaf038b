"""Captions come through as they are, every row is accounted for, and faults are named by line."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from corpora_factory import tar_bytes, tiny_image
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip_mixtures.corpora.base import BaseIndex
from clip_mixtures.corpora.conceptual_captions import index_tsv, index_webdataset
from clip_mixtures.corpora.png import encode_png
from clip_mixtures.errors import UserError
from clip_mixtures.images import ImageReader, pack
from clip_mixtures.index import check, read_index, write_index

HEADER = "filepath\ttitle\n"
# What text readers turn into other things.
AWKWARD = [
    "NA",
    "null",
    "None",
    "nan",
    "",
    " ",
    '"an unclosed quote',
    'a "quoted" word',
    '"all of it"',
    "'",
    "a\ttab\t",
    "\t",
    "a \u2028 line \x85 end \x0b\x0c\x1c of another kind",
    "1e5",
    "\\N",
    "#",
    "\ufeffmark",
    "naïve 漢字 \U0001f600",
    "\x00",
]

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
lines = text.filter(lambda caption: "\n" not in caption)


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def tsv(rows: Sequence[tuple[str, str]], end: str = "\n") -> str:
    return "".join(f"{path}\t{caption}{end}" for path, caption in [("filepath", "title"), *rows])


def quote(field: str) -> str:
    needs = any(letter in field for letter in '\t\n\r"')
    return '"' + field.replace('"', '""') + '"' if needs else field


def quoted_tsv(rows: Sequence[tuple[str, str]]) -> str:
    return HEADER + "".join(f"{quote(path)}\t{quote(caption)}\n" for path, caption in rows)


def rows_of(found: BaseIndex) -> list[tuple[str, str]]:
    frame = found.index.frame
    return list(zip(frame["path"], frame["caption"], strict=True))


def numbered(captions: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"images/{number}.jpg", caption) for number, caption in enumerate(captions)]


# Lists of captions


def test_awkward_captions_stay_as_they_are(tmp_path: Path) -> None:
    rows = numbered(AWKWARD)
    found = index_tsv("cc", write(tmp_path / "train.tsv", tsv(rows)), None, None)
    assert rows_of(found) == rows
    assert found.left_out == {}
    assert found.index.root == tmp_path
    frame = found.index.frame
    assert set(frame["corpus"]) == {"cc"}
    assert set(frame["domain"]) == {"base"}
    assert set(frame["split"]) == {"train"}
    nothing = ["class_id", "class_name", "aligned_caption", "archive", "offset", "length"]
    assert frame[nothing].isna().all(axis=None)
    write_index(tmp_path / "i.parquet", found.index)
    pd.testing.assert_series_equal(
        read_index(tmp_path / "i.parquet").frame["caption"], frame["caption"]
    )


@settings(max_examples=60, deadline=None)
@given(captions=st.lists(lines, min_size=1, max_size=8), last=st.booleans())
@example(captions=["ends in a carriage return\r", "\r", "a\rb"], last=False)
def test_unquoted_captions_come_through(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str], last: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "unquoted.tsv"
    data = tsv(numbered(captions))
    write(path, data.removesuffix("\n") if last else data)
    assert rows_of(index_tsv("cc", path, None, None)) == numbered(captions)


@settings(max_examples=60, deadline=None)
@given(captions=st.lists(text, min_size=1, max_size=8))
@example(captions=AWKWARD)
@example(captions=["\r", "a\r\nb", '"', '""', "\n", '\n"\n', 'x"'])
def test_quoted_captions_come_through(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "quoted.tsv"
    rows = [(f'"{number}"\t\n.jpg', caption) for number, caption in enumerate(captions)]
    write(path, quoted_tsv(rows))
    assert rows_of(index_tsv("cc", path, None, None, quoted=True)) == rows


def test_carriage_returns_go_where_all_lines_end_in_them(tmp_path: Path) -> None:
    rows = [("1.jpg", "one"), ("2.jpg", "two\r"), ("3.jpg", "")]
    path = write(tmp_path / "a.tsv", tsv(rows, "\r\n"))
    assert rows_of(index_tsv("cc", path, None, None)) == rows
    path = write(tmp_path / "b.tsv", tsv(rows, "\n"))
    assert rows_of(index_tsv("cc", path, None, None)) == rows
    path = write(tmp_path / "c.tsv", tsv(rows[:1], "\r\n"))
    assert rows_of(index_tsv("cc", path, None, None, quoted=True)) == rows[:1]


def test_more_rows_than_are_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_mixtures.corpora.conceptual_captions._CHUNK", 7)
    rows = [(f"{number}.jpg", f"caption {number}") for number in range(30)]
    for number in range(0, 30, 2):
        write(tmp_path / "images" / f"{number}.jpg", b"x")
    path = write(tmp_path / "a.tsv", tsv(rows))
    assert rows_of(index_tsv("cc", path, None, None)) == rows
    found = index_tsv("cc", path, None, tmp_path / "images")
    assert rows_of(found) == [(f"images/{path}", caption) for path, caption in rows[::2]]
    assert found.left_out == {"without an image": 15}
    assert list(found.index.frame.index) == list(range(15))
    check(found.index.frame)


def test_validation_rows_are_for_testing(tmp_path: Path) -> None:
    train = write(tmp_path / "t.tsv", tsv([("1.jpg", "one"), ("2.jpg", "two")]))
    validation = write(tmp_path / "v.tsv", tsv([("3.jpg", "three")]))
    frame = index_tsv("cc", train, validation, None).index.frame
    assert list(frame["split"]) == ["train", "train", "test"]
    assert list(frame["path"]) == ["1.jpg", "2.jpg", "3.jpg"]
    check(frame)


FAULTS = [
    pytest.param("path\ttitle\n1.jpg\tx\n", 1, "the header is 'path.ttitle'", id="header"),
    pytest.param("1.jpg\tx\n", 1, "the header is '1.jpg.tx'", id="no header"),
    pytest.param(
        "filepath\ttitle\turl\n1.jpg\tx\ty\n", 1, "the header is 'filepath.ttitle.turl'", id="more"
    ),
    pytest.param("", 1, "the header is ''", id="empty file"),
    pytest.param("\ufeff" + HEADER, 1, "the header is '.ufefffilepath", id="byte order mark"),
    pytest.param(f"{HEADER}1.jpg\tx\nno tab here\n", 3, "'no tab here' has no tab", id="no tab"),
    pytest.param(f"{HEADER}1.jpg\tx\n\n2.jpg\ty\n", 3, "'' has no tab", id="empty line"),
    pytest.param(f"{HEADER}1.jpg\tx\n\ty\n", 3, "the path is empty", id="empty path"),
    pytest.param(f"{HEADER}1\tx\n".encode() + b"2\t\xff\n", 3, "not UTF-8 .byte 2", id="no UTF-8"),
    pytest.param(
        f"{HEADER}1.jpg\tx\n2.jpg\ty\n1.jpg\tz\n",
        4,
        r"'1.jpg' is listed already at .*list\.tsv:2;",
        id="twice",
    ),
]


@pytest.mark.parametrize(("data", "line", "message"), FAULTS)
@pytest.mark.parametrize("quoted", [False, True], ids=["unquoted", "quoted"])
def test_fault_in_a_list_is_named_by_line(
    tmp_path: Path, data: str | bytes, line: int, message: str, quoted: bool
) -> None:
    path = write(tmp_path / "list.tsv", data)
    with pytest.raises(UserError, match=f"^{path}:{line}: .*{message}") as raised:
        index_tsv("cc", path, None, None, quoted)
    assert "\n" not in str(raised.value)


QUOTING_FAULTS = [
    pytest.param('1.jpg\t"two\nlines"\n2.jpg\t"never closed\n3.jpg\tx\n', 4, id="unclosed"),
    pytest.param('1.jpg\t"two\nlines"\n2.jpg\t"closed" too early\n', 4, id="text behind a quote"),
    pytest.param('1.jpg\t"two\nlines"\n2.jpg\ta\rb\n', 4, id="carriage return without quotes"),
    pytest.param('1.jpg\t"two\nlines"\n2.jpg\tone\ttwo\n', 4, id="tab without quotes"),
    pytest.param('1.jpg\t"two\nlines"\n"2.jpg\tone"\n', 4, id="no tab outside the quotes"),
    pytest.param('1.jpg\t"two\nlines"\n""\tone\n', 4, id="empty path in quotes"),
    pytest.param('1.jpg\t"two\nlines"\n2.jpg\t"' + 200_000 * "x", 4, id="long and unclosed"),
]


@pytest.mark.parametrize(("data", "line"), QUOTING_FAULTS)
def test_fault_in_quoting_is_named_by_line(tmp_path: Path, data: str, line: int) -> None:
    path = write(tmp_path / "list.tsv", HEADER + data)
    with pytest.raises(UserError, match=f"^{path}:{line}: "):
        index_tsv("cc", path, None, None, quoted=True)


def test_path_that_is_listed_twice_behind_lines_in_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", HEADER + 'b\t"1\n2\n3"\na\tx\nc\t"4\n5"\na\ty\n')
    with pytest.raises(UserError, match=rf"^{path}:8: 'a' is listed already at {path}:5;"):
        index_tsv("cc", path, None, None, quoted=True)


def test_path_in_both_lists_is_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "t.tsv", tsv([("1.jpg", "x"), ("2.jpg", "y")]))
    validation = write(tmp_path / "v.tsv", tsv([("2.jpg", "y")]))
    with pytest.raises(UserError, match=rf"^{validation}:2: '2.jpg' is .* at {train}:3;"):
        index_tsv("cc", train, validation, None)


def test_absent_and_empty_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/none\.tsv: No such file"):
        index_tsv("cc", tmp_path / "none.tsv", None, None)
    train = write(tmp_path / "t.tsv", tsv([("1.jpg", "x")]))
    empty = write(tmp_path / "v.tsv", HEADER)
    with pytest.raises(UserError, match=f"^{empty}: has a header and no rows"):
        index_tsv("cc", train, empty, None)
    with pytest.raises(UserError, match=f"^{tmp_path}: Is a directory"):
        index_tsv("cc", tmp_path, None, None)


IMAGES = {f"{number // 2:03}/{number} é.png": tiny_image(str(number)) for number in range(4)}


def make_images(tmp_path: Path, kind: str, start: str = "") -> Path:
    if kind == "tar":
        members = {start + name: encode_png(pixels) for name, pixels in IMAGES.items()}
        return write(tmp_path / "my images.tar", tar_bytes(members))
    for name, pixels in IMAGES.items():
        write(tmp_path / "my images" / name, encode_png(pixels))
    return tmp_path / "my images"


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("form", ["{name}", "./{name}", "my images/{name}", "{folder}/{name}"])
def test_images_are_found_by_any_form_of_their_path(tmp_path: Path, kind: str, form: str) -> None:
    images = make_images(tmp_path, kind)
    rows = [
        (form.format(name=name, folder=tmp_path / "my images"), f"caption of {name}")
        for name in reversed(IMAGES)
    ]
    rows.insert(1, (form.format(name="lost.png", folder=tmp_path / "my images"), "lost"))
    found = index_tsv("cc", write(tmp_path / "lists" / "a.tsv", tsv(rows)), None, images)
    frame = found.index.frame
    start = "" if kind == "tar" else "my images/"
    assert list(frame["path"]) == [start + name for name in reversed(IMAGES)]
    assert list(frame["caption"]) == [f"caption of {name}" for name in reversed(IMAGES)]
    assert found.left_out == {"without an image": 1}
    assert found.index.root == tmp_path
    assert frame["archive"].isna().all() == (kind == "folder")
    check(frame)
    expected = np.stack(list(reversed(IMAGES.values())))
    np.testing.assert_array_equal(pack(frame, tmp_path, 16), expected)


def test_names_of_a_tar_may_begin_with_a_dot(tmp_path: Path) -> None:
    # As `tar cf images.tar .` writes them.
    images = make_images(tmp_path, "tar", start="./")
    train = write(tmp_path / "a.tsv", tsv([(name, name) for name in IMAGES]))
    frame = index_tsv("cc", train, None, images).index.frame
    assert list(frame["caption"]) == list(IMAGES)
    np.testing.assert_array_equal(pack(frame, tmp_path, 16), np.stack(list(IMAGES.values())))


@pytest.mark.parametrize("place", ["link", "disk"])
def test_absolute_paths_may_go_through_a_link_or_not(tmp_path: Path, place: str) -> None:
    make_images(tmp_path / "disk", "folder")
    (tmp_path / "link").symlink_to("disk")
    rows = [(f"{tmp_path / place}/my images/{name}", name) for name in IMAGES]
    train = write(tmp_path / "a.tsv", tsv(rows))
    found = index_tsv("cc", train, None, tmp_path / "link" / "my images")
    assert list(found.index.frame["caption"]) == list(IMAGES)


def test_both_lists_share_the_images(tmp_path: Path) -> None:
    images = make_images(tmp_path, "tar")
    first, *rest = [(name, name) for name in IMAGES]
    train = write(tmp_path / "t.tsv", tsv(rest))
    validation = write(tmp_path / "v.tsv", tsv([first, ("lost.png", "x")]))
    found = index_tsv("cc", train, validation, images)
    assert list(found.index.frame["split"]) == ["train"] * 3 + ["test"]
    assert found.left_out == {"without an image": 1}


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_list_without_a_single_image_is_refused(tmp_path: Path, kind: str) -> None:
    images = make_images(tmp_path, kind)
    train = write(tmp_path / "a.tsv", tsv([("/elsewhere/000/0.png", "x"), ("b", "y")]))
    with pytest.raises(UserError) as raised:
        index_tsv("cc", train, None, images)
    message = str(raised.value)
    assert message.startswith(f"{train}: none of its paths names an image in {images}; ")
    assert "'/elsewhere/000/0.png'" in message
    assert "000/0 é.png'" in message


def test_absent_images_are_named(tmp_path: Path) -> None:
    train = write(tmp_path / "a.tsv", tsv([("1.jpg", "x")]))
    for name in ("none", "none.tar", "none.zip"):
        with pytest.raises(UserError, match=f"^{tmp_path / name}: no such"):
            index_tsv("cc", train, None, tmp_path / name)


# WebDataset


def write_shard(folder: Path, name: str, members: dict[str, bytes | str]) -> Path:
    data = {
        member: value if isinstance(value, bytes) else value.encode()
        for member, value in members.items()
    }
    return write(folder / f"{name}.tar", tar_bytes(data, tarfile.GNU_FORMAT))


def write_shards(folder: Path, shards: int = 3, samples: int = 4) -> dict[str, str]:
    """Return the caption of each path."""
    captions = {}
    # Not written in the order of their names.
    for shard in reversed(range(shards)):
        members: dict[str, bytes | str] = {}
        for number in range(samples):
            key = f"{shard:02}{number:04}"
            members[f"{key}.json"] = json.dumps({"caption": "not this one", "width": 16})
            members[f"{key}.png"] = encode_png(tiny_image(key))
            members[f"{key}.txt"] = f"sample {key}"
            captions[f"{shard:05}/{key}.png"] = f"sample {key}"
        write_shard(folder, f"{shard:05}", members)
    return dict(sorted(captions.items()))


def test_samples_are_indexed_in_the_order_of_the_shards(tmp_path: Path) -> None:
    captions = write_shards(tmp_path)
    write(tmp_path / "00000_stats.json", "{}")
    write(tmp_path / "._00000.tar", "no shard")
    found = index_webdataset("cc12m", tmp_path, workers=1)
    assert dict(rows_of(found)) == captions
    assert [path for path, _ in rows_of(found)] == list(captions)
    frame = found.index.frame
    assert found.index.root == tmp_path
    assert found.left_out == {}
    assert list(frame["archive"]) == [f"{path[:5]}.tar" for path in frame["path"]]
    assert set(frame["corpus"]) == {"cc12m"}
    assert set(frame["split"]) == {"train"}
    assert list(frame.index) == list(range(12))
    check(frame)
    for path, pixels in zip(frame["path"], pack(frame, tmp_path, 16), strict=True):
        np.testing.assert_array_equal(pixels, tiny_image(path[6:12]))


def test_workers_change_nothing(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=4)
    write_shard(tmp_path, "99999", {"a.txt": "no image", "b.jpg": b"no caption"})
    one = index_webdataset("cc", tmp_path, 300, workers=1)
    two = index_webdataset("cc", tmp_path, 300, workers=2)
    pd.testing.assert_frame_equal(one.index.frame, two.index.frame)
    assert one.left_out == two.left_out == {"without a caption": 1, "without an image": 1}


def test_fault_in_another_process_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    shard = write(tmp_path / "00001.tar", "no tar")
    with pytest.raises(UserError, match=f"^{shard}: damaged or truncated"):
        index_webdataset("cc", tmp_path, workers=2)


def test_caption_is_the_text_or_else_the_metadata(tmp_path: Path) -> None:
    write_shard(
        tmp_path,
        "a",
        {
            "1.jpg": b"",
            "1.txt": " two\nlines \n",
            "2.jpeg": b"",
            "2.txt": "two line ends\n\n",
            "3.webp": b"",
            "3.txt": "of another kind\r\n",
            "4.PNG": b"",
            "4.json": json.dumps({"caption": "naïve \ud83d\n", "key": "4"}),
            "5.jpg": b"",
            "5.txt": "",
            "5.json": json.dumps({"caption": "not this one"}),
            "6.jpg": b"",
            "6.TXT": "ends in a carriage return\r",
        },
    )
    assert rows_of(index_webdataset("cc", tmp_path, workers=1)) == [
        ("a/1.jpg", " two\nlines "),
        ("a/2.jpeg", "two line ends\n"),
        ("a/3.webp", "of another kind"),
        ("a/4.PNG", "naïve ?\n"),
        ("a/5.jpg", ""),
        ("a/6.jpg", "ends in a carriage return\r"),
    ]


def test_incomplete_samples_are_counted(tmp_path: Path) -> None:
    write_shard(
        tmp_path,
        "a",
        {
            "whole.jpg": b"",
            "whole.txt": "x",
            "whole.cls": "5",
            "without caption.jpg": b"",
            "metadata without one.jpg": b"",
            "metadata without one.json": '{"url": "x"}',
            "metadata with null.jpg": b"",
            "metadata with null.json": '{"caption": null}',
            "without image.txt": "x",
            "without image.json": '{"caption": "x"}',
            "metadata alone.json": "{}",
            "README": "no sample",
            "other.kind": "no sample",
            "._whole.jpg": b"what a Mac leaves",
            "._whole.txt": b"\xff",
        },
    )
    found = index_webdataset("cc", tmp_path, workers=1)
    assert rows_of(found) == [("a/whole.jpg", "x")]
    assert found.left_out == {"without a caption": 3, "without an image": 2}


key_parts = st.text("abcXYZ019_-. é漢", min_size=1, max_size=12).filter(
    lambda part: part.strip(". ") == part
)
keys = st.lists(key_parts, min_size=1, max_size=3).map("/".join)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.dictionaries(keys, st.tuples(st.binary(max_size=600), text), min_size=1, max_size=6),
    apart=st.booleans(),
    dotted=st.booleans(),
)
def test_any_key_finds_its_image_and_caption(
    tmp_path_factory: pytest.TempPathFactory,
    samples: dict[str, tuple[bytes, str]],
    apart: bool,
    dotted: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any keys"
    start = "./" if dotted else ""
    images = {f"{start}{key}.jpg": data for key, (data, _) in samples.items()}
    texts = {f"{start}{key}.txt": f"{caption}\n" for key, (_, caption) in samples.items()}
    members: dict[str, bytes | str] = {}
    for image, caption in zip(images, texts, strict=True):
        members |= {caption: texts[caption], image: images[image]}
    write_shard(folder, "a b", {**texts, **images} if apart else members)
    found = index_webdataset("cc", folder, workers=1)
    expected = {f"a b/{key}.jpg": caption for key, (_, caption) in samples.items()}
    # A text's own "\r" before the line end reads like half of a line end.
    expected = {path: caption.removesuffix("\r") for path, caption in expected.items()}
    assert dict(rows_of(found)) == expected
    with ImageReader(folder) as reader:
        for row in found.index.frame.itertuples(index=False):
            assert reader.read(row) == samples[str(row.path)[4:-4]][0]


def test_split_goes_by_the_hash_of_the_path(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {}
    for number in range(2000):
        members |= {f"{number}.jpg": b"", f"{number}.txt": "x"}
    write_shard(tmp_path, "00000", members)
    frame = index_webdataset("cc", tmp_path, 100, workers=1).index.frame
    for path, split in zip(frame["path"], frame["split"], strict=True):
        number = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")
        assert split == ("test" if number % 1000 < 100 else "train")
    assert 150 < (frame["split"] == "test").sum() < 250
    assert set(index_webdataset("cc", tmp_path, 0, workers=1).index.frame["split"]) == {"train"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        pytest.param({"a.txt": b"\xff"}, "'a.txt' is not UTF-8 .byte 0", id="text not UTF-8"),
        pytest.param({"a.json": b'{"caption": "\xff"}'}, "'a.json' is not UTF-8", id="JSON, too"),
        pytest.param({"a.json": "{"}, "'a.json' is no JSON object", id="JSON cut off"),
        pytest.param({"a.json": "[]"}, "'a.json' is no JSON object", id="JSON of another kind"),
        pytest.param(
            {"a.json": '{"caption": 5}'}, "'a.json': the caption 5 is no text", id="number"
        ),
        pytest.param(
            {"a.png": b"", "a.txt": "x"}, "sample 'a' has both 'a.jpg' and 'a.png'", id="two images"
        ),
        pytest.param(
            {"a.txt": "x", "./a.txt": "y"}, "has both 'a.txt' and './a.txt'", id="two captions"
        ),
    ],
)
def test_fault_in_a_sample_is_named(
    tmp_path: Path, members: dict[str, bytes | str], message: str
) -> None:
    shard = write_shard(tmp_path, "00007", {"a.jpg": b"", **members})
    with pytest.raises(UserError, match=f"^{shard}: .*{message}"):
        index_webdataset("cc", tmp_path, workers=1)


def test_truncated_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    shard = tmp_path / "00002.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(UserError, match=f"^{shard}: damaged or truncated"):
        index_webdataset("cc", tmp_path, workers=1)


def test_folder_without_shards_or_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path / 'no'}: no such folder"):
        index_webdataset("cc", tmp_path / "no")
    with pytest.raises(UserError, match=f"^{tmp_path}: holds no .tar file"):
        index_webdataset("cc", tmp_path)
    write_shard(tmp_path, "a", {"a.jpg": b"", "b.txt": "x"})
    with pytest.raises(UserError, match=f"^{tmp_path}: no sample in 1 shards has both"):
        index_webdataset("cc", tmp_path, workers=1)


def test_shard_without_samples_does_not_matter(tmp_path: Path) -> None:
    captions = write_shards(tmp_path, shards=1)
    write_shard(tmp_path, "00001", {"README": "x"})
    found = index_webdataset("cc", tmp_path, workers=1)
    assert dict(rows_of(found)) == captions
    check(found.index.frame)


@pytest.mark.parametrize("share", [-1, 1000])
def test_share_out_of_range_is_refused(tmp_path: Path, share: int) -> None:
    with pytest.raises(UserError, match=f"validation_per_mille is {share}, not 0 to 999"):
        index_webdataset("cc", tmp_path, share)
