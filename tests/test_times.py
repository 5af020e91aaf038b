"""How long stages take: noted beside what is hashed, and tabulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clip_mixtures.errors import UserError
from timed import TIMES, timed
from times import main, read_times, times_table


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    for name in ("RANK", "WORLD_SIZE", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "scratch"


def write(scratch: Path, *lines: object) -> Path:
    scratch.mkdir()
    path = scratch / TIMES
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def noted(stage: str, seconds: float, gpus: int = 0) -> dict[str, object]:
    return {"stage": stage, "seconds": seconds, "gpus": gpus, "ended": "2026-01-01T00:00:00+00:00"}


def test_a_stage_that_dvc_runs_is_noted_at_its_end(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "pipeline/sae/dvc.yaml:sae@a-b-0")
    timed(lambda: None)()
    timed(lambda: None)()
    found = read_times(scratch / TIMES)
    assert list(found["stage"]) == ["pipeline/sae/dvc.yaml:sae@a-b-0"] * 2
    assert (found["seconds"] < 60).all()
    assert (found["gpus"] == 0).all()


def test_what_fails_is_run_by_hand_or_is_not_the_first_process_is_not_noted(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(lambda: None)()
    monkeypatch.setenv("DVC_STAGE", "dvc.yaml:train@a-b-0")
    with pytest.raises(ZeroDivisionError):
        timed(lambda: print(1 // 0))()
    monkeypatch.setenv("RANK", "1")
    timed(lambda: None)()
    assert not scratch.exists()


def test_the_table_sums_by_kind_of_stage(scratch: Path) -> None:
    path = write(
        scratch,
        noted("dvc.yaml:train@a-b-0", 3600, gpus=4),
        noted("pipeline/sae/dvc.yaml:sae@a-b-0", 30, gpus=1),
        noted("dvc.yaml:train@a-b-1", 7200, gpus=4),
        noted("dvc.yaml:compare", 60),
    )
    lines = times_table(read_times(path), price=2.0).splitlines()
    assert lines[0] == "| stage | ran | median | longest | together | GPU hours | cost |"
    assert lines[2:] == [
        "| train | 2 | 90.0 min | 2.0 h | 3.0 h | 12.00 | 24.00 |",
        "| sae | 1 | 30.0 s | 30.0 s | 30.0 s | 0.01 | 0.02 |",
        "| compare | 1 | 60.0 s | 60.0 s | 60.0 s | 0.00 | 0.00 |",
        "| together | 4 | 30.5 min | 2.0 h | 3.0 h | 12.01 | 24.02 |",
    ]
    assert "cost" not in times_table(read_times(path))


def test_a_line_that_was_cut_short_is_left_out(scratch: Path) -> None:
    path = write(scratch, noted("dvc.yaml:corpus", 1), 3, {"stage": "dvc.yaml:verify"})
    with path.open("a") as file:
        file.write('{"stage": "dvc.ya')
    assert list(read_times(path)["stage"]) == ["dvc.yaml:corpus"]


def test_nothing_noted_and_an_impossible_price_are_refused(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"times\.jsonl: absent"):
        read_times(scratch / TIMES)
    monkeypatch.setattr("sys.argv", ["times.py", "--price", "nan"])
    with pytest.raises(SystemExit):
        main()
    assert "--price nan: allowed" in capsys.readouterr().err
