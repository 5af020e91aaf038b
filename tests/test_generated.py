"""The made-up corpus: as large as it is told, and read as the real ones are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_mixtures.corpora.classes import domainnet_classes, imagenet_synsets
from clip_mixtures.corpora.generated import HEIGHT, WIDTH, jpegs, write_generated
from clip_mixtures.images import ImageReader
from clip_mixtures.index import read_index
from clip_mixtures.training.supervised import labels_of

DOMAINS = ("real", "sketch")


def test_pictures_are_as_large_as_photographs_and_differ() -> None:
    first, second = jpegs(2)
    image = Image.open(io.BytesIO(first))
    assert (image.size, image.mode, image.format) == ((WIDTH, HEIGHT), "RGB", "JPEG")
    assert (WIDTH, HEIGHT) == (500, 375)
    assert first != second
    # About what a photograph of this size takes at this quality.
    assert 40_000 < len(first) < 80_000
    assert jpegs(2) == [first, second]
    assert jpegs(1, seed=1) != [first]


def test_half_of_the_images_are_the_base_sets(tmp_path: Path) -> None:
    paths = write_generated(tmp_path, 9, 4, DOMAINS)
    domains, base = (read_index(paths[name]) for name in ("domains", "base-generated"))
    train = domains.frame[domains.frame["split"] == "train"]
    assert (len(train), len(base)) == (5, 4)
    assert train["domain"].value_counts().to_dict() == {"real": 3, "sketch": 2}
    assert (base.frame["split"] == "train").all()
    assert base.frame["caption"].is_unique
    # Every class can be tested.
    test = domains.frame[domains.frame["split"] == "test"]
    assert sorted(test["class_id"]) == list(range(345))
    names = domains.class_names()
    assert names == [entry.name for entry in domainnet_classes()]


def test_images_lie_where_the_index_says(tmp_path: Path) -> None:
    paths = write_generated(tmp_path, 9, 4, DOMAINS)
    known = jpegs(4)
    for path in paths.values():
        index = read_index(path)
        with ImageReader(index.root) as reader:
            found = {reader.read(row) for row in index.frame.itertuples(index=False)}
        assert found == set(known)


def test_classifiers_have_a_label_for_every_image(tmp_path: Path) -> None:
    paths = write_generated(tmp_path, 9, 1, DOMAINS)
    base = read_index(paths["base-generated"]).frame
    names = [entry.name for entry in domainnet_classes()]
    labels = labels_of("base-generated", base, names)
    assert (labels >= 0).all()
    assert [path.split("/")[0] for path in base["path"]] == list(imagenet_synsets()[:4])
    assert len(np.unique(labels)) > 1


@pytest.mark.parametrize(("images", "different"), [(1, 1), (2, 0)])
def test_too_few_images_are_refused(tmp_path: Path, images: int, different: int) -> None:
    with pytest.raises(ValueError, match="give 2, and 1, or more"):
        write_generated(tmp_path, images, different, DOMAINS)
