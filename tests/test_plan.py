"""What a matrix will cost, and what is there already."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import plan
from clip_mixtures.errors import UserError
from clip_mixtures.files import read_yaml
from clip_mixtures.mixtures.store import write_rows
from clip_mixtures.presets import laid_over
from clip_mixtures.training.config import TrainConfig, train_config_from_params
from clip_mixtures.training.cost import (
    Cost,
    Speed,
    evaluation_cost,
    kept_checkpoints,
    read_speeds,
    speed_key,
    training_cost,
    write_speeds,
)
from experiment import load_experiment
from mechanism_params import load_mechanisms
from plan import CACHED, RUNNING, TO_RUN, UP_TO_DATE, costs_table, stages_table
from work import stages_of

ROOT = Path(__file__).parent.parent
SPEED = Speed("cuda", 4, "amp", images_per_second=400.0, checkpoint_bytes=10**9)


def recipe(**changes: int) -> TrainConfig:
    params = read_yaml(ROOT / "params.yaml")["train"]
    return train_config_from_params({**params, **changes})


@pytest.mark.parametrize(
    ("epochs", "every", "keep_last", "kept"),
    [(32, 1, 0, 33), (32, 1, 5, 6), (12, 4, 0, 4), (10, 4, 0, 4), (1, 4, 3, 2)],
)
def test_kept_checkpoints(epochs: int, every: int, keep_last: int, kept: int) -> None:
    found = recipe(epochs=epochs, checkpoint_every=every, keep_last=keep_last)
    assert kept_checkpoints(found) == kept


def test_training_takes_whole_batches_and_every_device_of_them() -> None:
    # Two batches of 64 of 150 images: 12 epochs of 128 images at 400 a second, on four devices.
    cost = training_cost(recipe(epochs=12, global_batch_size=64), 150, SPEED)
    assert cost.hours == pytest.approx(12 * 128 / 400 * 4 / 3600)
    assert cost.disk_bytes == kept_checkpoints(recipe(epochs=12)) * 10**9


def test_evaluating_is_a_third_of_training_and_leaves_no_checkpoints() -> None:
    found = recipe(epochs=2, checkpoint_every=1, keep_last=0)
    cost = evaluation_cost(found, 1200, SPEED)
    assert cost.hours == pytest.approx(3 * 1200 / 3 / 400 * 4 / 3600)
    assert cost.disk_bytes == 0


def test_speeds_of_other_models_stay(tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    other = dataclasses.replace(SPEED, device="cpu")
    write_speeds(path, {"a": SPEED})
    write_speeds(path, {"b": other})
    assert read_speeds(path) == {"a": SPEED, "b": other}


@pytest.mark.parametrize("text", ["", "[1]", '{"a": {"device": "cpu"}}', '{"a": 1}'])
def test_damaged_speeds_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "speeds.json").write_text(text)
    with pytest.raises(UserError, match=r"speeds\.json: no measured speeds"):
        read_speeds(tmp_path / "speeds.json")


def test_a_preset_is_laid_over_a_copy() -> None:
    before = (ROOT / "params.yaml").read_text()
    with laid_over(ROOT / "presets" / "cc12m.yaml", ROOT / "params.yaml") as params:
        assert load_experiment(params).train.epochs == 32
    assert not params.exists()
    assert (ROOT / "params.yaml").read_text() == before


def test_the_table_counts_every_stage_once() -> None:
    experiment = load_experiment(ROOT / "params.yaml")
    mechanisms = load_mechanisms(experiment, ROOT / "params.yaml")
    cells = {cell: stages_of(cell, mechanisms) for cell in experiment.cells}
    first, second = (cells[cell][0] for cell in experiment.cells[:2])
    states = {"corpus": UP_TO_DATE, first: CACHED, second: RUNNING}
    lines = stages_table(states, cells, experiment, mechanisms).splitlines()
    rows = {line.split(" | ")[0][2:]: line.rstrip(" |").split(" | ")[1:] for line in lines[4:]}
    assert rows["corpus"] == ["1", "1", "0", "0", "0"]
    assert rows["train"] == ["8", "0", "1", "1", "6"]
    assert rows["circuits"] == ["4", "0", "0", "0", "4"]
    stages = 5 + 4 + sum(len(names) for names in cells.values())
    assert rows["together"] == [str(stages), "1", "1", "1", str(stages - 3)]
    assert TO_RUN in lines[2]


@pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")
def test_a_stage_that_another_dvc_runs_is_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  first: {cmd: 'touch begun; while ! test -e go; do sleep 0.05; done; echo 1 > one', "
        "outs: [one]}\n"
        "  second: {cmd: cp one two, deps: [one], outs: [two]}\n"
        "  other: {cmd: echo 3 > three, outs: [three]}\n"
    )
    monkeypatch.chdir(tmp_path)
    dvc = [sys.executable, "-m", "dvc"]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "SHELL": "/bin/sh"}
    subprocess.run([*dvc, "init", "--quiet", "--no-scm"], env=environment, check=True)
    with subprocess.Popen([*dvc, "repro", "--quiet", "second"], env=environment) as running:
        try:
            while not (tmp_path / "begun").exists():
                assert running.poll() is None
                time.sleep(0.02)
            found = plan.stage_states()
        finally:
            (tmp_path / "go").touch()
    assert running.returncode == 0
    assert found == {"first": RUNNING, "second": TO_RUN, "other": TO_RUN}
    assert plan.stage_states() == {"first": UP_TO_DATE, "second": UP_TO_DATE, "other": TO_RUN}


def test_given_numbers_go_before_what_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built = tmp_path / "build" / "mixtures" / "cg-low" / "train.parquet"
    write_rows(built, {"domains": np.arange(7)})
    states = {"mixture@cg-low": UP_TO_DATE}
    assert plan._train_images("cg-low", None, states) == 7
    assert plan._train_images("cg-low", 9_000_000, states) == 9_000_000
    assert plan._test_images(176_000, {}) == 176_000
    # Of another experiment than the one that is planned.
    for other in ({}, {"mixture@cg-low": TO_RUN}):
        with pytest.raises(UserError, match=r"not up to date.*--train-images"):
            plan._train_images("cg-low", None, other)
    with pytest.raises(UserError, match=r"not up to date.*--test-images"):
        plan._test_images(None, {"corpus": TO_RUN})


def test_another_recipe_or_device_is_another_measurement() -> None:
    keys = {
        speed_key("m", "RN50", recipe(), "cpu"),
        speed_key("m", "RN50", recipe(), "cuda"),
        speed_key("m", "RN50", recipe(global_batch_size=128), "cpu"),
        speed_key("m", "RN101", recipe(), "cpu"),
    }
    assert len(keys) == 4


def test_costs_add_up() -> None:
    text = costs_table({"a": Cost(1.5, 10**9), "b": Cost(2.0, 5 * 10**8)})
    assert text.splitlines()[-1] == "| together | 3.50 | 1.50 GB |"
    assert json.dumps(dataclasses.asdict(Cost())) == '{"hours": 0.0, "disk_bytes": 0}'
