"""Predictions of every checkpoint in one pass, whatever the portions, threads and prompts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from clip_mixtures.corpora.png import encode_png
from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.predictions import EvaluationSet, decoded, predict_checkpoints
from clip_mixtures.evaluation.readers import SupervisedReader, ZeroShotReader
from clip_mixtures.images import pack
from clip_mixtures.training.checkpoints import list_checkpoints, save_checkpoint
from clip_mixtures.training.models import create_clip
from clip_mixtures.training.supervised import create_classifier

Pixels = npt.NDArray[np.uint8]
NAMES = ["ant", "bee", "cat"]
COUNT = 30


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> EvaluationSet:
    """Thirty PNGs of noise in a folder, of three classes."""
    root = tmp_path_factory.mktemp("images")
    stream = np.random.default_rng(0)
    paths = [f"{number}.png" for number in range(COUNT)]
    for path in paths:
        (root / path).write_bytes(encode_png(stream.integers(0, 256, (80, 70, 3), dtype=np.uint8)))
    frame = pd.DataFrame(
        {
            "path": paths,
            "domain": "sketch",
            "class_id": pd.array([0, 1, 2] * 10, dtype="Int32"),
            "archive": None,
        },
        index=range(100, 100 + COUNT),
    )
    return EvaluationSet("domains", frame, root)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for epoch in (0, 3):
        torch.manual_seed(epoch)
        save_checkpoint(folder, epoch, create_clip("sample-RN").network)
    return folder


def reader(precision: str = "fp32", names: list[str] = NAMES) -> ZeroShotReader:
    templates = ["a photo of a {}.", "{}"]
    return ZeroShotReader(create_clip("sample-RN"), {"domains": names}, templates, precision)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("per_portion", [1, 7, 30, 100])
def test_portions_make_up_the_set(images: EvaluationSet, per_portion: int, workers: int) -> None:
    whole = pack(images.frame, images.root, 16)
    portions = list(decoded(images, 16, workers, per_portion * 16 * 16 * 3))
    assert [len(pixels) for _, pixels in portions[:-1]] == [per_portion] * (len(portions) - 1)
    assert (np.concatenate([pixels for _, pixels in portions]) == whole).all()
    rows = [row for portion, _ in portions for row in range(COUNT)[portion]]
    assert rows == list(range(COUNT))


def test_a_portion_too_small_for_an_image_holds_one(images: EvaluationSet) -> None:
    assert len(list(decoded(images, 16, 1, portion_bytes=1))) == COUNT


def test_an_image_that_cannot_be_read_is_named(images: EvaluationSet, tmp_path: Path) -> None:
    for path in images.frame["path"]:
        (tmp_path / path).write_bytes((images.root / path).read_bytes())
    (tmp_path / "17.png").write_bytes((images.root / "17.png").read_bytes()[:40])
    broken = EvaluationSet("domains", images.frame, tmp_path)
    with pytest.raises(UserError, match=r"17\.png is not a readable image"):
        list(decoded(broken, 16, 2, 5 * 16 * 16 * 3))


def test_an_empty_set_has_no_portions(images: EvaluationSet) -> None:
    nothing = EvaluationSet("domains", images.frame.iloc[:0], images.root)
    assert list(decoded(nothing, 16)) == []


def test_every_checkpoint_is_evaluated_with_its_own_weights(
    images: EvaluationSet, checkpoints: Path
) -> None:
    found = list_checkpoints(checkpoints)
    table = predict_checkpoints(reader(), found, images, decoded(images, 64), progress=False)
    assert table["epoch"].tolist() == [0] * COUNT + [3] * COUNT
    assert table["row"].tolist() == list(range(100, 100 + COUNT)) * 2
    first, last = (table.loc[table["epoch"] == e, "prediction"].tolist() for e in (0, 3))
    assert set(first) | set(last) <= {0, 1, 2}
    assert first != last
    for epoch, path in found.items():
        alone = predict_checkpoints(reader(), {epoch: path}, images, decoded(images, 64), False)
        mine = table[table["epoch"] == epoch].reset_index(drop=True)
        assert alone.equals(mine)


def test_portions_do_not_change_the_predictions(images: EvaluationSet, checkpoints: Path) -> None:
    found = list_checkpoints(checkpoints)
    whole = predict_checkpoints(reader(), found, images, decoded(images, 64), False)
    small = decoded(images, 64, 2, 11 * 64 * 64 * 3)
    in_portions = predict_checkpoints(reader(), found, images, small, False)
    assert in_portions.equals(whole)


def test_prompts_are_encoded_once_for_each_checkpoint(
    images: EvaluationSet, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    wanted = reader()
    tokenizer = wanted.model.tokenizer
    seen = []

    class Counting(ZeroShotReader):
        def _classifier(self, name: str) -> torch.Tensor:
            encoded.append(name)
            return super()._classifier(name)

    def counted(texts: list[str]) -> torch.Tensor:
        seen.append(len(texts))
        return tokenizer(texts)

    monkeypatch.setattr("clip_mixtures.training.models.open_clip.get_tokenizer", lambda _: counted)
    counting = Counting(create_clip("sample-RN"), {"domains": NAMES}, ["{}"])
    portions = decoded(images, 64, 1, 10 * 64 * 64 * 3)
    predict_checkpoints(counting, list_checkpoints(checkpoints), images, portions, False)
    assert encoded == ["domains"] * 2
    assert seen == [3]


def test_mixed_precision_gives_nearly_the_same_scores(
    images: EvaluationSet, checkpoints: Path
) -> None:
    pixels = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    exact, mixed = reader("fp32"), reader("amp_bf16")
    with torch.inference_mode():
        for one in (exact, mixed):
            one.load(list_checkpoints(checkpoints)[0])
        wanted, found = exact.logits(pixels, "domains"), mixed.logits(pixels, "domains")
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    assert torch.allclose(found, wanted, atol=0.02)


def test_portions_that_are_not_the_whole_set_are_refused(
    images: EvaluationSet, checkpoints: Path
) -> None:
    portions: Iterator[tuple[slice, Pixels]] = iter([next(decoded(images, 64, 1, 64 * 64 * 30))])
    with pytest.raises(ValueError, match="10 images for 30 rows"):
        predict_checkpoints(reader(), list_checkpoints(checkpoints), images, portions, False)


def test_a_damaged_checkpoint_is_named(images: EvaluationSet, tmp_path: Path) -> None:
    (tmp_path / "epoch_003.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"epoch_003\.safetensors"):
        predict_checkpoints(
            reader(), list_checkpoints(tmp_path), images, decoded(images, 64), False
        )


def test_fewer_classes_than_places_leave_places_empty(
    images: EvaluationSet, checkpoints: Path
) -> None:
    table = predict_checkpoints(
        reader(), list_checkpoints(checkpoints), images, decoded(images, 64), False
    )
    # All three classes are among the first five.
    assert table["rank"].between(0, 2).all()
    assert ((table["rank"] == 0) == (table["prediction"] == table["class_id"])).all()


def test_a_checkpoint_that_diverged_is_named(images: EvaluationSet, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = create_classifier(create_clip("sample-RN"), 7)
    with torch.no_grad():
        classifier.head.bias[1002] = torch.nan
    save_checkpoint(tmp_path, 3, classifier)
    supervised, found = SupervisedReader(create_clip("sample-RN"), 7), list_checkpoints(tmp_path)
    count = len(images.frame)
    said = rf"epoch_003.safetensors: {count} of {count} .* not finite \(domains\); .* try fp32"
    with pytest.raises(UserError, match=said):
        predict_checkpoints(supervised, found, images, decoded(images, 64), False)


def test_a_classifier_ranks_the_classes_of_the_domains_alone(
    images: EvaluationSet, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    classifier = create_classifier(create_clip("sample-RN"), 7)
    with torch.no_grad():
        # An ImageNet output that is always the largest, and class 6 before class 2.
        classifier.head.weight.zero_()
        classifier.head.bias.zero_()
        classifier.head.bias[5], classifier.head.bias[1006], classifier.head.bias[1002] = 9, 4, 3
    save_checkpoint(tmp_path, 0, classifier)
    labels = pd.array([6, 2, 0, 5], dtype="Int32")
    four = EvaluationSet("domains", images.frame.iloc[:4].assign(class_id=labels), images.root)
    supervised = SupervisedReader(create_clip("sample-RN"), 7)
    found = list_checkpoints(tmp_path)
    table = predict_checkpoints(supervised, found, four, decoded(four, 64), False)
    assert table["prediction"].tolist() == [6] * 4
    # Of equal scores the first classes come first: 6, 2, 0, 1, 3 are the first five.
    assert table["rank"].tolist() == [0, 1, 2, -1]
    with pytest.raises(ValueError, match="imagenet"):
        supervised.logits(torch.zeros(1, 3, 64, 64), "imagenet")
