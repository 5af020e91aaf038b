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


def predictions() -> pd.DataFrame:
    """Two checkpoints; class 0 is held out; one domain has no image of it."""
    rows = [
        # epoch, domain, class, prediction
        (5, "sketch", 0, 0), (5, "sketch", 0, 1), (5, "sketch", 1, 1), (5, "real", 1, 1),
        (0, "sketch", 0, 1), (0, "sketch", 0, 1), (0, "sketch", 1, 0), (0, "real", 1, 1),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["epoch", "domain", "class_id", "prediction"])


def test_the_history_is_by_epoch_and_by_group() -> None:
    history = cell.history_of(predictions(), held_out=[0], resamples=100, seed=0)
    assert [point["epoch"] for point in history] == [0, 5]
    first, last = (point["accuracies"] for point in history)
    assert first["sketch"]["held_out"]["micro"]["estimate"] == 0
    assert last["sketch"]["held_out"]["micro"]["estimate"] == 0.5
    assert last["sketch"]["held_out"]["micro"]["n"] == 2
    assert last["sketch"]["seen"]["balanced"]["estimate"] == 1
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
    model = create_clip("sample-RN")
    table = cell.predict_checkpoints(model, list_checkpoints(tmp_path), images, test, names)
    assert table["epoch"].tolist() == [0] * 30 + [3] * 30
    assert table["row"].tolist() == list(range(100, 130)) * 2
    first, last = (table.loc[table["epoch"] == e, "prediction"].tolist() for e in (0, 3))
    assert set(first) | set(last) <= {0, 1, 2}
    again = cell.predict_checkpoints(model, list_checkpoints(tmp_path), images, test, names)
    assert again.equals(table)
    (tmp_path / "epoch_003.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"epoch_003\.safetensors"):
        cell.predict_checkpoints(model, list_checkpoints(tmp_path), images, test, names)
