"""A made-up corpus: DomainNet's layout and a captioned base set, with pictures like photographs.

The pictures (smooth fields, shapes and noise) are as large as photographs and compress about as
they do, so reading, decoding and training on them costs what it costs on photographs. Nothing can
be learnt from them. They serve where the data are not: to try a machine or a recipe out, and to
time the code.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clip_mixtures.corpora.classes import domainnet_classes, imagenet_synsets
from clip_mixtures.corpora.conceptual_captions import index_tsv
from clip_mixtures.corpora.domainnet import index_domainnet
from clip_mixtures.index import BASE_PREFIX, write_index

WIDTH, HEIGHT = 500, 375
BASE = "generated"
_QUALITY = 90
_SHAPES = 12
_NOISE = 7.0  # grey levels
_WORDS = ("a", "photograph", "of", "something", "that", "somebody", "saw", "on", "a", "day")


def picture(stream: np.random.Generator) -> Image.Image:
    """Draw a picture of 500 x 375 that compresses about as photographs do."""
    coarse = Image.fromarray(stream.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        left, top = int(stream.integers(0, 400)), int(stream.integers(0, 300))
        colour = tuple(int(value) for value in stream.integers(0, 256, 3))
        draw.ellipse((left, top, left + 90, top + 60), fill=colour)
    noise = stream.normal(0, _NOISE, (HEIGHT, WIDTH, 3))
    pixels = np.asarray(image, dtype=np.float64) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpegs(count: int, seed: int = 0) -> list[bytes]:
    """Return different pictures as JPEGs of quality 90."""
    stream = np.random.default_rng(seed)
    encoded = []
    for _ in range(count):
        buffer = io.BytesIO()
        picture(stream).save(buffer, "JPEG", quality=_QUALITY)
        encoded.append(buffer.getvalue())
    return encoded


def write_generated(
    folder: Path, images: int, different: int, domains: Sequence[str]
) -> dict[str, Path]:
    """Write archives and lists of a corpus, and index them.

    Half of the training images are the base set's, whose paths name ImageNet's synsets, as
    ImageNet's do. The domains have DomainNet's 345 classes, each with one test image.

    Args:
        folder: where to write; ``domains/``, ``base/`` and the indices.
        images: training images, at least 2.
        different: how many of them are different; they are taken in turn.
        domains: names of the domains.

    Returns:
        Index name, as mixtures have it, to index file.
    """
    if images < 2 or different < 1:
        raise ValueError(f"{images} images, {different} of them different; give 2, and 1, or more")
    pictures = jpegs(min(different, images))
    in_base = images // 2
    paths = {
        "domains": folder / "domains.parquet",
        f"{BASE_PREFIX}{BASE}": folder / f"{BASE_PREFIX}{BASE}.parquet",
    }
    _write_domains(folder / "domains", images - in_base, pictures, domains)
    write_index(paths["domains"], index_domainnet(folder / "domains", domains))
    _write_base(folder / "base", in_base, pictures)
    indexed = index_tsv(
        BASE, folder / "base" / "captions.tsv", None, folder / "base" / "images.zip"
    )
    write_index(paths[f"{BASE_PREFIX}{BASE}"], indexed.index)
    return paths


def _write_domains(
    root: Path, train: int, pictures: Sequence[bytes], domains: Sequence[str]
) -> None:
    classes = domainnet_classes()
    counts = {"train": train, "test": len(classes)}
    lists: dict[tuple[str, str], list[str]] = {(d, s): [] for d in domains for s in counts}
    for split, count in counts.items():
        for number in range(count):
            entry, domain = classes[number % len(classes)], domains[number % len(domains)]
            path = f"{domain}/{entry.folder}/{split}_{number}.jpg"
            lists[domain, split].append(f"{path} {entry.label}")
    root.mkdir(parents=True)
    for (domain, split), lines in lists.items():
        text = "".join(f"{line}\n" for line in lines)
        (root / f"{domain}_{split}.txt").write_text(text, encoding="utf-8")
    for domain in domains:
        names = [line.rsplit(" ", 1)[0] for split in counts for line in lists[domain, split]]
        _write_archive(root / f"{domain}.zip", names, pictures)


def _write_base(root: Path, count: int, pictures: Sequence[bytes]) -> None:
    synsets = imagenet_synsets()
    names = [f"{synsets[n % len(synsets)]}/picture_{n}.jpg" for n in range(count)]
    root.mkdir(parents=True)
    with open(root / "captions.tsv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["filepath", "title"])
        for number, name in enumerate(names):
            rows.writerow([name, f"{' '.join(_WORDS[: 1 + number % len(_WORDS)])}, {number}"])
    _write_archive(root / "images.zip", names, pictures)


def _write_archive(path: Path, names: Sequence[str], pictures: Sequence[bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, name in enumerate(names):
            archive.writestr(name, pictures[number % len(pictures)])
