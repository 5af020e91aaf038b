"""Supervised classifiers: labels, recipe, steps by hand, and whole runs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from corpora_factory import make_tsv_base
from test_training import TOY, make_run, published

from clip_mixtures.archives import list_files
from clip_mixtures.corpora.classes import domainnet_classes, imagenet_synsets
from clip_mixtures.corpora.png import encode_png
from clip_mixtures.errors import UserError
from clip_mixtures.index import Index, placed, write_index
from clip_mixtures.mixtures.store import write_mixture
from clip_mixtures.training import loop
from clip_mixtures.training.augmentation import Augmentation
from clip_mixtures.training.checkpoints import load_checkpoint
from clip_mixtures.training.config import SupervisedConfig, recipe_from_params
from clip_mixtures.training.feed import PackedFeed
from clip_mixtures.training.layout import CURVES, STATE
from clip_mixtures.training.loop import Batch
from clip_mixtures.training.models import Normalisation, create_clip
from clip_mixtures.training.precision import Precision
from clip_mixtures.training.processes import Processes
from clip_mixtures.training.run import Run, train_run
from clip_mixtures.training.supervised import (
    Classifier,
    Supervised,
    create_classifier,
    imagenet_outputs,
    labels_of,
)

CPU = torch.device("cpu")
ALONE = Processes(rank=0, world_size=1, device=CPU)
CONFIG = SupervisedConfig(
    epochs=3, global_batch_size=4, learning_rate=0.1, weight_decay=0.01, crop_scale=0.8, flip=True,
    momentum=0.9, nesterov=True, milestones=(1, 2), gamma=0.1,
)  # fmt: skip
PARAMS = {**dataclasses.asdict(CONFIG), "milestones": [1, 2]}
PUBLISHED = dataclasses.replace(
    CONFIG, epochs=90, learning_rate=0.01, weight_decay=1e-4, milestones=(30, 50, 70)
)
NAMES = [entry.name for entry in domainnet_classes()]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # The order of sums, and so the last bits, may depend on the number of threads.
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def published_classifier() -> Classifier:
    """The network of the study: RN50's visual tower over ImageNet's and DomainNet's classes."""
    return create_classifier(create_clip("RN50"), len(NAMES))


def labels(name: str, paths: Sequence[str], classes: Sequence[str] = NAMES) -> list[int]:
    frame = pd.DataFrame({"path": list(paths), "class_id": None})
    return [int(label) for label in labels_of(name, frame, classes)]


# Labels


def test_labels_are_the_published_ones(shared_file: Callable[[str], Path]) -> None:
    known = json.loads(shared_file("oracle/numerics/supervised.json").read_text())
    position = {entry.folder: entry.label for entry in domainnet_classes()}
    domains = {path: label for path, label in known["labels"].items() if path.startswith("/d/")}
    base = {path: label for path, label in known["labels"].items() if path not in domains}
    assert (len(domains), len(base)) == (3, 5)
    ids = [position[Path(path).parent.name] for path in domains]
    frame = pd.DataFrame({"path": list(domains), "class_id": ids})
    assert labels_of("domains", frame, NAMES).tolist() == list(domains.values())
    assert labels("base-imagenet", list(base)) == list(base.values())
    mapped = [output for output in imagenet_outputs(NAMES).values() if output >= 1000]
    assert len(mapped) == known["n_in_mapped_to_dn"]


def test_the_outputs_of_domains_follow_those_of_imagenet() -> None:
    frame = pd.DataFrame({"path": ["n01440764/a.jpg", "b", "c"], "class_id": [0, 7, 344]})
    frame["class_id"] = frame["class_id"].astype("int32")
    found = labels_of("domains", frame, NAMES)
    assert found.tolist() == [1000, 1007, 1344]
    assert found.dtype == np.int64


@pytest.mark.parametrize(
    ("path", "label"),
    [
        # Tench, which is a fish.
        ("n01440764/x.JPEG", 1000 + NAMES.index("fish")),
        ("train/n01440764/n01440764_10026.JPEG", 1000 + NAMES.index("fish")),
        ("n01440764_10026.JPEG", 1000 + NAMES.index("fish")),
        ("images/n01440764_10026.JPEG", 1000 + NAMES.index("fish")),
        ("n02219486/1.jpg", 1000 + NAMES.index("ant")),
        # Axolotl and spotted salamander, which DomainNet does not have.
        ("n01632458/x.JPEG", 28),
        ("n01632777_1.JPEG", 29),
        # No synset, or none of ImageNet's 1,000.
        ("images/00001.jpg", -1),
        ("n00000001/x.jpg", -1),
        ("n0144076/x.jpg", -1),
        ("n014407640/x.jpg", -1),
        ("an01440764/x.jpg", -1),
        ("photo_n01440764.jpg", -1),
        ("N01440764/x.jpg", -1),
    ],
)
def test_the_synset_in_a_path_decides_its_output(path: str, label: int) -> None:
    assert labels("base-cc12m", [path]) == [label]


def test_a_synset_keeps_its_own_output_where_the_domains_lack_its_class() -> None:
    outputs = imagenet_outputs(["bee", "ant"])
    # Ants are class 310 of ImageNet and bees 309; an aircraft carrier is 403.
    assert outputs["n02219486"] == 1001
    assert outputs["n02206856"] == 1000
    assert outputs["n02687172"] == 403
    others = {synset: number for number, synset in enumerate(imagenet_synsets())}
    changed = {synset for synset, number in outputs.items() if others[synset] != number}
    assert changed == {"n02219486", "n02206856"}
    assert imagenet_outputs([]) == others


def test_450_synsets_take_the_outputs_of_182_classes() -> None:
    outputs = imagenet_outputs(NAMES)
    mapped = [output for output in outputs.values() if output >= 1000]
    assert (len(outputs), len(mapped), len(set(mapped))) == (1000, 450, 182)
    assert max(mapped) < 1345
    assert all(outputs[s] in (n, *mapped) for n, s in enumerate(imagenet_synsets()))


# The recipe


def test_parameter_groups_and_rates_are_the_published_ones(
    shared_file: Callable[[str], Path], published_classifier: Classifier
) -> None:
    known = json.loads(shared_file("oracle/numerics/supervised.json").read_text())
    supervised = Supervised(published_classifier, PUBLISHED)
    optimizer = supervised.optimizer()
    names = {id(p): name for name, p in published_classifier.named_parameters()}
    decayed, spared = optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0)
    for group, key in ((decayed, "decay"), (spared, "no_decay")):
        found = [names[id(p)] for p in group["params"]]
        assert found == [name.replace("backbone.", "visual.") for name in known[key]]
        assert sum(p.numel() for p in group["params"]) == known[f"n_params_{key}"]
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.01, 0.9, True)
        assert group["dampening"] == 0
    rates = [supervised.learning_rate(epoch * 7, 7) for epoch in range(90)]
    changes = [e for e in range(90) if e == 0 or rates[e] != rates[e - 1]]
    assert changes == [epoch for epoch, _ in known["lr_per_epoch_change_points"]]
    expected = [rate for _, rate in known["lr_per_epoch_change_points"]]
    assert [rates[epoch] for epoch in changes] == pytest.approx(expected, rel=1e-9)


def test_the_published_classifier_is_the_visual_tower_under_a_layer(
    published_classifier: Classifier,
) -> None:
    assert published_classifier.head.weight.shape == (1345, 1024)
    names = {name.partition(".")[0] for name, _ in published_classifier.named_parameters()}
    assert names == {"visual", "head"}


def test_the_rate_falls_after_the_last_step_of_the_epoch_before_a_milestone() -> None:
    supervised = Supervised(toy(), CONFIG)
    rates = [supervised.learning_rate(step, 3) for step in range(9)]
    assert rates == pytest.approx([0.1] * 3 + [0.01] * 3 + [0.001] * 3)
    plain = Supervised(toy(), dataclasses.replace(CONFIG, milestones=()))
    assert {plain.learning_rate(step, 3) for step in range(9)} == {0.1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"milestones": [2, 1]}, r"supervised\.milestones: is \[2, 1\]; .* that rise"),
        ({"milestones": [1, 1]}, "that rise"),
        ({"milestones": [0, 1]}, "that rise"),
        ({"milestones": [1.5]}, "that rise"),
        ({"milestones": [True]}, "that rise"),
        ({"milestones": 30}, "that rise"),
        ({"gamma": 0}, r"supervised\.gamma: is 0; allowed: more than 0"),
        ({"momentum": 1.0}, "less than 1"),
        ({"nesterov": 1}, "not of type bool"),
        ({"warmup_steps": 3}, "unknown key 'warmup_steps'"),
    ],
)
def test_a_mistake_in_the_recipe_is_named(change: dict[str, Any], message: str) -> None:
    assert recipe_from_params(SupervisedConfig, PARAMS, "supervised") == CONFIG
    with pytest.raises(UserError, match=message):
        recipe_from_params(SupervisedConfig, {**PARAMS, **change}, "supervised")


# Steps


def toy(classes: int = 3) -> Classifier:
    torch.manual_seed(0)
    visual = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 6))
    return Classifier(visual, 6, classes)


def random_batch(count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn((count, 3, 4, 4), generator=generator)
    return Batch(images, torch.randint(1000, 1003, (count,), generator=generator))


def test_the_logits_are_a_layer_on_the_rectified_embedding() -> None:
    network = toy()
    visual = network.visual.get_submodule("1")
    assert isinstance(visual, torch.nn.Linear)
    with torch.no_grad():
        visual.weight.zero_()
        visual.bias.copy_(torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0, 0.0]))
        network.head.weight.fill_(1.0)
        network.head.bias.copy_(torch.arange(1003))
    logits = network(torch.zeros(2, 3, 4, 4))
    # Without the negative two, 1 + 2.
    torch.testing.assert_close(logits, (torch.arange(1003.0) + 3).expand(2, -1))
    torch.testing.assert_close(
        network.domain_logits(torch.zeros(2, 3, 4, 4)),
        torch.tensor([[1003.0, 1004.0, 1005.0]] * 2),
    )


@pytest.mark.parametrize("size", [8, 5, 3, 1])
@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_by_hand(size: int, nesterov: bool) -> None:
    config = dataclasses.replace(CONFIG, nesterov=nesterov)
    network, by_hand = toy(), toy()
    supervised = Supervised(network, config)
    optimizer, precision = supervised.optimizer(), Precision("fp32", CPU)
    batch = random_batch()
    pieces = zip(batch.images.split(size), batch.targets.split(size), strict=True)
    parts = [Batch(*piece) for piece in pieces]
    momenta = [torch.zeros_like(p) for p in by_hand.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        loss = supervised.backward(network, parts, precision)
        precision.step(optimizer)

        hidden = by_hand.visual(batch.images).clamp(min=0)
        logits = hidden @ by_hand.head.weight.T + by_hand.head.bias
        chosen = logits.log_softmax(dim=1)[torch.arange(8), batch.targets]
        expected = -chosen.mean()
        gradients = torch.autograd.grad(expected, list(by_hand.parameters()))
        with torch.no_grad():
            for p, gradient, momentum in zip(by_hand.parameters(), gradients, momenta, strict=True):
                decayed = gradient + (0.01 * p if p.ndim == 2 else 0)
                momentum.mul_(0.9).add_(decayed)
                p.sub_(0.1 * (decayed + 0.9 * momentum if nesterov else momentum))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(network.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_training_accuracy_is_that_of_the_steps_since_the_last_point() -> None:
    network = toy()
    supervised, precision = Supervised(network, CONFIG), Precision("fp32", CPU)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.bias[1001] = 1
    images = torch.zeros(4, 3, 4, 4)
    for targets in ([1001, 1001, 1001, 5], [1001, 1000, 1002, 1000]):
        parts = [
            Batch(images[:3], torch.tensor(targets[:3])),
            Batch(images[3:], torch.tensor(targets[3:])),
        ]
        supervised.backward(network, parts, precision)
    # Three of four, then one of four.
    assert supervised.facts() == {"training_accuracy": 0.5}
    supervised.backward(network, [Batch(images, torch.tensor([1001] * 4))], precision)
    assert supervised.facts() == {"training_accuracy": 1.0}
    assert math.isnan(supervised.facts()["training_accuracy"])


def test_a_first_step_that_is_skipped_leaves_no_trace() -> None:
    torch.manual_seed(0)
    networks = [toy(), toy()]
    networks[1].load_state_dict(networks[0].state_dict())
    for network, values in zip(networks, ([math.inf, 1.0, 1.0], [1.0, 1.0]), strict=True):
        optimizer = Supervised(network, CONFIG).optimizer()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, backoff_factor=0.5)
        for value in values:
            scaler.scale(torch.zeros(()))
            for parameter in network.parameters():
                parameter.grad = torch.full_like(parameter, value * scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(one, other)


def test_checkpointing_is_refused_where_it_would_do_nothing() -> None:
    network = create_classifier(create_clip("sample-RN"), 2)
    with pytest.raises(UserError, match=r"grad_checkpointing: is true, but the ResNets"):
        Supervised(network, dataclasses.replace(CONFIG, grad_checkpointing=True))


def test_a_trial_touches_everything_that_is_trained() -> None:
    network = create_classifier(create_clip("sample-RN"), 2).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    Supervised(network, CONFIG).trial(torch.randn(2, 3, 64, 64)).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_loss_falls_where_classes_can_be_told_apart(tmp_path: Path) -> None:
    # Dark, red and blue squares under noise.
    colours = np.array([[30, 30, 30], [220, 30, 30], [30, 30, 220]])
    labels = np.arange(48) % 3
    noise = np.random.default_rng(0).integers(-30, 31, (48, 4, 4, 3))
    images = (colours[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)
    feed = PackedFeed(
        images,
        torch.from_numpy(labels + 1000),
        Augmentation((0.8, 1.0), flip=True),
        Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), CPU),
    )
    config = dataclasses.replace(CONFIG, epochs=4, milestones=(3,), learning_rate=0.05)
    facts = loop.train(Supervised(toy(), config), feed, config, 0, tmp_path, ALONE, 3)
    metrics = tmp_path / CURVES / "plots" / "metrics"
    loss = pd.read_csv(metrics / "loss.tsv", sep="\t")["loss"]
    # Nothing known of 1,003 outputs, ln 1003 = 6.9, and in the end nearly all.
    assert loss.iloc[0] == pytest.approx(math.log(1003), abs=0.7)
    assert loss.iloc[-6:].mean() < 0.2
    accuracy = pd.read_csv(metrics / "training_accuracy.tsv", sep="\t")["training_accuracy"]
    assert accuracy.iloc[0] < 0.5
    assert accuracy.iloc[-6:].mean() > 0.95
    assert facts["steps"] == 48
    assert facts["training_accuracy"] == accuracy.iloc[-1]
    assert "logit_scale" not in facts


# Runs


RUN_CONFIG = dataclasses.replace(CONFIG, epochs=2, milestones=(1,), learning_rate=0.01)


def make_supervised_run(tmp_path: Path) -> Run:
    """Describe a run on 12 domain images, 4 of ImageNet and 3 without any label."""
    make_run(tmp_path)
    folder = tmp_path / "in"
    # Tench and axolotl, which the toy's domains lack, an ant, and a bee.
    for number, name in enumerate(("n01440764_1", "n01632458_2", "n02219486_3", "n02206856_4")):
        folder.mkdir(exist_ok=True)
        pixels = np.full((16, 16, 3), 60 * number, dtype=np.uint8)
        (folder / f"{name}.png").write_bytes(encode_png(pixels))
    found = list_files(folder)
    frame = pd.DataFrame(
        {
            "path": [member.name for member in found], "corpus": "in", "domain": "base",
            "class_id": pd.array([None] * 4, dtype="Int32"), "class_name": None, "caption": "x",
            "aligned_caption": None, "split": "train", **placed(found, None),
        }
    )  # fmt: skip
    base = make_tsv_base(tmp_path / "base", ["one", "two", "three"])
    indices = {"base-in": Index(frame, tmp_path), "base-cc": base}
    for name, index in indices.items():
        write_index(tmp_path / f"{name}.parquet", index)
    files = {name: tmp_path / f"{name}.parquet" for name in (*indices, "domains")}
    train = {"base-in": np.arange(4), "base-cc": np.arange(3), "domains": np.arange(12)}
    write_mixture(tmp_path / "all", TOY, {"train": train, "validation": {}}, files)
    return Run("toy", "sample-RN", RUN_CONFIG, 0, tmp_path / "all")


def test_a_run_trains_a_classifier_and_tells_of_what_it_left_out(tmp_path: Path) -> None:
    run = make_supervised_run(tmp_path)
    train_run(run, tmp_path / "scratch", tmp_path / "out", {"label": "kept"})
    facts = json.loads((tmp_path / "out" / "training.json").read_text())
    assert facts["train_images"] == 16
    assert facts["without_label"] == 3
    assert (facts["steps"], facts["images_seen"]) == (8, 32)
    assert facts["label"] == "kept"
    assert facts["recipe"]["milestones"] == [1]
    assert facts["recipe"]["architecture"] == "sample-RN"
    assert 0 <= facts["training_accuracy"] <= 1
    assert {"loss", "processes", "device", "versions"} <= facts.keys()
    assert facts["versions"]["torch"] == version("torch")
    # Two classes of the toy's domains beside ImageNet's.
    network = create_classifier(create_clip("sample-RN"), 2)
    load_checkpoint(tmp_path / "out" / "checkpoints" / "epoch_002.safetensors", network)
    assert network.head.weight.shape == (1002, 128)


def test_a_run_learns_the_labels_of_its_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_supervised_run(tmp_path)
    feeds: list[PackedFeed] = []

    def stop(_: Supervised, feed: PackedFeed, *__: Any) -> None:
        feeds.append(feed)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        train_run(run, tmp_path / "scratch", tmp_path / "out", {})
    (feed,) = feeds
    # In the order of their file names: tench, axolotl, bee, ant; then 6 ants and 6 bees.
    assert feed.targets.tolist() == [0, 28, 1001, 1000, *[1000] * 6, *[1001] * 6]
    assert [int(image[0, 0, 0]) for image in feed.images[:4]] == [0, 60, 180, 120]
    assert len(feed) == 16


def test_seed_0_is_a_seed_like_any_other(tmp_path: Path) -> None:
    run = make_supervised_run(tmp_path)
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        torch.manual_seed(len(name))
        train_run(dataclasses.replace(run, seed=seed), tmp_path / "scratch", tmp_path / name, {})
    first, again, other = (published(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    checkpoints = [name for name in first if name.startswith("checkpoints/")]
    assert len(checkpoints) == 3
    for name in (*checkpoints, "curves/plots/metrics/loss.tsv"):
        assert first[name] != other[name], name


def test_a_killed_classifier_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_supervised_run(tmp_path)
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_STATES", 0)
    train_run(run, tmp_path / "other", tmp_path / "whole", {})
    genuine, steps = Supervised.after_step, []

    def die(supervised: Supervised) -> None:
        genuine(supervised)
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "after_step", die)
        with pytest.raises(KeyboardInterrupt):
            train_run(run, tmp_path / "scratch", tmp_path / "killed", {})
    assert (tmp_path / "scratch" / run.scratch_name() / STATE).exists()
    train_run(run, tmp_path / "scratch", tmp_path / "killed", {})
    assert published(tmp_path / "killed") == published(tmp_path / "whole")
