"""Activations from one pass: class means by hand, portions, files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.predictions import EvaluationSet, Portion
from clip_mixtures.mechanisms.activations import (
    FACTS,
    Activations,
    read_activations,
    write_activations,
)
from clip_mixtures.mechanisms.checkpoint import Checkpoint, load_last
from clip_mixtures.mechanisms.collect import collect, features_of
from clip_mixtures.mechanisms.config import EmbeddingConfig
from clip_mixtures.mechanisms.represent import represent
from clip_mixtures.mechanisms.shards import ordered_batches
from clip_mixtures.mechanisms.training_features import features_of_tests
from clip_mixtures.training.checkpoints import save_checkpoint
from clip_mixtures.training.models import create_clip, to_pixels
from clip_mixtures.training.supervised import create_classifier

DOMAINS = ["real", "sketch", "clipart"]
CLASSES = 3
COUNT = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoints")
    for epoch in (0, 4):
        torch.manual_seed(epoch)
        save_checkpoint(folder, epoch, create_clip("sample-RN").network)
    return load_last("sample-RN", folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def images() -> EvaluationSet:
    """Two domains with all three classes, one without the last."""
    frame = pd.DataFrame(
        {
            "domain": ["real"] * 9 + ["sketch"] * 9 + ["clipart"] * 6,
            "class_id": pd.array([0, 1, 2] * 6 + [0, 1] * 3, dtype="Int32"),
        },
        index=range(50, 50 + COUNT),
    )
    return EvaluationSet("domains", frame, Path("nowhere"))


def pixels() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (COUNT, 64, 64, 3), dtype=np.uint8)


def portions(size: int) -> Iterator[Portion]:
    whole = pixels()
    for start in range(0, COUNT, size):
        yield slice(start, start + size), whole[start : start + size]


def collected(checkpoint: Checkpoint, images: EvaluationSet, size: int = COUNT) -> Activations:
    return collect(
        checkpoint.tower,
        checkpoint.normalisation,
        images,
        portions(size),
        domains=DOMAINS,
        classes=CLASSES,
        epoch=checkpoint.epoch,
    )


def test_the_last_checkpoint_is_looked_into(checkpoint: Checkpoint) -> None:
    assert checkpoint.epoch == 4
    assert checkpoint.has_text
    assert not any(weight.requires_grad for weight in checkpoint.model.network.parameters())


def test_features_are_those_of_the_network(checkpoint: Checkpoint, images: EvaluationSet) -> None:
    found = collected(checkpoint, images)
    normalised = checkpoint.normalisation.apply(to_pixels(torch.from_numpy(pixels())))
    with torch.inference_mode():
        wanted = checkpoint.model.network.encode_image(normalised)  # type: ignore[operator]
    assert np.array_equal(found.features, wanted.numpy())
    assert found.images["row"].tolist() == list(range(50, 50 + COUNT))


def test_class_means_are_means_of_spatial_means(
    checkpoint: Checkpoint, images: EvaluationSet
) -> None:
    found = collected(checkpoint, images)
    assert list(found.class_means) == [name for name in checkpoint.tower.names if name != "input"]
    normalised = checkpoint.normalisation.apply(to_pixels(torch.from_numpy(pixels())))
    with torch.inference_mode():
        values = checkpoint.tower.values(normalised, ["act3", "attnpool"])
    rows = [3 * number + 1 for number in range(3)]  # class 1 in real
    wanted = values["act3"][rows].mean(dim=(0, 2, 3))
    assert np.allclose(found.class_means["act3"][0, 1], wanted.numpy(), atol=1e-6)
    wanted = values["attnpool"][[9 + row for row in rows]].mean(dim=0)
    assert np.allclose(found.class_means["attnpool"][1, 1], wanted.numpy(), atol=1e-6)


def test_a_class_that_a_domain_lacks_is_not_a_number(
    checkpoint: Checkpoint, images: EvaluationSet
) -> None:
    means = collected(checkpoint, images).class_means["act1"]
    assert np.isnan(means[2, 2]).all()
    assert np.isfinite(np.delete(means.reshape(9, -1), 8, axis=0)).all()


@pytest.mark.parametrize("size", [1, 5, 7])
def test_portions_do_not_matter(checkpoint: Checkpoint, images: EvaluationSet, size: int) -> None:
    whole, parts = collected(checkpoint, images), collected(checkpoint, images, size)
    assert np.allclose(whole.features, parts.features, atol=1e-5)
    for name, means in whole.class_means.items():
        assert np.allclose(means, parts.class_means[name], atol=1e-5, equal_nan=True)
    batches = features_of(checkpoint.tower, checkpoint.normalisation, images, portions(size))
    assert np.allclose(torch.cat(list(batches)).numpy(), whole.features, atol=1e-5)


def test_layers_are_named_and_come_in_network_order(
    checkpoint: Checkpoint, images: EvaluationSet
) -> None:
    found = collected(checkpoint, images)
    assert list(found.means_of(["attnpool", "act2"])) == ["act2", "attnpool"]
    assert found.means_of(None) == found.class_means
    with pytest.raises(UserError, match=r"layer 'act9'.*act1"):
        found.means_of(["act9"])


def test_portions_that_are_not_the_whole_set_are_refused(
    checkpoint: Checkpoint, images: EvaluationSet
) -> None:
    with pytest.raises(ValueError, match="20 images for 24 rows"):
        list(
            features_of(
                checkpoint.tower,
                checkpoint.normalisation,
                images,
                [(slice(0, 20), pixels()[:20])],
            )
        )
    late = [(slice(3, 24), pixels()[3:])]
    with pytest.raises(ValueError, match="begins at 3, not 0"):
        list(features_of(checkpoint.tower, checkpoint.normalisation, images, late))


def test_another_domain_or_class_is_refused(checkpoint: Checkpoint, images: EvaluationSet) -> None:
    options = {"classes": CLASSES, "epoch": 0}
    with pytest.raises(ValueError, match="domain 'clipart'"):
        collect(
            checkpoint.tower, checkpoint.normalisation, images, portions(24),
            domains=["real", "sketch"], **options,
        )  # fmt: skip
    with pytest.raises(ValueError, match="from 0 to 2, of 2"):
        collect(
            checkpoint.tower, checkpoint.normalisation, images, portions(24),
            domains=DOMAINS, classes=2, epoch=0,
        )  # fmt: skip


def test_a_diverged_checkpoint_is_refused_by_layer(tmp_path: Path, images: EvaluationSet) -> None:
    network = create_clip("sample-RN").network
    with torch.no_grad():
        network.get_parameter("visual.conv2.weight")[:] = float("nan")
    save_checkpoint(tmp_path, 7, network)
    broken = load_last("sample-RN", tmp_path, torch.device("cpu"))
    with pytest.raises(UserError, match=r"layer act2 of the checkpoint of epoch 7.*not finite"):
        collected(broken, images)


def test_a_classifier_is_looked_into_by_its_tower(tmp_path: Path, images: EvaluationSet) -> None:
    torch.manual_seed(5)
    classifier = create_classifier(create_clip("sample-RN"), CLASSES)
    save_checkpoint(tmp_path, 2, classifier)
    found = load_last("sample-RN", tmp_path, torch.device("cpu"), classes=CLASSES)
    assert not found.has_text
    features = collected(found, images).features
    normalised = found.normalisation.apply(to_pixels(torch.from_numpy(pixels())))
    with torch.inference_mode():
        wanted = classifier.eval().visual(normalised)
    assert np.allclose(features, wanted.numpy(), atol=1e-6)
    with pytest.raises(UserError, match="does not fit the model"):
        load_last("sample-RN", tmp_path, torch.device("cpu"))


def test_files_come_back(tmp_path: Path, checkpoint: Checkpoint, images: EvaluationSet) -> None:
    found = collected(checkpoint, images)
    write_activations(tmp_path, found)
    back = read_activations(tmp_path)
    assert np.array_equal(back.features, found.features)
    pd.testing.assert_frame_equal(back.images, found.images)
    assert list(back.class_means) == list(found.class_means)
    for name, means in found.class_means.items():
        assert np.array_equal(back.class_means[name], means, equal_nan=True)
    assert (back.domains, back.epoch) == (found.domains, found.epoch)
    shards = features_of_tests(tmp_path / "shards", back.features, "float32")
    rows = torch.cat(list(ordered_batches(shards, 5)))
    assert torch.allclose(rows.norm(dim=1), torch.ones(COUNT))


def test_damaged_folders_are_refused(
    tmp_path: Path, checkpoint: Checkpoint, images: EvaluationSet
) -> None:
    with pytest.raises(UserError, match=r"features\.npy: absent; `dvc repro`"):
        read_activations(tmp_path)
    write_activations(tmp_path, collected(checkpoint, images))
    facts = json.loads((tmp_path / FACTS).read_text())
    (tmp_path / FACTS).write_text(json.dumps({**facts, "images": 3}))
    with pytest.raises(UserError, match="24 images, not 3"):
        read_activations(tmp_path)
    (tmp_path / FACTS).write_text(json.dumps(facts))
    means = tmp_path / "class_means.safetensors"
    means.write_bytes(means.read_bytes()[:100])
    with pytest.raises(UserError, match="not whole"):
        read_activations(tmp_path)


def test_all_tables_of_an_embedding(checkpoint: Checkpoint, images: EvaluationSet) -> None:
    found = collected(checkpoint, images)
    config = EmbeddingConfig(per_domain=8, neighbours=3, densmap=False, purity_neighbours=2)
    tables = represent(found, "sketch", config, resamples=100, seed=0)
    assert list(tables) == [
        "maps", "distances", "class_distances", "separation", "mean_difference", "top_dimensions",
    ]  # fmt: skip
    maps = tables["maps"]
    assert maps.groupby("map").size().to_dict() == {"all": 22, "without": 14}
    assert (maps["class_id"] == found.images["class_id"].to_numpy()[maps["row"]]).all()
    assert set(tables["mean_difference"]["domain"]) == set(DOMAINS)
    assert len(tables["top_dimensions"]) == 22
