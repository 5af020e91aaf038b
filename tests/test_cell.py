"""A cell's evaluation: predictions of every checkpoint, and numbers that follow from them alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from clip_mixtures.errors import UserError
from clip_mixtures.evaluation import cell
from clip_mixtures.training.checkpoints import list_checkpoints, save_checkpoint
from clip_mixtures.training.models import create_clip
from clip_mixtures.training.supervised import create_classifier


def predictions() -> pd.DataFrame:
    """Two checkpoints; class 0 is held out; one domain has no image of it."""
    rows = [
        # epoch, domain, class, prediction, rank of the class
        (5, "sketch", 0, 0, 0), (5, "sketch", 0, 1, 3), (5, "sketch", 1, 1, 0),
        (5, "real", 1, 1, 0),
        (0, "sketch", 0, 1, 1), (0, "sketch", 0, 1, -1), (0, "sketch", 1, 0, 4),
        (0, "real", 1, 1, 0),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["epoch", "domain", "class_id", "prediction", "rank"])


def test_the_history_is_by_epoch_and_by_group() -> None:
    history = cell.history_of(predictions(), held_out=[0], resamples=100, seed=0)
    assert [point["epoch"] for point in history] == [0, 5]
    first, last = (point["accuracies"] for point in history)
    assert first["sketch"]["held_out"]["micro"]["estimate"] == 0
    assert last["sketch"]["held_out"]["micro"]["estimate"] == 0.5
    assert last["sketch"]["held_out"]["micro"]["n"] == 2
    assert last["sketch"]["seen"]["balanced"]["estimate"] == 1
    # Both images of class 0 have it among their first five at last, one of them at first.
    assert first["sketch"]["held_out"]["micro_top5"]["estimate"] == 0.5
    assert last["sketch"]["held_out"]["balanced_top5"]["estimate"] == 1
    assert "held_out" not in last["real"]


def test_no_estimate_without_an_interval_around_it() -> None:
    for domain in cell.accuracies(predictions(), [0], resamples=100, seed=0).values():
        for group in domain.values():
            for value in group.values():
                low, high = value["low"], value["high"]
                assert low is not None
                assert high is not None
                assert low <= value["estimate"] <= high  # type: ignore[operator]
                assert low < high


def test_every_checkpoint_is_evaluated_with_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell, "published_templates", lambda: ["a photo of a {}."])
    for epoch in (0, 3):
        torch.manual_seed(epoch)
        save_checkpoint(tmp_path, epoch, create_clip("sample-RN").network)
    test = pd.DataFrame(
        {"domain": "sketch", "class_id": pd.array([0, 1, 2] * 10, dtype="Int32")},
        index=range(100, 130),
    )
    images = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
    names = [f"thing {number}" for number in range(3)]
    reader = cell.ZeroShotReader(create_clip("sample-RN"), names)
    table = cell.predict_checkpoints(reader, list_checkpoints(tmp_path), images, test)
    assert table["epoch"].tolist() == [0] * 30 + [3] * 30
    assert table["row"].tolist() == list(range(100, 130)) * 2
    first, last = (table.loc[table["epoch"] == e, "prediction"].tolist() for e in (0, 3))
    assert set(first) | set(last) <= {0, 1, 2}
    again = cell.predict_checkpoints(reader, list_checkpoints(tmp_path), images, test)
    assert again.equals(table)
    (tmp_path / "epoch_003.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"epoch_003\.safetensors"):
        cell.predict_checkpoints(reader, list_checkpoints(tmp_path), images, test)


def test_a_classifier_ranks_the_classes_of_the_domains_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = create_classifier(create_clip("sample-RN"), 7)
    with torch.no_grad():
        # An ImageNet output that is always the largest, and class 6 before class 2.
        classifier.head.weight.zero_()
        classifier.head.bias.zero_()
        classifier.head.bias[5], classifier.head.bias[1006], classifier.head.bias[1002] = 9, 4, 3
    save_checkpoint(tmp_path, 0, classifier)
    test = pd.DataFrame({"domain": "real", "class_id": pd.array([6, 2, 0, 5], dtype="Int32")})
    images = np.zeros((4, 64, 64, 3), dtype=np.uint8)
    reader = cell.SupervisedReader(create_clip("sample-RN"), 7)
    table = cell.predict_checkpoints(reader, list_checkpoints(tmp_path), images, test)
    assert table["prediction"].tolist() == [6] * 4
    # Of equal scores the first classes come first: 6, 2, 0, 1, 3 are the first five.
    assert table["rank"].tolist() == [0, 1, 2, -1]
