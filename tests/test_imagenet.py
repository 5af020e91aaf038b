"""ImageNet and ImageNet-Sketch: labels and captions by known answers, whatever the packing."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
from corpora_factory import tar_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.corpora.classes import (
    imagenet_class_names,
    imagenet_synsets,
    noun_phrase,
    synset_labels,
)
from clip_mixtures.corpora.imagenet import index_imagenet
from clip_mixtures.corpora.imagenet_sketch import index_imagenet_sketch, without_counterpart
from clip_mixtures.errors import UserError
from clip_mixtures.images import ImageReader
from clip_mixtures.index import Index, check, read_index, write_index

# Neither in the order of the synsets nor of the file names.
FILES = {
    "n01443537/n01443537_2.JPEG": b"goldfish 2",
    "n01440764/n01440764_10.JPEG": b"tench 10",
    "n01440764/n01440764_9.JPEG": b"tench 9",
    "n15075141/é 1.jpg": b"toilet tissue",
    "n01443537/n01443537_1.png": b"goldfish 1",
}
ORDERED = [
    ("n01440764/n01440764_10.JPEG", 0, "tench"),
    ("n01440764/n01440764_9.JPEG", 0, "tench"),
    ("n01443537/n01443537_1.png", 1, "goldfish"),
    ("n01443537/n01443537_2.JPEG", 1, "goldfish"),
    ("n15075141/é 1.jpg", 999, "toilet paper"),
]
OTHERS = {"LOC_synset_mapping.txt": b"x", "n01440764/notes.txt": b"x", "n01440764/._1.JPEG": b"x"}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(tar_bytes(files))
    return path


def tar_of_tars(path: Path, files: dict[str, bytes]) -> Path:
    inner: dict[str, dict[str, bytes]] = {}
    for name, data in files.items():
        folder, _, file = name.rpartition("/")
        inner.setdefault(folder, {})[file] = data
    return write_tar(path, {f"{name}.tar": tar_bytes(members) for name, members in inner.items()})


PACKINGS = [
    pytest.param(lambda root, files: write_folder(root / "train", files), "train/", id="folder"),
    pytest.param(lambda root, files: write_zip(root / "a.zip", files), "", id="zip"),
    pytest.param(lambda root, files: write_tar(root / "a.tar", files), "", id="tar"),
    pytest.param(
        lambda root, files: write_zip(root / "a.zip", {f"x/y/{k}": v for k, v in files.items()}),
        "x/y/",
        id="deep zip",
    ),
]
Packing = Callable[[Path, dict[str, bytes]], Path]


def rows_of(index: Index) -> list[tuple[str, int, str]]:
    frame = index.frame
    return list(zip(frame["path"], frame["class_id"], frame["class_name"], strict=True))


def contents(index: Index) -> dict[str, bytes]:
    with ImageReader(index.root) as reader:
        rows = index.frame.itertuples(index=False)
        return {str(row.path): reader.read(row) for row in rows}


@pytest.mark.parametrize(("packing", "start"), PACKINGS)
def test_images_have_the_class_of_their_synset(
    tmp_path: Path, packing: Packing, start: str
) -> None:
    images = packing(tmp_path, {**OTHERS, **FILES})
    index = index_imagenet(images, "train")
    assert rows_of(index) == [(start + path, label, name) for path, label, name in ORDERED]
    assert contents(index) == {start + path: data for path, data in FILES.items()}
    frame = index.frame
    assert index.root == tmp_path
    assert set(frame["corpus"]) == set(frame["domain"]) == {"imagenet"}
    assert set(frame["caption"]) == {""}
    assert frame["aligned_caption"].isna().all()
    check(frame)
    write_index(tmp_path / "i.parquet", index)
    assert rows_of(read_index(tmp_path / "i.parquet")) == rows_of(index)


def test_training_archive_is_a_tar_of_tars(tmp_path: Path) -> None:
    index = index_imagenet(tar_of_tars(tmp_path / "train.tar", FILES), "train")
    assert rows_of(index) == ORDERED
    assert contents(index) == FILES
    assert set(index.frame["archive"]) == {"train.tar"}


@pytest.mark.parametrize(
    ("given", "split"), [("train", "train"), ("val", "test"), ("test", "test")]
)
def test_validation_images_are_for_testing(tmp_path: Path, given: str, split: str) -> None:
    images = write_zip(tmp_path / "a.zip", FILES)
    assert set(index_imagenet(images, given).frame["split"]) == {split}


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.zip: unknown split 'vall'; did you mean 'val'"):
        index_imagenet(tmp_path / "a.zip", "vall")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        pytest.param("n99999999/1.JPEG", "n99999999", id="no synset"),
        pytest.param("n00004475/1.JPEG", "n00004475", id="synset without a class"),
        pytest.param("1.JPEG", "", id="no folder"),
        pytest.param("n01440764/deeper/1.JPEG", "deeper", id="synset further above"),
    ],
)
def test_image_outside_the_synsets_is_named(tmp_path: Path, name: str, folder: str) -> None:
    images = write_tar(tmp_path / "a.tar", {**FILES, name: b"x", "n99999998/2.JPEG": b"y"})
    with pytest.raises(UserError) as raised:
        index_imagenet(images, "train")
    assert str(raised.value).startswith(f"{images}: {name!r} lies in {folder!r}, which is none of")


def test_absent_damaged_and_empty_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path / 'no.tar'}: no such archive"):
        index_imagenet(tmp_path / "no.tar", "train")
    images = write_tar(tmp_path / "a.tar", {"n01440764/notes.txt": b"x"})
    with pytest.raises(UserError, match=f"^{images}: holds no image"):
        index_imagenet(images, "train")
    images.write_bytes(images.read_bytes()[:600])
    with pytest.raises(UserError, match=f"^{images}: damaged or truncated"):
        index_imagenet(images, "train")


# The flat validation set

VALIDATION = {f"ILSVRC2012_val_{number:08}.JPEG": bytes([number]) for number in (3, 1, 2, 4)}
# By image number; the development kit numbers the synsets in an order of its own.
TRUTH = ["n01443537", "n15075141", "n01440764", "n01443537"]
VALIDATION_ROWS = [
    ("ILSVRC2012_val_00000003.JPEG", 0, "tench"),
    ("ILSVRC2012_val_00000001.JPEG", 1, "goldfish"),
    ("ILSVRC2012_val_00000004.JPEG", 1, "goldfish"),
    ("ILSVRC2012_val_00000002.JPEG", 999, "toilet paper"),
]
NUMBERS = {"n15075141": 1, "n01440764": 2, "n01443537": 3, "n00001740": 1001}


def meta_bytes(numbers: dict[str, int]) -> bytes:
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    synsets = np.zeros((len(numbers), 1), dtype=kind)
    for row, (synset, number) in enumerate(numbers.items()):
        synsets[row, 0] = (np.array([[number]], dtype=np.uint16), synset, "some, words")
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets})  # type: ignore[arg-type]
    return file.getvalue()


def write_devkit(
    root: Path,
    truth: str | None = None,
    numbers: dict[str, int] = NUMBERS,
    meta: bytes | None = None,
) -> Path:
    if truth is None:
        truth = "".join(f"{numbers[synset]}\n" for synset in TRUTH)
    path = root / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in {
            "readme.txt": b"x",
            "data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
            "data/meta.mat": meta_bytes(numbers) if meta is None else meta,
        }.items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_csv(root: Path, rows: Sequence[str] | None = None, end: str = "\n") -> Path:
    if rows is None:
        boxes = ["85 1 499 272 ", "1 2 3 4 n01440764 5 6 7 8", "", "0 0 1 1"]
        rows = [
            f"ILSVRC2012_val_{number:08},{synset} {box}"
            for number, (synset, box) in enumerate(zip(TRUTH, boxes, strict=True), start=1)
        ]
    path = root / "LOC_val_solution.csv"
    path.write_bytes("".join(f"{row}{end}" for row in ["ImageId,PredictionString", *rows]).encode())
    return path


@pytest.mark.parametrize("labels", [write_devkit, write_csv])
@pytest.mark.parametrize(("packing", "start"), PACKINGS)
def test_flat_validation_images_have_the_class_of_their_label(
    tmp_path: Path, packing: Packing, start: str, labels: Callable[[Path], Path]
) -> None:
    index = index_imagenet(packing(tmp_path, VALIDATION), "val", labels(tmp_path))
    assert rows_of(index) == [(start + path, label, name) for path, label, name in VALIDATION_ROWS]
    assert contents(index) == {start + path: data for path, data in VALIDATION.items()}
    assert set(index.frame["split"]) == {"test"}
    check(index.frame)


def test_some_of_the_images_are_enough(tmp_path: Path) -> None:
    images = write_tar(tmp_path / "a.tar", {"ILSVRC2012_val_00000002.JPEG": b"x"})
    assert rows_of(index_imagenet(images, "val", write_devkit(tmp_path))) == VALIDATION_ROWS[3:]


def test_development_kit_with_one_synset(tmp_path: Path) -> None:
    images = write_tar(tmp_path / "a.tar", {"ILSVRC2012_val_00000001.JPEG": b"x"})
    labels = write_devkit(tmp_path, "7\n", {"n01440764": 7})
    assert [row[1] for row in rows_of(index_imagenet(images, "val", labels))] == [0]


def test_labels_with_carriage_returns(tmp_path: Path) -> None:
    images = write_tar(tmp_path / "a.tar", VALIDATION)
    assert rows_of(index_imagenet(images, "val", write_csv(tmp_path, end="\r\n"))) == (
        VALIDATION_ROWS
    )
    labels = write_devkit(tmp_path, "3\r\n1\r\n2\r\n3\r\n")
    assert rows_of(index_imagenet(images, "val", labels)) == VALIDATION_ROWS


@pytest.mark.parametrize("labels", [write_devkit, write_csv])
def test_image_without_a_label_is_named(tmp_path: Path, labels: Callable[[Path], Path]) -> None:
    images = write_tar(tmp_path / "a.tar", {**VALIDATION, "ILSVRC2012_val_00000005.JPEG": b"x"})
    path = labels(tmp_path)
    with pytest.raises(UserError, match=f"^{images}: 'ILSVRC.*5.JPEG' has no label in {path};"):
        index_imagenet(images, "val", path)


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        pytest.param(["a,n01440764 1", "b,n99999999 1"], 3, "'b,n99999999 1' is not", id="synset"),
        pytest.param(["a,n01440764 1", ""], 3, "'' is not <image>,<synset>", id="empty line"),
        pytest.param(["a"], 2, "'a' is not <image>,<synset>", id="one field"),
        pytest.param(["a,b,c"], 2, "'a,b,c' is not <image>,<synset>", id="three fields"),
        pytest.param(["a,"], 2, "'a,' is not <image>,<synset>", id="no synset"),
        pytest.param(["a,n01440764", "a,n01440764"], 3, "'a' has a label already", id="twice"),
        pytest.param(['a,"n01440764'], 2, "unexpected end of data", id="unclosed quote"),
    ],
)
def test_fault_in_the_csv_is_named_by_line(
    tmp_path: Path, rows: list[str], line: int, message: str
) -> None:
    images = write_tar(tmp_path / "a.tar", VALIDATION)
    labels = write_csv(tmp_path, rows)
    with pytest.raises(UserError, match=f"^{labels}:{line}: {message}"):
        index_imagenet(images, "val", labels)


@pytest.mark.parametrize("data", [b"", b"image,label\n", b"n01440764,1\n"])
def test_csv_with_another_header_is_refused(tmp_path: Path, data: bytes) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_bytes(data)
    with pytest.raises(UserError, match=f"^{labels}:1: the header is not ImageId,Predic"):
        index_imagenet(write_tar(tmp_path / "a.tar", VALIDATION), "val", labels)


@pytest.mark.parametrize("text", ["x", "0", "1001", "-1", "", "1 2", "٣", "9999999999"])
def test_fault_in_the_ground_truth_is_named_by_line(tmp_path: Path, text: str) -> None:
    images = write_tar(tmp_path / "a.tar", VALIDATION)
    labels = write_devkit(tmp_path, f"1\n{text}\n2\n")
    # Digits of other scripts are not even ASCII.
    place = ".*ground_truth.txt:2: " if text.isascii() else "no development kit"
    with pytest.raises(UserError, match=f"^{labels}: {place}"):
        index_imagenet(images, "val", labels)


def test_damaged_development_kit_is_named(tmp_path: Path) -> None:
    images = write_tar(tmp_path / "a.tar", VALIDATION)
    meta = meta_bytes(NUMBERS)
    other = io.BytesIO()
    scipy.io.savemat(other, {"other": 1})  # type: ignore[arg-type]
    table = io.BytesIO()
    scipy.io.savemat(table, {"synsets": np.ones(3)})  # type: ignore[arg-type]
    for damaged in (b"", b"no table", meta[: len(meta) // 2], other.getvalue(), table.getvalue()):
        labels = write_devkit(tmp_path, meta=damaged)
        with pytest.raises(UserError, match=f"^{labels}: no development kit, or a damaged one"):
            index_imagenet(images, "val", labels)
    whole = write_devkit(tmp_path).read_bytes()
    for data in (b"", b"no archive", whole[:100], whole[: len(whole) // 2], tar_bytes({"a": b""})):
        labels.write_bytes(data)
        with pytest.raises(UserError, match=f"^{labels}: no development kit, or a damaged one"):
            index_imagenet(images, "val", labels)


def test_absent_labels_are_named(tmp_path: Path) -> None:
    images = write_tar(tmp_path / "a.tar", VALIDATION)
    for name in ("none.csv", "none.tar.gz"):
        with pytest.raises(UserError, match=f"^{tmp_path / name}: no such file of labels"):
            index_imagenet(images, "val", tmp_path / name)


# ImageNet-Sketch

# For the name "ant", as one reads them; the code builds them.
PUBLISHED_SENTENCES = [
    "ant.",
    "a ant.",
    "the ant.",
    "ant drawing.",
    "drawing of a ant.",
    "drawing of the ant.",
    "a ant drawing.",
    "a drawing of a ant.",
    "a drawing of the ant.",
    "ant sketch.",
    "sketch of a ant.",
    "sketch of the ant.",
    "a ant sketch.",
    "a sketch of a ant.",
    "a sketch of the ant.",
    "ant image.",
    "image of a ant.",
    "image of the ant.",
    "a ant image.",
    "an image of a ant.",
    "an image of the ant.",
]


def write_sketches(tmp_path: Path, classes: Sequence[int], images: int = 1) -> Path:
    synsets = imagenet_synsets()
    names = [f"sketch/{synsets[label]}/sketch_{n}.JPEG" for label in classes for n in range(images)]
    random.Random(0).shuffle(names)
    return write_zip(tmp_path / "ImageNet-Sketch.zip", dict.fromkeys(names, b""))


def test_sketches_are_ordered_by_synset_then_file_name(tmp_path: Path) -> None:
    images = write_sketches(tmp_path, [3, 1, 999], images=11)
    index = index_imagenet_sketch(images)
    frame = index.frame
    assert list(frame["class_id"]) == [1] * 11 + [3] * 11 + [999] * 11
    order = ["sketch_0", "sketch_1", "sketch_10", "sketch_2"]
    assert [path.split("/")[2][:-5] for path in frame["path"][:4]] == order
    assert set(frame["class_name"]) == {"goldfish", "tiger shark", "toilet paper"}
    assert set(frame["corpus"]) == set(frame["domain"]) == {"imagenet_sketch"}
    assert set(frame["split"]) == {"train"}
    assert frame["aligned_caption"].isna().all()
    assert set(frame["archive"]) == {"ImageNet-Sketch.zip"}
    check(frame)


def test_published_captions_come_out_of_one_stream(tmp_path: Path) -> None:
    # Written anew from the description: two draws an image, the template, then the full stop.
    frame = index_imagenet_sketch(write_sketches(tmp_path, range(60), images=3)).frame
    stream = random.Random(42)
    expected = []
    for name in frame["class_name"]:
        template = stream.choice(PUBLISHED_SENTENCES)
        stop = stream.random() < 0.5
        sentence = template.replace("ant", name)
        expected.append(sentence if stop else sentence[:-1])
    assert list(frame["caption"]) == expected
    first = ["an image of the tench.", "a drawing of the tench.", "drawing of a tench"]
    assert expected[:3] == first


def test_published_captions_change_with_what_stands_before(tmp_path: Path) -> None:
    first = index_imagenet_sketch(write_sketches(tmp_path, range(20))).frame
    second = index_imagenet_sketch(write_sketches(tmp_path, range(1, 20))).frame
    assert list(first["caption"][1:]) != list(second["caption"])


def test_corrected_captions_go_by_the_image_alone(tmp_path: Path) -> None:
    archive = index_imagenet_sketch(write_sketches(tmp_path, range(20), 2), "corrected").frame
    fewer = index_imagenet_sketch(write_sketches(tmp_path, range(1, 20), 2), "corrected").frame
    assert list(archive["caption"][2:]) == list(fewer["caption"])
    folder = write_folder(tmp_path / "any name", dict.fromkeys(archive["path"], b""))
    unpacked = index_imagenet_sketch(folder, "corrected").frame
    assert list(unpacked["path"]) == [f"any name/{path}" for path in archive["path"]]
    assert list(unpacked["caption"]) == list(archive["caption"])


def test_corrected_captions_have_the_right_articles(tmp_path: Path) -> None:
    label = imagenet_class_names().index("ant")
    frame = index_imagenet_sketch(write_sketches(tmp_path, [label], 800), "corrected").frame
    right = {sentence.replace("a ant", "an ant") for sentence in PUBLISHED_SENTENCES}
    counts = frame["caption"].str.removesuffix(".").value_counts()
    assert {f"{sentence}." for sentence in counts.index} == right
    assert counts.min() > 800 / 21 / 2
    assert 350 < frame["caption"].str.endswith(".").sum() < 450


def test_corrected_captions_of_a_plural_have_no_article_of_its_own(tmp_path: Path) -> None:
    label = imagenet_class_names().index("binoculars")
    frame = index_imagenet_sketch(write_sketches(tmp_path, [label], 400), "corrected").frame
    sentences = set(frame["caption"].str.removesuffix("."))
    assert len(sentences) == 20
    assert {"binoculars", "the binoculars", "sketch of binoculars", "an image of binoculars"} < (
        sentences
    )
    # Here the article is the drawing's.
    assert {"a binoculars drawing", "binoculars drawing"} < sentences
    assert "drawing of a binoculars" not in sentences


@settings(max_examples=60, deadline=None)
@given(label=st.integers(0, 999), seed=st.integers(0, 999))
def test_captions_contain_the_class_name(
    tmp_path_factory: pytest.TempPathFactory, label: int, seed: int
) -> None:
    name = imagenet_class_names()[label]
    folder = tmp_path_factory.getbasetemp()
    images = write_zip(folder / "one.zip", {f"sketch/{imagenet_synsets()[label]}/{seed}.JPEG": b""})
    assert name in index_imagenet_sketch(images, "published").frame["caption"][0]
    assert noun_phrase(name).bare in index_imagenet_sketch(images, "corrected").frame["caption"][0]


def test_published_filter_keeps_514_classes(tmp_path: Path) -> None:
    index = index_imagenet_sketch(write_sketches(tmp_path, range(1000)))
    published = without_counterpart(index, "published")
    corrected = without_counterpart(index, "corrected")
    assert published.dtype == corrected.dtype == np.bool_
    assert published.sum() == 514
    assert corrected.sum() == 550
    # Every class that the published filter keeps has no counterpart indeed.
    assert not (published & ~corrected).any()
    names = np.array(imagenet_class_names())
    assert {"library", "sea lion"} <= set(names[corrected & ~published])
    expected = [synset not in synset_labels() for synset in imagenet_synsets()]
    assert corrected.tolist() == expected


def test_filter_gives_one_answer_a_row(tmp_path: Path) -> None:
    index = index_imagenet_sketch(write_sketches(tmp_path, range(0, 1000, 50), images=5))
    for protocol in ("published", "corrected"):
        answers = pd.Series(without_counterpart(index, protocol))
        assert len(answers) == len(index) == 100
        assert (answers.groupby(index.frame["class_id"].to_numpy()).nunique() == 1).all()


def test_unknown_protocol_is_refused(tmp_path: Path) -> None:
    images = write_sketches(tmp_path, [1])
    with pytest.raises(UserError, match="unknown protocol 'publish'; did you mean 'published'"):
        index_imagenet_sketch(images, "publish")
    with pytest.raises(UserError, match="unknown protocol 'both'; allowed: published, corrected"):
        without_counterpart(index_imagenet_sketch(images), "both")


def test_sketch_outside_the_synsets_is_named(tmp_path: Path) -> None:
    images = write_zip(tmp_path / "a.zip", {"sketch/ant/1.JPEG": b""})
    with pytest.raises(UserError, match=f"^{images}: 'sketch/ant/1.JPEG' lies in 'ant', which"):
        index_imagenet_sketch(images)
