"""Cells side by side: places, attempts, logs, and nothing that outlives the scheduler."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from clip_mixtures.errors import UserError
from clip_mixtures.scheduling import leash as leash_module
from clip_mixtures.scheduling import workers
from clip_mixtures.scheduling.leash import Leash
from clip_mixtures.scheduling.logs import AFTER_BAR, Follower, error_in, last_lines
from clip_mixtures.scheduling.telling import Telling
from clip_mixtures.scheduling.workers import Place, places
from experiment import Cell, Experiment, load_experiment
from mechanism_params import load_mechanisms
from work import cells_to_do, run_cells, stages_of

ROOT = Path(__file__).parent.parent
WORK = ROOT / "stages" / "work.py"
PARAMS = ROOT / "params.yaml"
CELLS = [Cell("cg-low", "rn", seed) for seed in range(3)]
NAMES = [cell.run for cell in CELLS]

# Stands in for DVC: notes how it was called, then does what the files of a plan say.
FAKE = """#!{python} -SE
import json, os, signal, subprocess, sys, time
plan, arguments = {plan!r}, sys.argv[1:]
# A cell's key, or the stage that is not a cell's; all of the pipeline has none.
key = arguments[-1].partition("@")[2] or arguments[-1]
with open(os.path.join(plan, key + ".calls"), "a+") as file:
    file.seek(0)
    number = len(file.readlines())
    names = ("OMP_NUM_THREADS", "NPROC", "CUDA_VISIBLE_DEVICES")
    call = dict({{name: os.environ.get(name) for name in names}}, arguments=arguments)
    call.update(cores=sorted(os.sched_getaffinity(0)), begun=time.time())
    print(json.dumps(call), file=file)
print("complained", file=sys.stderr, flush=True)
if arguments[0] == "status":
    sys.exit(print(open(os.path.join(plan, "status")).read()))
print("said by", key, "in attempt", number, flush=True)
deeds = os.path.join(plan, key)
lines = open(deeds).read().splitlines() if os.path.exists(deeds) else []
exec(lines[number] if number < len(lines) else "")
"""


class Fake:
    """A `dvc` on PATH that does as it is told."""

    def __init__(self, folder: Path) -> None:
        self.plan = folder / "plan"
        self.plan.mkdir()
        program = folder / "bin" / "dvc"
        program.parent.mkdir()
        program.write_text(FAKE.format(python=sys.executable, plan=str(self.plan)))
        program.chmod(0o755)
        self.path = os.pathsep.join([str(program.parent), os.environ["PATH"]])

    def does(self, cell: Cell | str, *deeds: str) -> None:
        """Tell what to do in the first attempt, the second, and so on; one line of Python each."""
        (self.plan / self._key(cell)).write_text("\n".join(deeds))

    def finds(self, changes: Mapping[str, object]) -> None:
        """Tell what a status answers."""
        (self.plan / "status").write_text(json.dumps(dict(changes)))

    def calls(self, cell: Cell | str) -> list[dict[str, object]]:
        path = self.plan / f"{self._key(cell)}.calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _key(self, cell: Cell | str) -> str:
        return cell if isinstance(cell, str) else stages_of(cell)[-1].partition("@")[2]


@pytest.fixture
def dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake(tmp_path)
    monkeypatch.setenv("PATH", fake.path)
    for name in ("OMP_NUM_THREADS", "NPROC", "SCRATCH"):
        monkeypatch.delenv(name, raising=False)
    return fake


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Make this a machine with so many cores and GPUs."""

    def make(cores: int, gpus: int = 0) -> None:
        monkeypatch.setattr(workers, "_cores", lambda: list(range(10, 10 + cores)))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(f"GPU-{n}" for n in range(gpus)))
        monkeypatch.delenv("NPROC", raising=False)

    return make


def here(count: int) -> list[Place]:
    """Return places that share whatever cores the tests have."""
    return [Place(cores=(), gpus=()) for _ in range(count)]


def wait_until(happens: Callable[[], object], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_running(process: int) -> bool:
    """Whether a process runs; one that has ended and was not taken note of does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


# Places


def cores_of(found: Sequence[Place]) -> list[tuple[int, ...]]:
    return [place.cores for place in found]


def test_every_core_is_a_workers(machine: Callable[..., None]) -> None:
    machine(3)
    assert cores_of(places(None, 1, 9)) == [(10,), (11,), (12,)]
    assert cores_of(places(1, 1, 9)) == [(10, 11, 12)]
    # Shared as evenly as can be, and none left over.
    assert cores_of(places(2, 1, 9)) == [(10,), (11, 12)]
    assert all(place.gpus == () for place in places(None, 1, 9))


def test_there_are_no_more_workers_than_four_unless_asked_nor_than_cells(
    machine: Callable[..., None],
) -> None:
    machine(16)
    assert cores_of(places(None, 1, 9)) == [
        (10, 11, 12, 13), (14, 15, 16, 17), (18, 19, 20, 21), (22, 23, 24, 25)
    ]  # fmt: skip
    assert len(places(8, 1, 9)) == 8
    assert cores_of(places(8, 1, 2)) == [tuple(range(10, 18)), tuple(range(18, 26))]
    assert len(places(None, 1, 0)) == 1


def test_a_cell_of_several_processes_has_as_many_cores(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(4)
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = places(None, 1, 9)
    assert cores_of(found) == [(10, 11), (12, 13)]
    assert found[0].environment()["OMP_NUM_THREADS"] == "1"
    assert found[0].environment()["NPROC"] == "2"
    assert len(places(4, 1, 9)) == 4


def test_every_worker_has_gpus_to_itself(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(8, gpus=4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = places(None, 2, 9)
    assert [place.gpus for place in found] == [("GPU-0", "GPU-1"), ("GPU-2", "GPU-3")]
    assert cores_of(found) == [(10, 11, 12, 13), (14, 15, 16, 17)]
    environment = found[1].environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-3"
    # Two processes, one for each GPU, share four cores.
    assert (environment["NPROC"], environment["OMP_NUM_THREADS"]) == ("2", "2")
    assert len(places(None, 1, 9)) == 4
    assert [place.gpus for place in places(1, 3, 9)] == [("GPU-0", "GPU-1", "GPU-2")]


def test_more_gpus_than_cores_leave_the_cores_to_the_system(machine: Callable[..., None]) -> None:
    machine(1, gpus=2)
    found = places(None, 1, 9)
    assert [place.gpus for place in found] == [("GPU-0",), ("GPU-1",)]
    assert found[0].environment()["OMP_NUM_THREADS"] == "1"


def test_what_the_user_set_stays(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert places(1, 1, 9)[0].environment()["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert places(1, 1, 9)[0].environment()["OMP_NUM_THREADS"] == "8"
    # No number: the stage `train` answers that.
    monkeypatch.setenv("NPROC", "two")
    assert len(places(None, 1, 9)) == 4


@pytest.mark.parametrize(
    ("cores", "gpus", "workers_asked", "each", "nproc", "message"),
    [
        (2, 0, 3, 1, "", "--workers 3: there are 2 cores; allowed: 1 to 2"),
        (8, 2, 3, 1, "", "--workers 3: there are 2 GPUs, 1 a worker; allowed: 1 to 2"),
        (8, 4, 3, 2, "", "--workers 3: there are 4 GPUs, 2 a worker; allowed: 1 to 2"),
        (8, 2, None, 3, "", "--gpus-per-worker 3: there are 2 GPUs; allowed: 1 to 2"),
        (8, 0, None, 2, "", "--gpus-per-worker 2: no GPU is visible here"),
        (8, 4, None, 1, "4", "4 processes for the 1 GPUs of a worker.*--gpus-per-worker 4"),
    ],
)
def test_more_than_there_is_is_refused(
    machine: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    gpus: int,
    workers_asked: int | None,
    each: int,
    nproc: str,
    message: str,
) -> None:
    machine(cores, gpus)
    monkeypatch.setenv("NPROC", nproc)
    with pytest.raises(UserError, match=message):
        places(workers_asked, each, 9)


def test_gpus_are_those_that_are_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Callable[..., None]
) -> None:
    machine(4)
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 0; echo 1\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [place.gpus for place in places(None, 1, 9)] == [("0",), ("1",)]
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert places(1, 1, 9)[0].gpus == ()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    smi.write_text("#!/bin/sh\necho no driver; exit 9\n")
    assert places(1, 1, 9)[0].gpus == ()


# Cells


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return dataclasses.replace(load_experiment(PARAMS), cells=tuple(CELLS))


def test_cells_of_which_a_stage_changed_are_to_do(dvc: Fake, experiment: Experiment) -> None:
    dvc.finds(
        {
            "train@cg-low-rn-0": [{"changed deps": {"data": "modified"}}],
            "evaluate@cg-low-rn-1": [],
            "evaluate@cg-low-rn-2": ["always changed"],
        }
    )
    mechanisms = load_mechanisms(load_experiment(PARAMS), PARAMS)
    assert cells_to_do(experiment, mechanisms) == [CELLS[0], CELLS[2]]
    (call,) = dvc.calls(CELLS[-1])
    wanted = [f"{stage}@cg-low-rn-{seed}" for seed in range(3) for stage in ("train", "evaluate")]
    assert call["arguments"] == ["status", "--json", *wanted]
    dvc.finds({})
    assert cells_to_do(experiment, mechanisms) == []


def test_a_status_that_cannot_be_told_is_an_error(dvc: Fake, experiment: Experiment) -> None:
    with pytest.raises(UserError, match=r"dvc status: FileNotFoundError.*plan/status"):
        cells_to_do(experiment, load_mechanisms(load_experiment(PARAMS), PARAMS))


def test_cells_are_run_and_what_they_say_is_kept(
    dvc: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{NAMES[0]}.log").write_text("of an earlier time\n")
    outcomes = run_cells(CELLS, here(2), tmp_path / "logs")
    assert [(one.name, one.failure) for one in outcomes] == [(name, "") for name in NAMES]
    for cell, outcome in zip(CELLS, outcomes, strict=True):
        assert outcome.seconds > 0
        said = outcome.log.read_text()
        assert said == f"complained\nsaid by cg-low-rn-{cell.seed} in attempt 0\n"
        (call,) = dvc.calls(cell)
        chain = [f"train@cg-low-rn-{cell.seed}", f"evaluate@cg-low-rn-{cell.seed}"]
        assert call["arguments"] == ["--wait-for-lock", "repro", "--single-item", *chain]
    shown = capsys.readouterr().err
    assert all(f"{name}: done in " in shown for name in NAMES)
    assert "3/3" in shown


def test_a_worker_keeps_to_its_place(dvc: Fake, tmp_path: Path) -> None:
    before = sorted(os.sched_getaffinity(0))
    one_core = [Place(cores=(before[-1],), gpus=("GPU-7",))]
    run_cells(CELLS[:1], one_core, tmp_path / "logs")
    (call,) = dvc.calls(CELLS[0])
    assert call["cores"] == [before[-1]]
    assert (call["CUDA_VISIBLE_DEVICES"], call["NPROC"], call["OMP_NUM_THREADS"]) == ("GPU-7",) + (
        "1",
    ) * 2
    assert sorted(os.sched_getaffinity(0)) == before


def test_as_many_cells_run_at_a_time_as_there_are_places(dvc: Fake, tmp_path: Path) -> None:
    # Each waits for the other to have begun, which only happens side by side.
    deed = "while not os.path.exists(os.path.join(plan, {!r})): time.sleep(0.01)"
    dvc.does(CELLS[0], deed.format("cg-low-rn-1.calls"))
    dvc.does(CELLS[1], deed.format("cg-low-rn-0.calls"))
    # The third comes when a place is free.
    outcomes = run_cells(CELLS, here(2), tmp_path / "logs")
    assert not any(outcome.failure for outcome in outcomes)
    begun = [float(str(dvc.calls(cell)[0]["begun"])) for cell in CELLS]
    assert begun[2] > max(begun[:2])


def test_one_that_fails_keeps_no_other_from_being_run(
    dvc: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dvc.does(CELLS[0], "print('loss is nan'); sys.exit(7)")
    outcomes = run_cells(CELLS, here(1), tmp_path / "logs")
    # A line that is no error is not quoted as one.
    assert outcomes[0].failure == f"failed (exit 7); see {outcomes[0].log}"
    assert [outcome.failure for outcome in outcomes[1:]] == ["", ""]
    assert len(dvc.calls(CELLS[0])) == 1
    assert "loss is nan" in outcomes[0].log.read_text()
    assert f"{NAMES[0]}: failed (exit 7)" in capsys.readouterr().err


def test_a_failure_is_told_with_the_error_that_came_first(
    dvc: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["10%\\r20% [1s, 1.0step/s]error: loss is nan; lower it", "  E", "ERROR: failed to run"]
    deed = f"print('{chr(92)}n'.join({said})); sys.exit(7)"
    dvc.does(CELLS[0], deed)
    (outcome,) = run_cells(CELLS[:1], here(1), tmp_path / "logs")
    assert outcome.failure == f"failed (exit 7): loss is nan; lower it; see {outcome.log}"
    assert outcome.failure in capsys.readouterr().err
    assert error_in("a warning: error: no\nKeyError: x") == ""
    assert error_in("ERROR: busy\n") == "busy"


def running(stage: str) -> str:
    """Return a deed: what DVC says when it comes to a stage."""
    return f'print("Running stage {chr(39)}{stage}@x-y-0{chr(39)}:", flush=True)'


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is said, as it is said."""
    monkeypatch.setattr(workers, "_LOOK", 0.01)
    said: list[str] = []
    monkeypatch.setattr(Telling, "say", lambda _, name, what: said.append(f"{name}: {what}"))
    return said


def test_the_stages_of_a_cell_are_told_while_it_runs(
    dvc: Fake, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"

    def say(_: object, name: str, what: str) -> None:
        told.append(f"{name}: {what}")
        if what == "train":
            # Only now, while it runs, may it go on.
            go.touch()

    monkeypatch.setattr(Telling, "say", say)
    wait = f"any(os.path.exists({str(go)!r}) or time.sleep(0.01) for _ in range(60000))"
    dvc.does(CELLS[0], f"{running('train')}; {wait}; {running('pipeline/sae/dvc.yaml:sae')}")
    (outcome,) = run_cells(CELLS[:1], here(1), tmp_path / "logs")
    assert outcome.failure == ""
    assert told[:2] == [f"{NAMES[0]}: train", f"{NAMES[0]}: sae"]
    assert told[2].startswith(f"{NAMES[0]}: done in")


def test_what_a_killed_attempt_came_to_is_told_before_the_next(
    dvc: Fake, tmp_path: Path, told: list[str]
) -> None:
    # The bar of a process that is killed ends where it is.
    bar = "print('training:  50%| 1/2 [00:01<00:01,  1.0step/s]', end='', flush=True)"
    dvc.does(CELLS[0], f"{running('train')}; {bar}; {KILL}", running("train"))
    run_cells(CELLS[:1], here(1), tmp_path / "logs")
    assert [what.partition(": ")[2].split(" in ")[0] for what in told] == [
        "train", "killed (signal 9); once more", "train", "done",
    ]  # fmt: skip


@pytest.mark.parametrize("broken", ["screen", "log"])
def test_cells_are_run_where_nothing_can_be_told(
    dvc: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(workers, "_LOOK", 0.01)
    if broken == "screen":
        screen = Breaking()
        screen.is_broken = True
        monkeypatch.setattr(sys, "stderr", screen)
    else:
        monkeypatch.setattr(Path, "open", refuse_reading(Path.open))
    for cell in CELLS[:2]:
        dvc.does(cell, f"{running('train')}; time.sleep(0.2)")
    outcomes = run_cells(CELLS[:2], here(2), tmp_path / "logs")
    assert [outcome.failure for outcome in outcomes] == ["", ""]


class Breaking(io.StringIO):
    """A pipe whose reader may go away."""

    is_broken = False

    def write(self, text: str) -> int:
        if self.is_broken:
            raise BrokenPipeError
        return super().write(text)


def test_a_bar_is_as_wide_as_the_screen() -> None:
    program = (
        "import re; from clip_mixtures.scheduling.telling import Telling; "
        "telling = Telling(2, 'cell', re.compile('x')); telling.ends('one', 'done'); "
        "telling.close()"
    )
    holder, screen = os.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", program], stderr=screen, env=environment, check=True)
    os.close(screen)
    written = b""
    # A screen that nobody has open any more ends with an error on Linux, elsewhere with nothing.
    with contextlib.suppress(OSError):
        while more := os.read(holder, 1 << 16):
            written += more
    os.close(holder)
    said = written.decode()
    assert "one: done" in said
    assert "\u2588" in said
    assert max(len(line) for line in re.split(r"[\r\n]", said)) >= 100


def test_a_screen_that_breaks_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Breaking()
    monkeypatch.setattr(sys, "stderr", screen)
    telling = Telling(3, "cell", re.compile("x"))
    screen.is_broken = True
    for name in ("one", "other"):
        # Long enough after the last time for the bar to be drawn anew.
        time.sleep(0.2)
        thread = threading.Thread(target=telling.ends, args=(name, "done"), daemon=True)
        thread.start()
        thread.join(timeout=60)
        assert not thread.is_alive()
    telling.close()


def refuse_reading(opens: Callable[..., Any]) -> Callable[..., Any]:
    def found(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if path.suffix == ".log" and mode == "rb":
            raise OSError(116, "Stale file handle")
        return opens(path, mode, *args, **options)

    return found


def test_a_follower_reads_every_line_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    follower = Follower(log, re.compile(f"{AFTER_BAR}at (.*)"))
    assert follower.look() == []
    log.write_bytes(b"at 1\nnot at 2\n50% [1s]at 3\nat ")
    assert follower.look() == ["1", "3"]
    with log.open("ab") as file:
        file.write(b"4\n")
    assert follower.look() == ["4"]
    with log.open("ab") as file:
        file.write(b"\r50%\r60%")
    assert follower.look() == []
    # A bar, which has no end of line, is not read again and again.
    assert follower._read == log.stat().st_size - len("60%")


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("death", "number"),
    [
        (KILL, 9),
        ("os.kill(os.getpid(), signal.SIGTERM)", 15),
        ("sys.exit(print('ERROR: failed to run: python x, exited with -9') or 255)", 9),
        ("sys.exit(print('ERROR: failed to run: a | b, exited with 137') or 255)", 9),
        ("sys.exit(print('  traceback : Signal 11 (SIGSEGV) received by PID 7') or 1)", 11),
    ],
)
def test_one_that_was_killed_is_run_once_more(
    dvc: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], death: str, number: int
) -> None:
    dvc.does(CELLS[0], death)
    (outcome,) = run_cells(CELLS[:1], here(1), tmp_path / "logs")
    assert outcome.failure == ""
    assert len(dvc.calls(CELLS[0])) == 2
    said = outcome.log.read_text()
    assert "in attempt 0" in said
    assert "in attempt 1" in said
    assert f"{NAMES[0]}: killed (signal {number}); once more" in capsys.readouterr().err


def test_one_that_was_killed_twice_is_not_run_again(dvc: Fake, tmp_path: Path) -> None:
    dvc.does(CELLS[0], KILL, KILL)
    dvc.does(CELLS[1], "os.kill(os.getpid(), 15)", "os.kill(os.getpid(), 15)")
    killed, terminated = run_cells(CELLS[:2], here(1), tmp_path / "logs")
    assert killed.failure.startswith("killed 2 times (signal 9); is there too little memory?")
    assert terminated.failure == f"killed 2 times (signal 15); see {terminated.log}"
    assert len(dvc.calls(CELLS[0])) == 2


def test_a_death_of_the_first_attempt_is_none_of_the_second(dvc: Fake, tmp_path: Path) -> None:
    dvc.does(CELLS[0], "sys.exit(print('exited with -9') or 255)", "sys.exit(3)")
    (outcome,) = run_cells(CELLS[:1], here(1), tmp_path / "logs")
    assert outcome.failure == f"failed (exit 3); see {outcome.log}"


def test_exits_of_programs_are_no_signals(dvc: Fake, tmp_path: Path) -> None:
    dvc.does(CELLS[0], "sys.exit(print('failed to run: x, exited with 2') or 255)")
    (outcome,) = run_cells(CELLS[:1], here(1), tmp_path / "logs")
    assert outcome.failure.startswith("failed (exit 255)")


def test_what_a_killed_attempt_left_behind_is_gone_before_the_next(
    dvc: Fake, tmp_path: Path
) -> None:
    note = f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))"
    dvc.does(CELLS[0], f"child = subprocess.Popen(['sleep', '600']); {note}; {KILL}")
    (outcome,) = run_cells(CELLS[:1], here(1), tmp_path / "logs")
    assert outcome.failure == ""
    assert not is_running(int((tmp_path / "child").read_text()))


def test_a_log_that_cannot_be_written_is_a_failure_of_its_cell(dvc: Fake, tmp_path: Path) -> None:
    (tmp_path / "logs" / f"{NAMES[0]}.log").mkdir(parents=True)
    first, second = run_cells(CELLS[:2], here(1), tmp_path / "logs")
    assert first.failure.startswith("could not be run: ")
    assert "Is a directory" in first.failure
    assert second.failure == ""
    assert last_lines(first.log) == []


def test_the_last_lines_are_those_of_a_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n" * 30 + b"\n10%\r20%\r30%\r\n\xff last\n")
    assert last_lines(log) == ["first"] * 13 + ["30%", "\ufffd last"]


# The end


def test_a_command_on_a_leash_ends_as_it_would_alone(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as output:
        for script, status in (("exit 5", 5), ("kill -9 $$", -9), ("echo x; echo y >&2", 0)):
            assert Leash(["sh", "-c", script], output=output).wait() == status
        assert Leash(["sh", "-c", "exit $A"], {**os.environ, "A": "4"}, output).wait() == 4
        assert Leash(["no-such-program"], output=output).wait() == 127
    said = (tmp_path / "out").read_text()
    assert said == "x\ny\nerror: no-such-program: No such file or directory\n"


def test_leaving_the_context_ends_the_command(tmp_path: Path) -> None:
    command = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with (tmp_path / "out").open("wb") as output, Leash(command, output=output):
        wait_until(lambda: (tmp_path / "out").read_text())
        begun = time.monotonic()
    assert not is_running(int((tmp_path / "out").read_text()))
    assert time.monotonic() - begun < leash_module.GRACE_SECONDS


def test_a_command_that_will_not_terminate_is_killed(tmp_path: Path) -> None:
    # As the leash's other end does, but with less patience.
    short = "from clip_mixtures.scheduling import leash; leash.GRACE_SECONDS = 0.3; leash.main()"
    deaf = "trap 'echo asked' TERM; echo $$; while :; do sleep 0.05; done"
    command = [sys.executable, "-c", short, "sh", "-c", deaf]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        shell = int(process.stdout.readline())
        process.stdin.close()
        assert process.wait(timeout=300) == -signal.SIGKILL
        assert b"asked" in process.stdout.read()
    assert not is_running(shell)


def scheduler(dvc: Fake, folder: Path, places_wanted: int = 2) -> subprocess.Popen[str]:
    """Run the cells in a process of its own, as stages/work.py does after its checks."""
    script = (
        "import signal, sys; from pathlib import Path; from experiment import Cell\n"
        "from work import run_cells; from clip_mixtures.scheduling.workers import Place\n"
        # A shell that begins tests in the background has them ignore an interrupt.
        "for number in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(number, signal.default_int_handler)\n"
        "cells = [Cell('cg-low', 'rn', seed) for seed in range(3)]\n"
        f"places = [Place((), ())] * {places_wanted}\n"
        f"run_cells(cells, places, Path({str(folder / 'logs')!r}))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "stages")},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_scheduler(dvc: Fake, tmp_path: Path, number: signal.Signals) -> None:
    # Each cell starts a process of its own, as DVC does, and waits.
    deed = (
        "child = subprocess.Popen(['sleep', '600']); "
        f"open({str(tmp_path / 'pid-')!r} + key, 'w').write(f'{{os.getpid()}} {{child.pid}} '); "
        "child.wait()"
    )
    for cell in CELLS:
        dvc.does(cell, deed)

    def processes() -> list[int]:
        files = [path.read_text() for path in tmp_path.glob("pid-*")]
        return [int(word) for text in files if text.endswith(" ") for word in text.split()]

    process = scheduler(dvc, tmp_path)
    wait_until(lambda: len(processes()) == 4)
    assert all(map(is_running, processes()))
    process.send_signal(number)
    shown = process.communicate(timeout=300)[1]
    wait_until(lambda: not any(map(is_running, processes())))
    # The third was not begun in their place.
    assert len(processes()) == 4
    assert dvc.calls(CELLS[2]) == []
    if number != signal.SIGKILL:
        assert "KeyboardInterrupt" in shown
        assert f"{NAMES[0]}: stopped" in shown
        assert "killed" not in shown


# The program


def work(
    dvc: Fake, *arguments: str, cwd: Path = ROOT, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": dvc.path if path is None else path}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "SCRATCH": str(dvc.plan.parent / "scratch")}
    command = [sys.executable, str(WORK), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "error: --workers 0: allowed: 1 or more\n"),
        (["--gpus-per-worker", "-1"], "error: --gpus-per-worker -1: allowed: 1 or more\n"),
    ],
)
def test_mistakes_are_one_line(dvc: Fake, arguments: list[str], message: str) -> None:
    found = work(dvc, *arguments)
    assert (found.returncode, found.stderr) == (2, message)


def test_an_environment_that_is_not_active_is_named(dvc: Fake) -> None:
    found = work(dvc, path="/nowhere")
    assert found.returncode == 2
    assert found.stderr == ("error: dvc: no such program on PATH; `. .venv/bin/activate` first\n")


SHIPPED = load_experiment(PARAMS).cells


def test_the_shared_stage_comes_first_then_cells_then_everything(dvc: Fake) -> None:
    first, second = SHIPPED[:2]
    dvc.finds({name: ["changed"] for name in (*stages_of(first), stages_of(second)[1])})
    found = work(dvc, "--workers", "1")
    assert found.returncode == 0, found.stderr
    scratch = dvc.plan.parent / "scratch"
    assert (
        f"2 of {len(SHIPPED)} cells to do, 1 at a time; what they say: {scratch}/work/"
        in found.stdout
    )
    begun = [dvc.calls("mixture"), dvc.calls(first), dvc.calls(second), dvc.calls("repro")]
    assert [len(calls) for calls in begun] == [1, 1, 1, 1]
    times = [float(str(calls[0]["begun"])) for calls in begun]
    assert times == sorted(times)
    assert begun[3][0]["arguments"] == ["--wait-for-lock", "repro"]


def test_with_nothing_to_do_only_the_rest_is_brought_up_to_date(dvc: Fake) -> None:
    dvc.finds({})
    found = work(dvc)
    assert found.returncode == 0
    assert "cells to do" not in found.stdout
    assert len(dvc.calls("repro")) == 1


def test_a_failure_ends_with_the_last_lines_of_its_log_and_no_comparison(dvc: Fake) -> None:
    first, second = SHIPPED[:2]
    dvc.finds({name: ["changed"] for name in (*stages_of(first), *stages_of(second))})
    dvc.does(first, "print('error: loss is nan at step 7'); sys.exit(255)")
    found = work(dvc, "--workers", "1")
    assert found.returncode == 2
    log = dvc.plan.parent / "scratch" / "work" / f"{first.run}.log"
    assert f"--- {log}\n" in found.stderr
    assert "error: loss is nan at step 7\n" in found.stderr
    told, last = found.stderr.splitlines()[-2:]
    assert told == f"{first.run}: failed (exit 255): loss is nan at step 7; see {log}"
    assert last.startswith(
        f"error: 1 of 2 cells are not done: {first.run}; mend what is said above"
    )
    assert dvc.calls("repro") == []
    assert len(dvc.calls(second)) == 1


def test_a_shared_stage_that_fails_ends_with_its_status(dvc: Fake) -> None:
    dvc.does("mixture", "sys.exit(4)")
    found = work(dvc)
    assert found.returncode == 4
    assert dvc.calls("repro") == []


def test_a_scheduler_that_is_stopped_says_how_to_go_on(dvc: Fake) -> None:
    dvc.does("mixture", "time.sleep(60)")
    environment = {**os.environ, "PATH": dvc.path}
    command = [sys.executable, str(WORK)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: dvc.calls("mixture"))
        process.send_signal(signal.SIGTERM)
        shown = process.communicate(timeout=300)[1]
    assert process.returncode == 130
    assert shown.endswith("stopped; the same command goes on with what is not done\n")
    assert "Traceback" not in shown


# With DVC itself

PIPELINE = """
stages:
  mixture:
    matrix: {mixture: "${run.mixtures}"}
    cmd: mkdir -p mixtures && echo ${item.mixture} > mixtures/${item.mixture}
    outs: ["mixtures/${item.mixture}"]
  train:
    matrix: {mixture: "${run.mixtures}", model: "${run.models}", seed: "${run.seeds}"}
    cmd: mkdir -p runs && cat mixtures/${item.mixture} > runs/${item.mixture}-${item.seed}
    deps: ["mixtures/${item.mixture}"]
    outs: ["runs/${item.mixture}-${item.seed}"]
  evaluate:
    matrix: {mixture: "${run.mixtures}", model: "${run.models}", seed: "${run.seeds}"}
    cmd: cat runs/${item.mixture}-${item.seed} > ${item.mixture}-${item.seed} && echo evaluated
    deps: ["runs/${item.mixture}-${item.seed}"]
    outs: ["${item.mixture}-${item.seed}"]
  compare:
    cmd: cat cg-low-0 cg-low-1 > compared
    deps: [cg-low-0, cg-low-1]
    outs: [compared]
"""


def test_dvc_runs_the_cells_in_parallel_and_records_them(tmp_path: Path) -> None:
    text = PARAMS.read_text()
    text = re.sub("mixtures: .*", "mixtures: [cg-low]", text, count=1)
    text = re.sub("models: .*", "models: [sample-rn]", text, count=1)
    # Nothing is looked into: the pipeline below has no such stages.
    text = re.sub(r"(mechanisms:\n  models: |circuit_models: ).*", r"\1[]", text)
    (tmp_path / "params.yaml").write_text(text.replace("seeds: [0]", "seeds: [0, 1]"))
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": tools, "DVC_NO_ANALYTICS": "1", "SHELL": "/bin/sh"}
    environment["CUDA_VISIBLE_DEVICES"] = ""

    def run(*command: str) -> str:
        found = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return found.stdout

    run("dvc", "init", "--quiet", "--no-scm")
    assert "2 of 2 cells to do" in run(sys.executable, str(WORK))
    assert (tmp_path / "compared").read_text() == "cg-low\ncg-low\n"
    for seed in (0, 1):
        log = tmp_path / "scratch" / "work" / f"cg-low-sample-rn-s{seed}.log"
        assert "evaluated" in log.read_text()
    assert json.loads(run("dvc", "status", "--json")) == {}


def test_cells_that_are_looked_into_have_more_stages() -> None:
    mechanisms = load_mechanisms(load_experiment(PARAMS), PARAMS)
    looked_into, other = (
        next(cell for cell in SHIPPED if (cell in mechanisms.cells) == whether)
        for whether in (True, False)
    )
    key = f"{looked_into.mixture}-{looked_into.model}-{looked_into.seed}"
    assert stages_of(looked_into, mechanisms) == [
        f"train@{key}",
        f"evaluate@{key}",
        *(
            f"pipeline/{family}/dvc.yaml:{family}@{key}"
            for family in ("activations", "representation", "sae", "sharing", "circuits")
        ),
    ]
    assert stages_of(other, mechanisms) == stages_of(other)
