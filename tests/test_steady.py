"""Results are not recorded under parameters that they were not made with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clip_mixtures.errors import UserError
from steady import recorded_keys, steady

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pipeline" / "sae").mkdir(parents=True)
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  train:\n"
        "    cmd: [python stages/check.py, 'torchrun stages/train.py --model ${item.model}']\n"
        "    params: [train, 'models.${item.model}']\n"
        "  other:\n"
        "    cmd: python stages/other.py\n"
        "    params: [run]\n"
    )
    (tmp_path / "pipeline" / "sae" / "dvc.yaml").write_text(
        "stages:\n  sae:\n    cmd: python stages/sae.py\n    params: [mechanisms.sae]\n"
    )
    (tmp_path / "params.yaml").write_text(
        "train: {lr: 1}\nmodels: {a: {x: 1}, b: {x: 1}}\nmechanisms: {sae: {l1: 1}}\nrun: [1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stages/train.py", "--model=a", "--seed", "0"])
    monkeypatch.setenv("DVC_STAGE", "train@x-a-0")
    monkeypatch.setattr("steady.code_lines", lambda stage: [f"aa  stages/{stage}.py"])
    for stage in ("train", "sae"):
        (tmp_path / "build" / "code").mkdir(parents=True, exist_ok=True)
        (tmp_path / "build" / "code" / f"{stage}.txt").write_text(f"aa  stages/{stage}.py\n")
    return tmp_path


def edits(project: Path, old: str, new: str) -> None:
    params = project / "params.yaml"
    assert old in params.read_text()
    params.write_text(params.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("lr: 1", "lr: 2", "train"),
        ("a: {x: 1}", "a: {x: 2}", "models.a"),
        ("a: ", "c: ", "models.a"),
    ],
)
def test_a_parameter_that_is_recorded_may_not_change(
    project: Path, old: str, new: str, key: str
) -> None:
    done = []

    @steady
    def main() -> None:
        edits(project, old, new)
        done.append(True)

    with pytest.raises(UserError, match=rf"params\.yaml: {key} changed while this ran"):
        main()
    assert done


@pytest.mark.parametrize(
    ("old", "new"), [("b: {x: 1}", "b: {x: 2}"), ("run: [1]", "run: [1, 2]"), ("l1: 1", "l1: 2")]
)
def test_any_other_may(project: Path, old: str, new: str) -> None:
    steady(lambda: edits(project, old, new))()


def test_families_beside_the_pipeline_are_read_too(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "pipeline/sae/dvc.yaml:sae@x-a-0")
    with pytest.raises(UserError, match=r"mechanisms\.sae"):
        steady(lambda: edits(project, "l1: 1", "l1: 2"))()


def test_an_error_of_the_stage_comes_first(project: Path) -> None:
    @steady
    def main() -> None:
        edits(project, "lr: 1", "lr: 2")
        raise UserError("of the stage")

    with pytest.raises(UserError, match="of the stage"):
        main()


def test_by_hand_nothing_is_recorded_and_nothing_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_STAGE")
    (project / "build" / "code" / "train.txt").unlink()
    steady(lambda: edits(project, "lr: 1", "lr: 2"))()


def test_code_that_was_edited_since_it_was_noted_does_not_run(project: Path) -> None:
    (project / "build" / "code" / "train.txt").write_text("bb  stages/train.py\n")
    with pytest.raises(UserError, match=r"stages/train\.py: edited since `dvc repro` noted"):
        steady(lambda: pytest.fail("it ran"))()


@pytest.mark.parametrize(
    ("pipeline", "stage", "wanted"),
    [
        ("dvc.yaml", "train", ["train", "models.m"]),
        ("dvc.yaml", "corpus", ["corpus"]),
        ("dvc.yaml", "code", []),
        ("pipeline/sae/dvc.yaml", "sae", ["mechanisms.features", "mechanisms.sae"]),
    ],
)
def test_the_pipeline_of_this_repository(
    monkeypatch: pytest.MonkeyPatch, pipeline: str, stage: str, wanted: list[str]
) -> None:
    monkeypatch.chdir(ROOT)
    found = recorded_keys(Path(pipeline), stage, ["--mixture", "x", "--model", "m"])
    assert found == wanted
