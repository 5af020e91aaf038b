"""The index of a DomainNet copy equals its lists, wherever the images lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from corpora_factory import TinyCorpus, make_domainnet

from clip_mixtures.corpora.captions import published_captions
from clip_mixtures.corpora.domainnet import index_domainnet, read_lists
from clip_mixtures.errors import UserError
from clip_mixtures.images import pack
from clip_mixtures.index import check, read_index, write_index

DOMAINS = ["real", "clipart", "sketch"]
ORDERED = ["clipart", "real", "sketch"]
CLASSES = ["ant", "polar bear", "sun"]


def write_lists(root: Path, train: str | bytes, test: str = "", domain: str = "real") -> None:
    data = train if isinstance(train, bytes) else train.encode()
    (root / f"{domain}_train.txt").write_bytes(data)
    (root / f"{domain}_test.txt").write_text(test, encoding="utf-8")


def test_index_equals_the_lists(tmp_path: Path) -> None:
    make_domainnet(tmp_path, DOMAINS, CLASSES, train=3, test=2)
    index = index_domainnet(tmp_path, DOMAINS)
    frame = index.frame
    expected = [
        (*line.rsplit(" ", 1), domain, split)
        for domain in ORDERED
        for split in ("train", "test")
        for line in (tmp_path / f"{domain}_{split}.txt").read_text().splitlines()
    ]
    found = zip(
        frame["path"], frame["class_id"].astype(str), frame["domain"], frame["split"], strict=True
    )
    assert list(found) == expected
    assert len(index) == 3 * 3 * 5
    assert index.class_names() == CLASSES
    assert index.domains() == ORDERED
    assert set(frame["corpus"]) == {"domainnet"}
    assert list(frame["archive"]) == [f"{domain}.zip" for domain in frame["domain"]]
    check(frame)


def test_index_holds_standard_and_aligned_captions(tmp_path: Path) -> None:
    make_domainnet(tmp_path, DOMAINS, CLASSES)
    lists = read_lists(tmp_path, DOMAINS)
    frame = index_domainnet(tmp_path, DOMAINS).frame
    for column, aligned in (("caption", False), ("aligned_caption", True)):
        of_lists = published_captions(lists, aligned).values()
        assert list(frame[column]) == [caption for captions in of_lists for caption in captions]


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "folder"])
def test_indexed_images_are_the_images(tmp_path: Path, archive: bool) -> None:
    images = make_domainnet(tmp_path, DOMAINS, CLASSES, archive=archive)
    frame = index_domainnet(tmp_path, DOMAINS).frame
    assert frame["archive"].isna().all() != archive
    assert set(frame["path"]) == set(images)
    for path, pixels in zip(frame["path"], pack(frame, tmp_path, 16), strict=True):
        np.testing.assert_array_equal(pixels, images[path], err_msg=path)


def test_archives_and_folders_may_stand_side_by_side(tmp_path: Path) -> None:
    images = make_domainnet(tmp_path, ["clipart"], CLASSES)
    images |= make_domainnet(tmp_path, ["real"], CLASSES, archive=False)
    # Written and read back, because only then nulls stand beside numbers in a column.
    write_index(tmp_path / "i.parquet", index_domainnet(tmp_path, ["real", "clipart"]))
    frame = read_index(tmp_path / "i.parquet").frame
    assert frame["archive"].isna().tolist() == (frame["domain"] == "real").tolist()
    for path, pixels in zip(frame["path"], pack(frame, tmp_path, 16), strict=True):
        np.testing.assert_array_equal(pixels, images[path], err_msg=path)


def test_tiny_corpus_is_whole(tiny_corpus: Callable[..., TinyCorpus]) -> None:
    corpus = tiny_corpus()
    assert len(corpus.domains) == 4 * 4 * (4 + 2)
    assert len(corpus.base) == 12
    for index in (corpus.domains, corpus.base):
        assert set(index.frame["split"]) == {"train", "test"}
        packed = pack(index.frame, index.root, 16)
        assert len(np.unique(packed.reshape(len(index), -1), axis=0)) == len(index)


def test_without_images_the_lists_alone_are_indexed(tmp_path: Path) -> None:
    make_domainnet(tmp_path, ["real"], CLASSES)
    located = index_domainnet(tmp_path, ["real"]).frame
    (tmp_path / "real.zip").unlink()
    with pytest.raises(UserError, match=r"neither real\.zip nor a folder real/"):
        index_domainnet(tmp_path, ["real"])
    frame = index_domainnet(tmp_path, ["real"], images=False).frame
    places = ["archive", "offset", "length", "compression"]
    assert frame[places].isna().all(axis=None)
    pd.testing.assert_frame_equal(
        frame.drop(columns=places), located.drop(columns=places), check_dtype=False
    )


def test_index_is_the_same_each_time(tmp_path: Path) -> None:
    make_domainnet(tmp_path, DOMAINS, CLASSES)
    written = []
    for order in (DOMAINS, DOMAINS, sorted(DOMAINS)):
        write_index(tmp_path / "i.parquet", index_domainnet(tmp_path, order))
        written.append((tmp_path / "i.parquet").read_bytes())
    assert written[0] == written[1] == written[2]


def test_images_that_no_list_names_are_left_out(tmp_path: Path) -> None:
    make_domainnet(tmp_path, ["real"], CLASSES, train=3)
    kept = (tmp_path / "real_train.txt").read_text().splitlines()[1:]
    (tmp_path / "real_train.txt").write_text("\n".join(kept) + "\n")
    assert len(index_domainnet(tmp_path, ["real"])) == 3 * 5 - 1


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("real/ant/1.png", id="no label"),
        pytest.param("real/ant/1.png x", id="label that is no number"),
        pytest.param("real/ant/1.png -1", id="negative label"),
        pytest.param("sketch/ant/1.png 0", id="another domain"),
        pytest.param("real/1.png 0", id="no class"),
        pytest.param("real/ant/deep/1.png 0", id="too deep"),
        pytest.param("real/ant/1.png\t0", id="tab"),
        pytest.param("", id="empty line"),
    ],
)
def test_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str) -> None:
    write_lists(tmp_path, f"real/ant/0.png 0\n{line}\nreal/ant/2.png 0\n")
    with pytest.raises(UserError, match=rf"{tmp_path / 'real_train.txt'}:2: "):
        index_domainnet(tmp_path, ["real"], images=False)


def test_absent_list_names_what_is_there(tmp_path: Path) -> None:
    make_domainnet(tmp_path, ["clipart", "real"], CLASSES)
    with pytest.raises(UserError) as raised:
        index_domainnet(tmp_path, ["clipart", "sketch"])
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'sketch_train.txt'}: no such list")
    assert "'sketch' is not in the corpus" in message
    assert "clipart_train.txt, real_train.txt" in message


def test_absent_list_in_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lists found: none"):
        read_lists(tmp_path, ["real"])


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "folder"])
def test_listed_image_that_is_not_there_is_named(tmp_path: Path, archive: bool) -> None:
    make_domainnet(tmp_path, ["real"], CLASSES, archive=archive)
    with open(tmp_path / "real_test.txt", "a") as file:
        file.write("real/ant/lost.png 0\nreal/ant/astray.png 0\n")
    with pytest.raises(UserError) as raised:
        index_domainnet(tmp_path, ["real"])
    place = tmp_path / ("real.zip" if archive else "real")
    assert f"{place}: 2 of 20 listed images" in str(raised.value)
    assert "'real/ant/astray.png'" in str(raised.value)


def test_truncated_archive_is_named(tmp_path: Path) -> None:
    make_domainnet(tmp_path, ["real"], CLASSES)
    archive = tmp_path / "real.zip"
    archive.write_bytes(archive.read_bytes()[:-300])
    with pytest.raises(UserError, match=f"{archive}: damaged or truncated"):
        index_domainnet(tmp_path, ["real"])


def test_label_with_two_names_is_refused(tmp_path: Path) -> None:
    write_lists(tmp_path, "real/ant/1.png 0\nreal/bee/1.png 1\n")
    write_lists(tmp_path, "sketch/ant/1.png 0\nsketch/cat/1.png 1\n", domain="sketch")
    with pytest.raises(UserError, match="label 1 stands for several classes: bee, cat"):
        index_domainnet(tmp_path, ["real", "sketch"], images=False)


def test_name_with_two_labels_is_refused(tmp_path: Path) -> None:
    # It would count as two classes that no caption can tell apart.
    write_lists(tmp_path, "real/ant/1.png 0\nreal/bee/1.png 1\nreal/ant/2.png 2\n")
    with pytest.raises(UserError, match="ant"):
        index_domainnet(tmp_path, ["real"], images=False)


def test_domain_without_test_images(tmp_path: Path) -> None:
    write_lists(tmp_path, "real/ant/1.png 0\n")
    frame = index_domainnet(tmp_path, ["real"], images=False).frame
    assert list(frame["split"]) == ["train"]


def test_list_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    write_lists(tmp_path, "real/ant/é.png 0\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"real_train\.txt"):
        index_domainnet(tmp_path, ["real"], images=False)


def test_label_beyond_32_bits_is_named(tmp_path: Path) -> None:
    write_lists(tmp_path, "real/ant/1.png 99999999999\n")
    with pytest.raises(UserError, match=r"real_train\.txt:1"):
        index_domainnet(tmp_path, ["real"], images=False)
