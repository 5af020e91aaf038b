"""Where corpora lie is checked before they are read, and every kind of source becomes an index."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpora_factory import make_base, make_domainnet, make_imagenet, make_tsv_base, tar_bytes

from clip_mixtures.corpora.indexing import domain_lists, index_all, index_domains, write_indices
from clip_mixtures.corpora.sources import BASE_FORMATS, Domains, Sources, base_source
from clip_mixtures.errors import UserError
from clip_mixtures.index import read_index

CLASSES = ["ant", "bee"]

# ---- what is said of a base set


@pytest.mark.parametrize(
    "params",
    [
        {"format": "imagenet_captions", "captions": "c.json"},
        {"format": "imagenet_captions", "captions": "c.json", "images": "i.tar", "split": "s.json"},
        {"format": "tsv", "train": "t.tsv"},
        {"format": "tsv", "train": "t", "validation": "v", "images": "i", "quoted": True},
        {"format": "tsv", "train": "t", "quoted": False},
        {"format": "webdataset", "shards": "s"},
        {"format": "webdataset", "shards": "s", "validation_per_mille": 0},
    ],
)
def test_what_is_said_of_a_base_set_comes_back_with_paths(params: dict[str, Any]) -> None:
    paths = BASE_FORMATS[params["format"]].paths
    expected = {key: Path(value) if key in paths else value for key, value in params.items()}
    assert base_source("cc", params, "corpus.bases.cc") == expected


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("tsv", ": is 'tsv', not a mapping with a 'format'"),
        (None, ": is None, not a mapping"),
        ({}, r"\.format: unknown format None; allowed: imagenet_captions, tsv, webdataset"),
        ({"format": "TSV"}, r"\.format: unknown format 'TSV'; "),
        ({"format": "webdatset"}, r"\.format: .*'webdatset'; did you mean 'webdataset'"),
        ({"format": ["tsv"], "train": "x"}, r"\.format: unknown format \['tsv'\]"),
        ({"format": "tsv"}, ": train missing; format 'tsv' needs it"),
        ({"format": "tsv", "validation": "v"}, ": train missing"),
        ({"format": "imagenet_captions", "images": "i"}, ": captions missing"),
        ({"format": "webdataset", "validation_per_mille": 3}, ": shards missing"),
        ({"format": "tsv", "train": 3}, r"\.train: is 3, not a path"),
        ({"format": "tsv", "train": None}, r"\.train: is None, not a path"),
        ({"format": "tsv", "train": "t", "images": ["i"]}, r"\.images: is \['i'\], not a path"),
        ({"format": "tsv", "train": "t", "quoted": 1}, r"\.quoted: is 1, not of type bool"),
        ({"format": "tsv", "train": "t", "quoted": "yes"}, r"\.quoted: is 'yes', not of type bool"),
        (
            {"format": "webdataset", "shards": "s", "validation_per_mille": True},
            r"\.validation_per_mille: is True, not of type int",
        ),
        (
            {"format": "webdataset", "shards": "s", "validation_per_mille": 1.0},
            r"\.validation_per_mille: is 1\.0, not of type int",
        ),
        (
            {"format": "tsv", "train": "t", "imags": "i"},
            r": unknown key 'imags'; did you mean 'images'",
        ),
        # A key of another format is no key of this one.
        ({"format": "tsv", "train": "t", "shards": "s"}, ": unknown key 'shards'"),
        ({"format": "webdataset", "shards": "s", "quoted": True}, ": unknown key 'quoted'"),
    ],
)
def test_a_mistake_in_a_base_set_is_named(params: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"^corpus\.bases\.cc{message}"):
        base_source("cc", params, "corpus.bases.cc")


# ---- every kind of source


def domains(root: Path) -> Sources:
    make_domainnet(root / "domains", ["real", "sketch"], CLASSES, train=2, test=1)
    return Sources(Domains(root / "domains", ("sketch", "real")))


def lists_alone(root: Path) -> Sources:
    found = domains(root)
    assert found.domains is not None
    for path in (root / "domains").glob("*.zip"):
        path.unlink()
    return Sources(dataclasses.replace(found.domains, images=False))


def folders(root: Path) -> Sources:
    make_domainnet(root / "domains", ["real", "sketch"], CLASSES, train=5, test=5, archive=False)
    return Sources(Domains(root / "domains", layout="folders", test_share=0.5))


def captions(root: Path) -> Sources:
    make_base(root, images=6)
    path = root / "captions.json"
    entries = json.loads(path.read_text())
    entries[0] |= {"title": "", "tags": [], "description": ""}
    entries += [entries[0], {"filename": "gone.png", "title": "gone"}]
    path.write_text(json.dumps(entries))
    split = root / "split.json"
    names = [entry["filename"] for entry in entries]
    split.write_text(json.dumps({"train": names[:4], "val": names[4:5]}))
    source = {"captions": path, "images": root / "images.tar", "split": split}
    return Sources(bases={"in": {"format": "imagenet_captions", **source}})


def captions_alone(root: Path) -> Sources:
    path = root / "captions.json"
    path.write_text('[{"filename": "1.JPEG", "wnid": "n01440764", "title": "x"}]')
    return Sources(bases={"in": {"format": "imagenet_captions", "captions": path}})


def tsv(root: Path) -> Sources:
    make_tsv_base(root, ["one", "", "two"])
    source = {"train": root / "captions.tsv", "images": root / "images"}
    return Sources(bases={"cc": {"format": "tsv", **source}})


def quoted_tsv(root: Path) -> Sources:
    (root / "train.tsv").write_text('filepath\ttitle\na\t"two\nlines"\nb\t""\n')
    (root / "val.tsv").write_text("filepath\ttitle\nc\tthree\n")
    source = {"train": root / "train.tsv", "validation": root / "val.tsv", "quoted": True}
    return Sources(bases={"cc": {"format": "tsv", **source}})


def webdataset(root: Path) -> Sources:
    (root / "shards").mkdir()
    files = {"1.jpg": b"1", "1.txt": b"one", "2.jpg": b"2", "3.txt": b"three", "4.png": b"4"}
    (root / "shards" / "0.tar").write_bytes(tar_bytes({**files, "4.txt": b""}))
    return Sources(bases={"cc": {"format": "webdataset", "shards": root / "shards"}})


def imagenet(root: Path) -> Sources:
    for name in ("sketch", "train", "val"):
        make_imagenet(root / name, ["n01629819", "n01632458"], each=2)
    return Sources(
        imagenet_sketch=root / "sketch",
        imagenet_train=root / "train",
        imagenet_validation=root / "val",
    )


def labelled(root: Path) -> Sources:
    (root / "val").mkdir()
    (root / "val" / "a.JPEG").write_bytes(b"x")
    (root / "labels.csv").write_text("ImageId,PredictionString\na,n01629819 1 2 3 4\n")
    return Sources(imagenet_validation=root / "val", imagenet_labels=root / "labels.csv")


def several(root: Path) -> Sources:
    parts = [domains(root), tsv(root)]
    (root / "in").mkdir()
    bases = {**parts[1].bases, **captions_alone(root / "in").bases}
    return dataclasses.replace(parts[0], bases=bases)


KINDS: list[tuple[Callable[[Path], Sources], list[str]]] = [
    (domains, ["domains: 12 images, 2 classes in 2 domains"]),
    (lists_alone, ["domains: 12 images, 2 classes in 2 domains"]),
    (folders, ["domains: 40 images, 2 classes in 2 domains"]),
    (
        captions,
        [
            "base-in: 5 images, 1 of them with an empty caption, 1 left out without image, "
            "1 left out in no split, 1 left out named before"
        ],
    ),
    (captions_alone, ["base-in: 1 images"]),
    (tsv, ["base-cc: 3 images, 1 of them with an empty caption"]),
    (quoted_tsv, ["base-cc: 3 images, 1 of them with an empty caption"]),
    (
        webdataset,
        [
            "base-cc: 2 images, 1 of them with an empty caption, 1 left out without a caption, "
            "1 left out without an image"
        ],
    ),
    # Images with labels alone have no captions to miss.
    (
        imagenet,
        ["imagenet_sketch: 4 images", "imagenet_train: 4 images", "imagenet_validation: 4 images"],
    ),
    (labelled, ["imagenet_validation: 1 images"]),
    (
        several,
        [
            "domains: 12 images, 2 classes in 2 domains",
            "base-cc: 3 images, 1 of them with an empty caption",
            "base-in: 1 images",
        ],
    ),
]


@pytest.mark.parametrize(("make", "lines"), KINDS, ids=[make.__name__ for make, _ in KINDS])
def test_every_kind_of_source_is_indexed_and_told(
    tmp_path: Path, make: Callable[[Path], Sources], lines: list[str]
) -> None:
    sources = make(tmp_path)
    assert write_indices(sources, tmp_path / "out") == lines
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{line.partition(':')[0]}.parquet" for line in lines}
    for (name, index, _), line in zip(index_all(sources), lines, strict=True):
        # Reading checks every column.
        stored = read_index(tmp_path / "out" / f"{name}.parquet")
        assert len(stored) == len(index) == int(line.split()[1])
        assert stored.root == index.root


def test_what_is_said_of_the_sources_reaches_the_readers(tmp_path: Path) -> None:
    write_indices(captions(tmp_path), tmp_path / "out")
    frame = read_index(tmp_path / "out" / "base-in.parquet").frame
    assert list(frame["split"]) == ["train"] * 4 + ["test"]
    assert set(frame["archive"]) == {"images.tar"}
    write_indices(quoted_tsv(tmp_path), tmp_path / "out")
    frame = read_index(tmp_path / "out" / "base-cc.parquet").frame
    assert list(frame["caption"]) == ["two\nlines", "", "three"]
    assert list(frame["split"]) == ["train", "train", "test"]


def test_nothing_to_index_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to index; name a corpus"):
        write_indices(Sources(), tmp_path / "out")
    # Labels are of a validation set and none themselves.
    with pytest.raises(UserError, match="nothing to index"):
        write_indices(Sources(imagenet_labels=tmp_path / "labels.csv"), tmp_path / "out")


def test_a_share_of_every_class_tests_where_no_list_says(tmp_path: Path) -> None:
    found = folders(tmp_path).domains
    assert found is not None
    lists = domain_lists(found)
    assert set(lists) == {
        (domain, split) for domain in ("real", "sketch") for split in ("train", "test")
    }
    few = domain_lists(dataclasses.replace(found, test_share=0.1))
    # A larger share contains the smaller one.
    for domain in ("real", "sketch"):
        assert set(few[domain, "test"]) < set(lists[domain, "test"])
    with pytest.raises(UserError, match="test_share is 0; it lies between 0 and 1"):
        domain_lists(dataclasses.replace(found, test_share=0))


def test_the_six_domains_are_taken_where_none_are_named(tmp_path: Path) -> None:
    six = ["sketch", "real", "quickdraw", "painting", "infograph", "clipart", "other"]
    make_domainnet(tmp_path, six, CLASSES, train=1, test=1)
    assert index_domains(Domains(tmp_path)).domains() == sorted(six[:-1])
    assert index_domains(Domains(tmp_path, ("other", "real"))).domains() == ["real", "other"]


def test_an_index_that_cannot_be_made_leaves_those_before_it(tmp_path: Path) -> None:
    sources = dataclasses.replace(domains(tmp_path), imagenet_sketch=tmp_path / "absent")
    with pytest.raises(UserError, match="absent"):
        write_indices(sources, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["domains.parquet"]
