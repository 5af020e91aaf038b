"""The contact sheet shows what the index says, where the caption says it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from corpora_factory import TinyCorpus
from PIL import Image

from clip_mixtures.errors import UserError
from clip_mixtures.images import ImageReader
from clip_mixtures.report.contact_sheet import write_contact_sheet


def test_each_domain_has_its_training_and_its_test_image(
    tmp_path: Path, tiny_corpus: Callable[..., TinyCorpus]
) -> None:
    index = tiny_corpus(domains=("real", "sketch"), classes=("ant", "bee"), size=16).domains
    write_contact_sheet(index, ["bee"], tmp_path / "sheet.png", size=16)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (16, 2 * 32 + 6, 3)
    with ImageReader(index.root) as reader:
        for left, domain, split in (
            (0, "real", "train"),
            (16, "real", "test"),
            (54, "sketch", "test"),
        ):
            chosen = index.frame.query(
                "class_name == 'bee' and domain == @domain and split == @split"
            )
            tile = np.asarray(reader.decode(next(chosen.itertuples(index=False))))
            assert (sheet[:, left : left + 16] == tile).all(), (domain, split)


def test_an_unknown_class_is_named(tmp_path: Path, tiny_corpus: Callable[..., TinyCorpus]) -> None:
    with pytest.raises(UserError, match="'antt'; did you mean 'ant'"):
        write_contact_sheet(tiny_corpus().domains, ["antt"], tmp_path / "sheet.png")
