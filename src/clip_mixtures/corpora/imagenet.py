"""ImageNet as labelled images: its training set, its validation set, or a part of either.

The training set comes as a tar of one tar a synset, the validation set as one flat tar whose labels
stand in the development kit; other distributions have one folder a synset.
"""

from __future__ import annotations

import csv
import functools
import io
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.io

from clip_mixtures.archives import Member, list_files
from clip_mixtures.corpora.classes import imagenet_class_names, imagenet_synsets
from clip_mixtures.errors import UserError, unknown
from clip_mixtures.files import read_text
from clip_mixtures.index import SCHEMA, Index, placed

CORPUS = "imagenet"
SPLITS = {"train": "train", "test": "test", "val": "test"}

_IMAGE_ENDINGS = (".jpeg", ".jpg", ".png")
_CSV_HEADER = ["ImageId", "PredictionString"]
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"
# What tarfile, gzip and scipy raise, between them, for a development kit that is not whole.
_DAMAGE = (
    tarfile.TarError,
    scipy.io.matlab.MatReadError,
    struct.error,
    zlib.error,
    EOFError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    NotImplementedError,
)


def index_imagenet(images: Path, split: str, labels: Path | None = None) -> Index:
    """Index ImageNet images with their labels and no captions.

    Args:
        images: a folder or archive; its parent is the corpus root. Without ``labels``, the folder
            (or inner tar) that an image lies in is named after its synset.
        split: "train", or "test" (also called "val").
        labels: the labels of the flat validation set: the development kit
            (``ILSVRC2012_devkit_t12.tar.gz``), or a CSV with the columns ImageId and
            PredictionString, the latter beginning with the synset.

    Returns:
        The images by synset, then by file name; ``class_id`` is 0 to 999 in the order of the
        synsets, the caption is empty.

    Raises:
        UserError: for absent or damaged images or labels, or an image whose synset is not known.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS, str(images))
    labelled = by_synset(images) if labels is None else _by_name(images, labels)
    frame = labelled_frame(CORPUS, images, labelled, [""] * len(labelled), SPLITS[split])
    return Index(frame, images.parent)


def by_synset(images: Path) -> list[tuple[int, Member]]:
    """Return the images of a folder or archive that has a folder for each synset.

    Returns:
        Class id and image, by synset, then by file name.

    Raises:
        UserError: when there are no images, or one lies in no folder of a synset.
    """
    ids = _class_ids()

    def class_id(member: Member) -> int:
        folder = member.name.rpartition("/")[0].rpartition("/")[2]
        if folder not in ids:
            raise UserError(
                f"{images}: {member.name!r} lies in {folder!r}, which is none of ImageNet's 1,000 "
                "synsets; images lie in a folder named after theirs, or come with labels"
            )
        return ids[folder]

    return _labelled(images, class_id)


def labelled_frame(
    corpus: str,
    images: Path,
    labelled: Sequence[tuple[int, Member]],
    captions: Sequence[str],
    split: str,
) -> pd.DataFrame:
    """Return index rows of images with ImageNet classes; corpus and domain have one name.

    Args:
        corpus: that name.
        images: the folder or archive that the images are in.
        labelled: class id and image, in row order.
        captions: one an image.
        split: "train" or "test".
    """
    members = [member for _, member in labelled]
    names = imagenet_class_names()
    frame = pd.DataFrame(
        {
            "path": pd.Series([member.name for member in members], dtype="str"),
            "corpus": corpus,
            "domain": corpus,
            "class_id": pd.array([class_id for class_id, _ in labelled], dtype="Int32"),
            "class_name": pd.Series([names[class_id] for class_id, _ in labelled], dtype="str"),
            "caption": pd.Series(captions, dtype="str"),
            "aligned_caption": pd.Series([None] * len(members), dtype="str"),
            "split": split,
            **placed(members, images.name if images.is_file() else None),
        }
    )
    return pd.DataFrame(frame[SCHEMA.names])


@functools.cache
def _class_ids() -> Mapping[str, int]:
    return {synset: number for number, synset in enumerate(imagenet_synsets())}


def _labelled(images: Path, class_id: Callable[[Member], int]) -> list[tuple[int, Member]]:
    """Return the images with their class ids, by class id, then by file name."""
    files = (member for member in list_files(images) if _is_image(member.name))
    labelled = [(class_id(member), member) for member in files]
    if not labelled:
        raise UserError(f"{images}: holds no image (.JPEG, .jpg or .png)")
    return sorted(labelled, key=lambda pair: (pair[0], _file_name(pair[1].name), pair[1].name))


def _is_image(name: str) -> bool:
    # Archives made on a Mac have a hidden ._x.JPEG beside each x.JPEG, which is no image.
    return name.lower().endswith(_IMAGE_ENDINGS) and not _file_name(name).startswith(".")


def _file_name(name: str) -> str:
    return name.rpartition("/")[2]


def _by_name(images: Path, labels: Path) -> list[tuple[int, Member]]:
    """Return the images with the class ids that a file of labels gives to their names."""
    if not labels.is_file():
        raise UserError(f"{labels}: no such file of labels")
    ids = _read_csv(labels) if labels.suffix == ".csv" else _read_devkit(labels)

    def class_id(member: Member) -> int:
        image = _file_name(member.name).rpartition(".")[0]
        if image not in ids:
            raise UserError(
                f"{images}: {member.name!r} has no label in {labels}; are these the labels of "
                "these images?"
            )
        return ids[image]

    return _labelled(images, class_id)


def _read_csv(path: Path) -> dict[str, int]:
    """Map image names, without their ending, to class ids."""
    ids: dict[str, int] = {}
    rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        if next(rows, []) != _CSV_HEADER:
            raise UserError(f"{path}:1: the header is not {','.join(_CSV_HEADER)}")
        for row in rows:
            where = f"{path}:{rows.line_num}"
            synset = row[1].partition(" ")[0] if len(row) == 2 else ""
            if synset not in _class_ids():
                raise UserError(f"{where}: {','.join(row)[:80]!r} is not <image>,<synset> ...")
            if row[0] in ids:
                raise UserError(f"{where}: {row[0]!r} has a label already; keep one of the rows")
            ids[row[0]] = _class_ids()[synset]
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num}: {error}") from error
    return ids


def _read_devkit(path: Path) -> dict[str, int]:
    """Map image names, without their ending, to class ids."""
    try:
        truth, meta = _unpack(path)
        # scipy reads files that are open, too; its stubs do not say so.
        table = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)  # type: ignore[arg-type]
        # After the 1,000 synsets come those above them, which are no image's label.
        numbers = {
            int(entry["ILSVRC2012_ID"]): str(entry["WNID"])
            for entry in np.atleast_1d(table["synsets"])
        }
        lines = truth.decode("ascii").splitlines()
    except _DAMAGE as error:
        raise UserError(
            f"{path}: no development kit, or a damaged one ({error}); fetch "
            "ILSVRC2012_devkit_t12.tar.gz again, or give a .csv of labels"
        ) from error
    ids: dict[str, int] = {}
    for line, text in enumerate(lines, start=1):
        synset = numbers.get(int(text), "") if re.fullmatch(r"[0-9]{1,9}", text) else ""
        if synset not in _class_ids():
            raise UserError(f"{path}: {_GROUND_TRUTH}:{line}: {text[:80]!r} is no label")
        ids[f"ILSVRC2012_val_{line:08}"] = _class_ids()[synset]
    return ids


def _unpack(path: Path) -> tuple[bytes, bytes]:
    """Return the ground truth and the table of synsets."""
    found: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for info in archive:
            for name in (_GROUND_TRUTH, _META):
                file = archive.extractfile(info) if f"/{info.name}".endswith(f"/{name}") else None
                if file is not None:
                    found[name] = file.read()
    return found[_GROUND_TRUTH], found[_META]
