"""Training of sparse autoencoders: learning, kills, dead units, curves, faults."""

from __future__ import annotations

import csv
import dataclasses
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms import sae_training
from clip_mixtures.mechanisms.config import SaeConfig
from clip_mixtures.mechanisms.sae import SparseAutoencoder, backward, load_sae
from clip_mixtures.mechanisms.sae_curves import read_curves
from clip_mixtures.mechanisms.sae_training import (
    evaluate,
    make_optimizer,
    resample_units,
    sae_config_from_params,
    train_sae,
)
from clip_mixtures.mechanisms.shards import ShardSet, open_shards, write_shards

CONFIG = SaeConfig(epochs=4, batch_size=64, learning_rate=3e-3, l1=3e-4, expansion=2)


def features(rows: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Sums of three of twenty directions in twelve dimensions, of unit length."""
    directions = np.random.default_rng(7).normal(size=(20, 12))
    generator = np.random.default_rng(seed)
    weights = np.zeros((rows, 20))
    for row in weights:
        row[generator.choice(20, 3, replace=False)] = generator.uniform(0.5, 1.5, 3)
    made = weights @ directions
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32)


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return write_shards(tmp_path / "features", [features(300)], rows_per_shard=100)


def train(
    shards: ShardSet, folder: Path, config: SaeConfig = CONFIG, seed: int = 0, **options: Any
) -> dict[str, float]:
    return train_sae(shards, config, seed, folder, folder / "sae.safetensors", **options)


def weights(folder: Path) -> bytes:
    return (folder / "sae.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["relu", "batch_topk"])
def test_training_learns_to_reconstruct(shards: ShardSet, tmp_path: Path, kind: str) -> None:
    validation = write_shards(tmp_path / "validation", [features(100, seed=1)])
    l1 = 3e-4 if kind == "relu" else 0.0
    config = dataclasses.replace(CONFIG, epochs=60, kind=kind, k=6, l1=l1)
    before = evaluate(SparseAutoencoder(12, 2, kind=kind, k=6), validation, config)
    facts = train(shards, tmp_path, config, validation=validation)
    # 300 rows in batches of 64: five a pass, the last one short.
    assert (facts["steps"], facts["rows_seen"]) == (300, 18_000)
    assert facts["validation_reconstruction"] < 0.3 * before["reconstruction"]
    assert facts["validation_explained_variance"] > 0.7
    found = evaluate(load_sae(tmp_path / "sae.safetensors"), validation, config)
    assert found["loss"] == pytest.approx(facts["validation_loss"], abs=1e-6)
    if kind == "batch_topk":
        assert facts["l0"] == pytest.approx(6, abs=0.1)
        assert facts["validation_l0"] == pytest.approx(6, abs=2)


def test_evaluation_by_hand(tmp_path: Path) -> None:
    model = SparseAutoencoder(2, 1)
    model.encoder_weight.data, model.encoder_bias.data = torch.eye(2), torch.tensor([0.0, -9.0])
    model.dictionary.data = torch.eye(2)
    shards = write_shards(tmp_path, [np.array([[1, 0], [2, 1], [3, 2]], dtype=np.float32)])
    found = evaluate(model, shards, dataclasses.replace(CONFIG, l1=0.5, batch_size=2))
    # Unit 0 copies the first number, unit 1 never fires: codes sum to 2 on average, squared errors
    # are 0, 1/2 and 4/2. Both numbers deviate from their means by 1, 0, 1: four in all, of which
    # the errors, 5, leave nothing.
    assert found == pytest.approx(
        {
            "l1": 2,
            "penalty": 1,
            "reconstruction": 5 / 6,
            "loss": 1 + 5 / 6,
            "l0": 1,
            "dead_share": 0.5,
            "explained_variance": -0.25,
        }
    )


def test_a_seed_fixes_the_bits_and_another_changes_them(shards: ShardSet, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        train(shards, tmp_path / name, seed=seed)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert weights(tmp_path / "one") != weights(tmp_path / "three")


class Killed(BaseException):
    """Stands for a kill that no handler of errors sees."""


RESAMPLING = dataclasses.replace(CONFIG, resample_every=6, resample_rows=100, l1=0.05)
TOPK = dataclasses.replace(RESAMPLING, kind="batch_topk", k=3)


@pytest.mark.parametrize("config", [RESAMPLING, TOPK], ids=["relu", "batch_topk"])
@pytest.mark.parametrize("fatal", [1, 5, 7, 12, 19])
def test_a_kill_at_any_step_costs_nothing(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: SaeConfig, fatal: int
) -> None:
    monkeypatch.setattr(sae_training, "SECONDS_BETWEEN_STATES", 0.0)
    # Points lie three steps apart, so that some steps are done twice.
    monkeypatch.setattr(sae_training, "CURVE_POINTS", 7)
    whole = train(shards, tmp_path / "whole", config)
    step = backward
    calls = 0

    def stepping(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise Killed
        return step(*arguments)

    monkeypatch.setattr(sae_training, "backward", stepping)
    with pytest.raises(Killed):
        train(shards, tmp_path / "killed", config)
    done = calls
    assert train(shards, tmp_path / "killed", config) == whole
    # From the second point on, less is done again than everything.
    assert calls - done <= 20 - 2 * (fatal > 3)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert curve(tmp_path / "killed", "loss") == curve(tmp_path / "whole", "loss")


_SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from clip_mixtures.mechanisms import sae_training
from clip_mixtures.mechanisms.config import SaeConfig
from clip_mixtures.mechanisms.shards import open_shards
sae_training.SECONDS_BETWEEN_STATES = 0.0
step = sae_training.backward
def slow(*arguments):
    time.sleep(0.3)
    return step(*arguments)
sae_training.backward = slow
config = SaeConfig(
    epochs=4, batch_size=64, learning_rate=3e-3, l1=3e-4, expansion=2)
folder = Path(sys.argv[1])
shards = open_shards(folder / "features")
sae_training.train_sae(shards, config, 0, folder / "killed", folder / "killed/sae.safetensors")
"""


def test_kill_9_costs_nothing(shards: ShardSet, tmp_path: Path) -> None:
    state = tmp_path / "killed" / "state.pt"
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT, str(tmp_path)])
    try:
        deadline = time.monotonic() + 300
        while not state.exists():
            assert process.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "killed" / "sae.safetensors").exists()
    train(open_shards(shards.folder), tmp_path / "killed")
    train(shards, tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def curve(folder: Path, name: str) -> list[tuple[str, str]]:
    path = folder / "curves" / "plots" / "metrics" / f"{name}.tsv"
    with open(path, newline="") as file:
        return [(row["step"], row[name]) for row in csv.DictReader(file, delimiter="\t")]


def test_curves_hold_every_point_once(shards: ShardSet, tmp_path: Path) -> None:
    train(shards, tmp_path, validation=shards)
    for name in ("loss", "reconstruction", "l1", "l0", "dead_share", "explained_variance"):
        points = curve(tmp_path, name)
        assert [step for step, _ in points] == [str(step) for step in range(1, 21)]
        assert all(math.isfinite(float(value)) for _, value in points)
    assert [step for step, _ in curve(tmp_path, "validation_loss")] == ["5", "10", "15", "20"]


def test_curves_are_read_back_as_they_were_logged(shards: ShardSet, tmp_path: Path) -> None:
    facts = train(shards, tmp_path, validation=shards)
    found = read_curves(tmp_path / "curves")
    assert found["step"].tolist() == list(range(1, 21))
    logged = [float(value) for _, value in curve(tmp_path, "loss")]
    # Some versions of pandas miss the last bit.
    assert found["loss"].tolist() == pytest.approx(logged, rel=1e-15)
    # Validation follows an epoch of five steps.
    assert found["validation_loss"].notna().tolist() == ([False] * 4 + [True]) * 4
    last = found.iloc[-1]
    for name in ("l0", "dead_share", "validation_explained_variance"):
        assert last[name] == pytest.approx(facts[name], abs=1e-6)


def test_absent_and_damaged_curves_are_named(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="curves: no curves of a sparse autoencoder; train it"):
        read_curves(tmp_path / "curves")
    train(shards, tmp_path)
    path = tmp_path / "curves" / "plots" / "metrics" / "l0.tsv"
    for text in ("", "step\tl0\n1\tmany\n", "step\tother\n1\t2\n"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"l0\.tsv: no curve .*; train again"):
            read_curves(tmp_path / "curves")


def test_a_state_of_another_run_is_refused(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sae_training, "SECONDS_BETWEEN_STATES", 0.0)
    train(shards, tmp_path / "run")
    other = write_shards(tmp_path / "other", [features(300, seed=5)])
    for options, what in (
        ({"config": dataclasses.replace(CONFIG, l1=0.1)}, "config"),
        ({"seed": 3}, "seed"),
        ({"shards": other}, "features"),
        ({"validation": other}, "validation"),
    ):
        arguments: dict[str, Any] = {"shards": shards, "folder": tmp_path / "run"} | options
        with pytest.raises(UserError, match=rf"state\.pt: of a run with other {what}; delete it"):
            train(**arguments)


def test_a_damaged_state_is_named(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.pt").write_bytes(b"half a state")
    with pytest.raises(UserError, match=r"state\.pt: unreadable"):
        train(shards, tmp_path / "run")


def test_a_loss_that_is_not_finite_ends_the_run(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step \d+; lower sae.learning_rate"):
        train(shards, tmp_path, dataclasses.replace(CONFIG, learning_rate=1e30))
    assert not (tmp_path / "sae.safetensors").exists()


# The codes cost so much that every unit has gone silent within thirty steps.
DEADLY = dataclasses.replace(CONFIG, l1=10.0, learning_rate=0.03, epochs=16)


def test_the_death_of_all_units_ends_the_run(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no unit fires any more at step \d+; lower sae.l1"):
        train(shards, tmp_path, DEADLY)


def test_resampling_brings_dead_units_back(shards: ShardSet, tmp_path: Path) -> None:
    config = dataclasses.replace(DEADLY, epochs=24, resample_every=35, resample_rows=200)
    facts = train(shards, tmp_path, config)
    assert facts["steps"] == 120
    dead = [float(value) for _, value in curve(tmp_path, "dead_share")]
    # All fell silent before step 35, but had fired since the start; at 70 they are dead for good.
    assert dead[34] == dead[35] == dead[69] == 1
    assert dead[70] == 0


def test_nothing_is_resampled_in_the_last_interval(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    when: list[int] = []
    monkeypatch.setattr(sae_training._Run, "_resample", lambda run: when.append(run.step))
    train(shards, tmp_path, dataclasses.replace(CONFIG, resample_every=6))
    # Of 6, 12 and 18 of twenty steps, 18 has no interval of six left to settle.
    assert when == [6, 12]


def test_more_dead_units_than_features_are_refused(shards: ShardSet, tmp_path: Path) -> None:
    config = dataclasses.replace(DEADLY, epochs=24, resample_every=35, resample_rows=20)
    with pytest.raises(UserError, match=r"sae.resample_rows: 20 features for 24 dead units"):
        train(shards, tmp_path, config)


def test_resampled_units_are_the_published_ones(shared_file: Callable[[str], Path]) -> None:
    from test_sae import published_weights

    answers = np.load(shared_file("oracle/numerics/sae_steps.npz"))
    model = published_weights(answers, "step0/").train()
    optimizer = make_optimizer(model, dataclasses.replace(CONFIG, learning_rate=1e-3))
    for batch in torch.from_numpy(answers["batches"]):
        backward(model, batch, 0.01)
        optimizer.step()
        model.renormalise()
    dead = torch.from_numpy(answers["resample/neuron_activity"]) == 0
    chosen = torch.from_numpy(answers["resample/sampled_input"])
    units = dead.nonzero().squeeze(1)
    # Ten units are dead, and the published pieces are of five inputs; the others are not looked at.
    resample_units(model, optimizer, units, torch.cat([chosen, chosen]))
    units = units[:5]
    for found, name in (
        (model.dictionary[units].T, "decoder_cols"),
        (model.encoder_weight[units], "encoder_rows"),
    ):
        expected = torch.from_numpy(answers[f"resample/{name}"])
        torch.testing.assert_close(found.detach(), expected, atol=1e-6, rtol=0, msg=name)
    assert not model.encoder_bias[units].any()


def test_adam_forgets_resampled_units_and_no_others() -> None:
    model = SparseAutoencoder(6, 2, generator=torch.Generator().manual_seed(0))
    optimizer = make_optimizer(model, CONFIG)
    backward(model, torch.randn((30, 6), generator=torch.Generator().manual_seed(1)), 0.01)
    optimizer.step()
    before = model.encoder_weight.detach().clone()
    dead, alive = torch.tensor([2, 7]), [n for n in range(12) if n not in (2, 7)]
    resample_units(model, optimizer, dead, torch.tensor([[3.0] + [0.0] * 5, [0.0] * 5 + [0.5]]))
    expected = 0.2 * float(before[alive].norm(dim=1).mean())
    assert model.encoder_weight[2].tolist() == pytest.approx([expected] + [0] * 5)
    assert model.dictionary[7].tolist() == [0] * 5 + [1]
    assert torch.equal(model.encoder_weight[alive], before[alive])
    for parameter in (model.dictionary, model.encoder_weight, model.encoder_bias):
        for name in ("exp_avg", "exp_avg_sq"):
            moments = optimizer.state[parameter][name]
            assert not moments[dead].any()
            assert moments[alive].any()


def test_adam_is_reset_as_published(shared_file: Callable[[str], Path]) -> None:
    from test_sae import published_weights

    answers = np.load(shared_file("oracle/numerics/sae_steps.npz"))
    model = published_weights(answers, "step0/").train()
    optimizer = make_optimizer(model, dataclasses.replace(CONFIG, learning_rate=1e-3))
    for batch in torch.from_numpy(answers["batches"]):
        backward(model, batch, 0.01)
        optimizer.step()
        model.renormalise()
    resample_units(model, optimizer, torch.tensor([1, 5, 9]), torch.ones(3, 16))
    names = {
        "tied_bias": model.tied_bias,
        "encoder._weight": model.encoder_weight,
        "encoder._bias": model.encoder_bias,
        "decoder._weight": model.dictionary,
    }
    for name, parameter in names.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            expected = torch.from_numpy(answers[f"reset/{moment}/{name}"]).squeeze(0)
            expected = expected.mT if name == "decoder._weight" else expected
            found = optimizer.state[parameter][moment]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, msg=f"{name} {moment}")


def test_poorly_reconstructed_features_are_drawn() -> None:
    losses = torch.tensor([1.0, 3.0, 0.0, 0.0])
    generator = np.random.default_rng(0)
    table = torch.arange(4.0)[:, None]
    drawn = [int(sae_training._draw(table, losses, 1, generator)) for _ in range(2000)]
    # Squared losses 1 and 9.
    assert np.mean(np.array(drawn) == 1) == pytest.approx(0.9, abs=0.03)
    assert set(drawn) == {0, 1}
    everything = sae_training._draw(table, losses, 4, generator)
    assert sorted(everything.flatten().tolist()) == [0, 1, 2, 3]


def test_validation_features_of_another_width_are_refused(shards: ShardSet, tmp_path: Path) -> None:
    narrow = write_shards(tmp_path / "narrow", [np.ones((4, 5), dtype=np.float32)])
    with pytest.raises(UserError, match=r"narrow: rows are 5 wide, those of .*features 12"):
        train(shards, tmp_path, validation=narrow)


RECIPE: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-4, "l1": 1e-4}


def test_a_recipe_is_read_with_its_defaults() -> None:
    config = sae_config_from_params({**RECIPE, "k": 5})
    assert (config.batch_size, config.k, config.kind, config.expansion) == (8, 5, "relu", 4)
    assert (config.beta1, config.beta2, config.epsilon) == (0.9, 0.999, 1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lerning_rate": 1}, "sae: unknown key 'lerning_rate'; did you mean 'learning_rate'"),
        ({"kind": "topk"}, r"sae\.kind: unknown kind 'topk'"),
        ({"protocol": "old"}, r"sae\.protocol: unknown protocol 'old'"),
        ({"epochs": 0}, r"sae\.epochs: is 0; allowed: 1 or more"),
        ({"epochs": 2.5}, r"sae\.epochs: is 2\.5, not of type int"),
        ({"epochs": True}, r"sae\.epochs: is True, not of type int"),
        ({"learning_rate": 0}, r"sae\.learning_rate: is 0; allowed: more than 0"),
        ({"learning_rate": "1e-4"}, r"sae\.learning_rate: is '1e-4', not of type float"),
        ({"l1": -1.0}, r"sae\.l1: is -1\.0; allowed: 0 or more"),
        ({"l1": math.nan}, r"sae\.l1: is nan"),
        ({"beta2": 1.0}, r"sae\.beta2: is 1\.0; allowed: from 0 to less than 1"),
    ],
)
def test_recipes_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sae_config_from_params({**RECIPE, **change})


def test_an_incomplete_recipe_is_refused() -> None:
    with pytest.raises(UserError, match="sae: learning_rate, l1 missing"):
        sae_config_from_params({"epochs": 1, "batch_size": 2})
    with pytest.raises(UserError, match=r"sae: is \[\], not a mapping"):
        sae_config_from_params([])
