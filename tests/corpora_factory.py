"""Corpora small enough for a test, laid out as the real ones are."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clip_mixtures.corpora.conceptual_captions import index_tsv
from clip_mixtures.corpora.domainnet import index_domainnet
from clip_mixtures.corpora.imagenet_captions import default_split
from clip_mixtures.corpora.imagenet_sketch import index_imagenet_sketch
from clip_mixtures.corpora.png import encode_png
from clip_mixtures.index import Index, read_index, write_index
from clip_mixtures.mixtures.spec import Mixture, mixture_from_params
from clip_mixtures.verification import write_verification

Pixels = npt.NDArray[np.uint8]

# Every so many base images one is of the test split, so that even a few images show both.
_BASE_TEST_EVERY = 6
_BASE_GROUP = 4


@dataclasses.dataclass(frozen=True)
class TinyCorpus:
    """Both corpora on disk, indexed.

    Attributes:
        domains_root: the folder with the lists and archives.
        base_captions: the base set's JSON list.
        base_images: the base set's tar of tars.
        domains: the index of the domain images.
        base: the index of the base images.
    """

    domains_root: Path
    base_captions: Path
    base_images: Path
    domains: Index
    base: Index


class Corpora:
    """Domains, a base set and ImageNet-Sketch as folders, whose files a test may replace.

    ``polar bear`` in ``sketch`` is what the mixtures of a test hold out.
    """

    domains = ("painting", "real", "sketch")
    classes = ("ant", "bee", "polar bear")
    # Of classes that have no counterpart in DomainNet, so that they are added to mixtures.
    synsets = ("n01629819", "n01632458")

    def __init__(
        self, root: Path, captions: Sequence[str] = ("one", "two", "three"), test: int = 2
    ) -> None:
        self.root = root
        make_domainnet(root / "domains", self.domains, self.classes, test=test, archive=False)
        make_tsv_base(root / "base", captions)
        make_imagenet(root / "in" / "sketch", self.synsets)

    def file(self, path: str) -> Path:
        """Return the file of a path of one of the indices."""
        places = [self.root / folder / path for folder in ("domains", "base", "in")]
        (found,) = [place for place in places if place.is_file()]
        return found

    def index(self) -> Path:
        """Index everything there is; return the folder of the indices."""
        base = self.root / "base"
        return write_indices(
            self.root / "indices",
            {
                "domains": index_domainnet(self.root / "domains", self.domains),
                "base-tiny": index_tsv("tiny", base / "captions.tsv", None, base / "images").index,
                "imagenet_sketch": index_imagenet_sketch(self.root / "in" / "sketch"),
            },
        )

    def verify(self) -> Path:
        """Verify everything that is indexed; return the folder of the tables."""
        return verify_all(self.root / "indices", self.root / "verification")

    def mixture(self, **params: Any) -> Mixture:
        """Return a mixture, everything of all domains unless something else is said."""
        defaults = {"test_domain": "sketch", "held_out": ["polar bear"]}
        params = {"kind": "cg_high_diversity", "subsample": False} | params
        return mixture_from_params("tested", params, defaults, self.domains, self.classes)


def tiny_image(path: str, size: int = 16, group: str = "") -> Pixels:
    """Make the image of a path: the colour of its group (the class) under noise of its own.

    The colour lets a small model tell the classes apart, the noise makes every image distinct.
    """
    colour = _stream("colour", group or path).integers(40, 216, size=3)
    noise = _stream("noise", path).integers(-24, 25, size=(size, size, 3))
    return np.asarray(colour + noise, dtype=np.uint8)


def make_domainnet(
    root: Path,
    domains: Sequence[str],
    classes: Sequence[str],
    train: int = 4,
    test: int = 2,
    size: int = 16,
    archive: bool = True,
) -> dict[str, Pixels]:
    """Write a corpus in DomainNet's layout; labels follow the order of ``classes``.

    Returns:
        Path of each image, as listed, to its pixels.
    """
    root.mkdir(parents=True, exist_ok=True)
    images: dict[str, Pixels] = {}
    for domain in domains:
        of_domain: dict[str, Pixels] = {}
        for split, count in (("train", train), ("test", test)):
            lines = []
            for label, name in enumerate(classes):
                for number in range(count):
                    path = f"{domain}/{name.replace(' ', '_')}/{split}_{number}.png"
                    of_domain[path] = tiny_image(path, size, group=name)
                    lines.append(f"{path} {label}\n")
            (root / f"{domain}_{split}.txt").write_text("".join(lines), encoding="utf-8")
        if archive:
            with zipfile.ZipFile(root / f"{domain}.zip", "w", zipfile.ZIP_STORED) as file:
                for path, pixels in of_domain.items():
                    file.writestr(path, encode_png(pixels))
        else:
            for path, pixels in of_domain.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(encode_png(pixels))
        images |= of_domain
    return images


def replace_in_zip(path: Path, images: Mapping[str, bytes]) -> None:
    """Write a zip anew with other bytes for some of its members."""
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    assert members.keys() >= images.keys()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, data in (members | dict(images)).items():
            file.writestr(name, data)


def make_base(folder: Path, images: int = 12, size: int = 16) -> dict[str, Pixels]:
    """Write ``captions.json`` and ``images.tar``, a tar of tars, with images of both splits.

    Returns:
        File name of each image to its pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = _base_names(images)
    pixels = {name: tiny_image(name, size) for name in names}
    entries = [
        {
            "filename": name,
            "title": f"thing {number}",
            "tags": ["tiny", f"tag{number}"],
            "description": f"A thing,\nnumber {number}.",
        }
        for number, name in enumerate(names)
    ]
    (folder / "captions.json").write_text(json.dumps(entries), encoding="utf-8")
    groups = [names[start : start + _BASE_GROUP] for start in range(0, images, _BASE_GROUP)]
    inner = {
        f"n{number:08}.tar": tar_bytes({name: encode_png(pixels[name]) for name in group})
        for number, group in enumerate(groups)
    }
    (folder / "images.tar").write_bytes(tar_bytes(inner))
    return pixels


def make_tsv_base(folder: Path, captions: Sequence[str], size: int = 16) -> Index:
    """Write ``captions.tsv`` and a folder ``images`` with one image a caption; index them."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = ["filepath\ttitle\n"]
    for number, caption in enumerate(captions):
        path = f"images/b{number}.png"
        (folder / path).write_bytes(encode_png(tiny_image(path, size)))
        lines.append(f"{path}\t{caption}\n")
    (folder / "captions.tsv").write_text("".join(lines), encoding="utf-8")
    return index_tsv("tiny", folder / "captions.tsv", None, folder / "images").index


def make_imagenet(folder: Path, synsets: Sequence[str], each: int = 2, size: int = 16) -> None:
    """Write ``<folder>/<synset>/<file>``, as ImageNet and ImageNet-Sketch lie unpacked."""
    for synset in synsets:
        (folder / synset).mkdir(parents=True)
        for number in range(each):
            path = f"{folder.name}/{synset}/{synset}_{number}.png"
            (folder.parent / path).write_bytes(encode_png(tiny_image(path, size, synset)))


def write_indices(folder: Path, indices: Mapping[str, Index]) -> Path:
    """Write indices by name into a folder, as the stage `corpus` does."""
    for name, index in indices.items():
        write_index(folder / f"{name}.parquet", index)
    return folder


def verify_all(indices: Path, out: Path) -> Path:
    """Verify every index of a folder, as the stage `verify` does."""
    for path in sorted(indices.glob("*.parquet")):
        scratch = out.with_name(f"{out.name}-scratch")
        write_verification(read_index(path), out / path.name, scratch, workers=1)
    return out


def tar_bytes(members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Pack named bytes into an uncompressed tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _base_names(count: int) -> list[str]:
    names: list[str] = []
    candidate = 0
    while len(names) < count:
        wanted = "test" if len(names) % _BASE_TEST_EVERY == _BASE_TEST_EVERY - 1 else "train"
        name = f"n{len(names) // _BASE_GROUP:08}_{candidate}.png"
        if default_split(name) == wanted:
            names.append(name)
        candidate += 1
    return names


def _stream(*key: str) -> np.random.Generator:
    digest = hashlib.sha256("/".join(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
