"""A contact sheet: look at a corpus before you believe a number about it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clip_mixtures.errors import unknown
from clip_mixtures.files import atomic_write_bytes
from clip_mixtures.images import ImageReader, resize_and_crop
from clip_mixtures.index import SPLITS, Index

_GAP = 6
_PAPER = 200


def write_contact_sheet(
    index: Index, classes: Sequence[str], path: Path, size: int = 64, each: int = 1
) -> None:
    """Draw a row a class; for each domain its first training images, then its first test images.

    Args:
        index: of the corpus.
        classes: class names, top to bottom.
        path: the PNG to write.
        size: side of an image in pixels.
        each: images of each split.

    Raises:
        UserError: for a class that the corpus lacks, or an image that cannot be read.
    """
    names = index.class_names()
    for name in classes:
        if name not in names:
            raise unknown("class", name, names, "classes")
    domains = index.domains()
    width = len(domains) * (len(SPLITS) * each * size + _GAP) - _GAP
    sheet = np.full((len(classes) * size, width, 3), _PAPER, dtype=np.uint8)
    with ImageReader(index.root) as reader:
        for down, name in enumerate(classes):
            of_class = index.frame[index.frame["class_name"] == name]
            for across, domain in enumerate(domains):
                left = across * (len(SPLITS) * each * size + _GAP)
                for split in SPLITS:
                    chosen = of_class[
                        (of_class["domain"] == domain) & (of_class["split"] == split)
                    ].head(each)
                    for number, row in enumerate(chosen.itertuples(index=False)):
                        place = left + (SPLITS.index(split) * each + number) * size
                        tile = resize_and_crop(reader.decode(row), size)
                        sheet[down * size : (down + 1) * size, place : place + size] = tile
    data = io.BytesIO()
    Image.fromarray(sheet).save(data, format="PNG", optimize=True)
    atomic_write_bytes(path, data.getvalue())
