"""params.yaml is checked before any work starts, and every mistake is answered in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from clip_mixtures.errors import UserError
from experiment import Cell, load_experiment

ROOT = Path(__file__).parent.parent
PARAMS = ROOT / "params.yaml"

Change = Callable[[Any], None]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Change], Path]:
    def change_params(change: Change) -> Path:
        yaml = YAML()
        params = yaml.load(PARAMS.read_text())
        change(params)
        path = tmp_path / "params.yaml"
        with path.open("w") as file:
            yaml.dump(params, file)
        return path

    return change_params


def setting(*keys: str, to: Any) -> Change:
    def change(params: Any) -> None:
        for key in keys[:-1]:
            params = params[key]
        params[keys[-1]] = to

    return change


def test_the_shipped_experiment_is_the_four_mixtures() -> None:
    experiment = load_experiment(PARAMS)
    kinds = {experiment.mixture(cell.mixture).kind for cell in experiment.cells}
    assert kinds == {"natural_only", "leave_out_domain", "cg_low_diversity", "cg_high_diversity"}
    assert Cell("cg-low", "sample-rn", 0).run == "cg-low-sample-rn-s0"
    assert {cell.run for cell in experiment.cells} >= {"cg-low-sample-rn-s0"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("run", "mixtures", to=["cg-hihg"]), r"run\.mixtures.*'cg-hihg'.*'cg-high'"),
        (setting("run", "models", to=["RN50"]), r"run\.models.*'RN50'"),
        (setting("run", "seeds", to=[0, 0]), r"run\.seeds.*different entries"),
        (setting("run", "seeds", to=["a"]), r"run\.seeds: is \['a'\]"),
        (setting("run", "mixture", to=[]), r"run: unknown key 'mixture'"),
        (setting("run", "seeds", to=[[0]]), r"run\.seeds"),
        (setting("run", "seeds", to=[2**40]), r"run\.seeds"),
        (setting("run", "mixtures", to=[{"a": 1}]), r"run\.mixtures"),
        (setting("mixtures", "-x", to={"kind": "natural_only"}), "a hyphen not first"),
        (setting("corpus", "domains", to=["sketch", "clipart"]), "one domain must be 'real'"),
        (setting("corpus", "domains", to=[["real"], "sketch"]), r"corpus\.domains"),
        (setting("corpus", "domains", to=["real"]), r"corpus\.domains"),
        (setting("corpus", "domains_root", to=3), r"corpus\.domains_root: is 3"),
        (setting("test", "test_domain", to="sketsh"), r"test_domain.*'sketsh'.*'sketch'"),
        (setting("models", "sample-rn", "architecture", to="RN51"), r"models\.sample-rn.*'RN50'"),
        (setting("mixtures", "a.b", to={"kind": "natural_only"}), r"'a\.b' must be letters"),
        (setting("evaluate", "bootstrap_resamples", to=3), "from 100"),
        (setting("trian", to={}), "'trian'; did you mean 'train'"),
        (lambda params: params.pop("evaluate"), "evaluate missing"),
    ],
)
def test_a_mistake_is_named(
    changed: Callable[[Change], Path], change: Change, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_experiment(changed(change))


def test_a_held_out_class_must_be_in_the_corpus() -> None:
    with pytest.raises(UserError, match=r"held_out: unknown class 'ambulance'"):
        load_experiment(PARAMS, class_names=["cat", "dog"])


def test_no_file_no_yaml_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match=r"params\.yaml: No such file"):
        load_experiment(path)
    path.write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        load_experiment(path)
    path.write_text("a: 2024-02-30")
    with pytest.raises(UserError, match="not valid YAML"):
        load_experiment(path)
    path.write_text("- 1")
    with pytest.raises(UserError, match="not a mapping"):
        load_experiment(path)


def test_a_stage_answers_a_mistake_in_one_line_without_a_traceback(
    changed: Callable[[Change], Path],
) -> None:
    folder = changed(setting("run", "mixtures", to=["cg-hihg"])).parent
    result = subprocess.run(
        [sys.executable, str(ROOT / "stages" / "check.py")],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("error: run.mixtures: unknown mixture 'cg-hihg'")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
