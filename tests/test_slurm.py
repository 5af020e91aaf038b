"""Cells on a real SLURM, and what takes longer than the other tests: `make test-slurm`."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from slurm_node import Slurm, running_slurm, wait_until
from toy_cells import Toy, commit, edit, environment, make_project, make_toy

from clip_mixtures.scheduling import nodes
from clip_mixtures.scheduling.cluster import CellTask, prepare, submit
from clip_mixtures.scheduling.logs import last_lines
from clip_mixtures.scheduling.sbatch import Resources, slurm_executor
from clip_mixtures.scheduling.submissions import (
    DONE,
    FAILED,
    PENDING,
    RUNNING,
    CellJob,
    CellState,
    Submission,
    cell_states,
    in_flight,
    read_queue,
    read_settled_queue,
    read_submissions,
    restore,
    tidy,
)

pytestmark = pytest.mark.slurm

STAGES = Path(__file__).parents[1] / "stages"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    # Names of sockets are short.
    with (
        tempfile.TemporaryDirectory(dir="/tmp", prefix="slurm-") as folder,
        running_slurm(Path(folder)) as slurm,
    ):
        yield slurm


@pytest.fixture
def here(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    yield slurm
    slurm.empty()


def send(
    toy: Toy, jobs: Sequence[CellJob], resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> Submission:
    for name, value in environment(toy).items():
        monkeypatch.setenv(name, value)
    submission = prepare(toy.root, toy.submissions, jobs)
    submit(submission, toy.scratch, slurm_executor(submission, resources))
    return read_submissions(toy.submissions)[-1]


def states(submission: Submission) -> dict[str, CellState]:
    return {
        one.name: one
        for one in cell_states(submission, read_settled_queue(submission.folder.parent))
    }


def wait_for_end(submission: Submission) -> dict[str, CellState]:
    wait_until(lambda: {one.state for one in states(submission).values()} <= {DONE, FAILED})
    return states(submission)


def all_logs(submission: Submission) -> str:
    return "\n".join(path.read_text() for path in submission.folder.glob("jobs/*.out"))


def assert_collected(toy: Toy, jobs: Sequence[CellJob]) -> None:
    """Take over the cells without a single execution."""
    before = toy.noted()
    restore(toy.root, [stage for job in jobs for stage in job.stages], None, toy.root / "build/log")
    toy.dvc("repro", "--single-item", *(stage for job in jobs for stage in job.stages))
    assert toy.noted() == before


def test_an_array_of_cells_of_which_one_fails(
    here: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy(tmp_path, ("a", "bad", "c"))
    jobs = toy.jobs("a", "bad", "c")
    submission = send(toy, jobs, Resources(minutes=10, cpus_per_task=1), monkeypatch)
    ids = [submission.ids[job.name] for job in jobs]
    assert [number.partition("_")[2] for number in ids] == ["0", "1", "2"]
    # In the queue, they are not to be submitted once more.
    assert set(in_flight(toy.submissions, read_queue())) == {job.name for job in jobs}
    found = wait_for_end(submission)
    assert {name: one.state for name, one in found.items()} == {
        "a-toy-s0": DONE,
        "bad-toy-s0": FAILED,
        "c-toy-s0": DONE,
    }
    assert found["bad-toy-s0"].detail == "dvc repro failed (exit 255)"
    log = found["bad-toy-s0"].log
    assert log is not None
    assert "error: bad-0 has no sense" in last_lines(log)
    assert "Traceback" not in log.read_text()
    wait_until(lambda: not in_flight(toy.submissions, read_queue()))
    assert_collected(toy, toy.jobs("a", "c"))
    tidy(toy.submissions, {"a-toy-s0", "c-toy-s0"}, read_queue())
    assert [path.parent.name for path in submission.folder.glob("cells/*/clone")] == ["bad-toy-s0"]
    tidy(toy.submissions, {job.name for job in jobs}, read_queue())
    assert not list(submission.folder.glob("cells/*/clone"))
    assert not (submission.folder / "snapshot.git").exists()
    assert log.is_file()


def begun(toy: Toy, step: int) -> bool:
    return bool(toy.noted(f"train a-0 step {step} "))


@pytest.mark.parametrize("how", ["requeue", "signal", "time-out"])
def test_a_requeued_task_goes_on(
    here: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    toy = make_toy(tmp_path)
    monkeypatch.setenv("TOY_STEP_SECONDS", "1.5")
    resources = Resources(minutes=10)
    if how == "time-out":
        # More steps than fit into a minute; SLURM may tell a task of its limit a minute early.
        edit(toy, steps=45)
        resources = Resources(minutes=1, signal_seconds=10)
    submission = send(toy, toy.jobs("a"), resources, monkeypatch)
    (number,) = submission.ids.values()
    wait_until(lambda: begun(toy, 2))
    assert states(submission)["a-toy-s0"].state == RUNNING
    if how == "requeue":
        here.ask("scontrol", "requeue", number)
    elif how == "signal":
        here.ask("scancel", "--signal=USR2", number)
    wait_until(lambda: states(submission)["a-toy-s0"].state == PENDING)
    seen: set[tuple[str, str]] = set()
    while not {DONE, FAILED} & {state for state, _ in seen}:
        one = states(submission)["a-toy-s0"]
        seen.add((one.state, one.detail))
        # Spared the two minutes that SLURM has it wait, unless it has just begun.
        if here.states().get(number) == "PENDING":
            # Begun again in the second in which it ended, SLURM refuses: "Job credential revoked".
            time.sleep(3)
            try:
                here.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
            except AssertionError as error:
                assert "no longer pending" in str(error)  # noqa: PT017
        time.sleep(0.2)
    assert FAILED not in {state for state, _ in seen}, seen
    found = states(submission)["a-toy-s0"]
    assert found.state == DONE, all_logs(submission)
    assert found.attempts == len(toy.noted("train a-0 began")) >= 2
    # It went on: no step was done twice.
    steps = [int(line.split()[3]) for line in toy.noted("train a-0 step")]
    assert steps == sorted(set(steps))
    assert steps[-1] == (45 if how == "time-out" else 5)
    assert_collected(toy, toy.jobs("a"))


def test_a_cancelled_task_is_reported(
    here: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy(tmp_path)
    monkeypatch.setenv("TOY_STEP_SECONDS", "3")
    submission = send(toy, toy.jobs("a"), Resources(minutes=10), monkeypatch)
    wait_until(lambda: begun(toy, 1))
    here.ask("scancel", *submission.ids.values())
    wait_until(lambda: not here.states())
    found = states(submission)["a-toy-s0"]
    assert (found.state, found.detail) == (FAILED, "cancelled")


def test_a_cell_over_two_nodes(
    here: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy(tmp_path, train="torchrun --standalone --nproc-per-node \\${NPROC:-1}")
    resources = Resources(minutes=10, nodes=2)
    found = wait_for_end(send(toy, toy.jobs("a"), resources, monkeypatch))["a-toy-s0"]
    assert found.state == DONE, all_logs(read_submissions(toy.submissions)[-1])
    # Training is distributed, and nothing else is.
    assert sorted(toy.noted("train a-0 began")) == [
        f"train a-0 began rank {rank} of 2" for rank in (0, 1)
    ]
    assert toy.noted("evaluate") == ["evaluate a-0 began rank 0 of 1"]
    # The command that DVC recorded is the one for one machine.
    assert_collected(toy, toy.jobs("a"))
    # What is in the run-cache already is not trained, and the second node does not wait for it.
    before = toy.noted()
    again = wait_for_end(send(toy, toy.jobs("a"), resources, monkeypatch))["a-toy-s0"]
    assert again.state == DONE
    assert toy.noted() == before
    wait_until(lambda: not here.states(), seconds=20)


def test_a_failure_on_two_nodes_ends_both(
    here: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy(tmp_path, ("bad",), train="torchrun --standalone --nproc-per-node \\${NPROC:-1}")
    submission = send(toy, toy.jobs("bad"), Resources(minutes=10, nodes=2), monkeypatch)
    assert wait_for_end(submission)["bad-toy-s0"].state == FAILED
    wait_until(lambda: not here.states(), seconds=60)
    assert "error: bad-0 has no sense" in all_logs(submission)


def test_the_stand_in_ends_as_torchrun_does(tmp_path: Path) -> None:
    meeting = tmp_path / "a folder"
    nodes.write_stand_in(tmp_path, meeting, 1)
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(sys.argv[1:])\nsys.exit(len(sys.argv) > 2)\n")
    stand_in = str(tmp_path / "torchrun")
    found = subprocess.run(
        [stand_in, "--standalone", "--nproc-per-node", "1", str(script), "a b"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "['a b']\n"
    assert (meeting / "done-0").is_file()
    assert json.loads((meeting / "launch-0.json").read_text())["arguments"][-1] == "a b"


COMPUTE = """
import pickle, sys
from pathlib import Path
sys.exit(pickle.loads(Path(sys.argv[1]).read_bytes()).compute() or 0)
"""


def test_a_task_killed_twenty_times_ends_with_the_same_result(tmp_path: Path) -> None:
    results = []
    for folder, kills in ((tmp_path / "whole", 0), (tmp_path / "killed", 20)):
        toy = make_toy(folder)
        submission = prepare(toy.root, toy.submissions, toy.jobs("a"))
        task = folder / "task"
        task.write_bytes(pickle.dumps(CellTask(submission.jobs[0], submission, toy.scratch)))
        command = [sys.executable, "-c", COMPUTE, str(task)]
        settings = {**environment(toy), "TOY_STEP_SECONDS": "0.4"}
        chance = random.Random(0)
        ended_early = 0
        for _ in range(kills):
            with subprocess.Popen(command, env=settings, stderr=subprocess.DEVNULL) as process:
                # From the clone to the push of the last stage's outputs.
                time.sleep(chance.uniform(0.2, 4.5))
                process.send_signal(signal.SIGKILL)
            ended_early += process.returncode == -signal.SIGKILL
        assert ended_early >= kills / 2
        subprocess.run(command, env=settings, check=True)
        assert os.listdir(submission.cell_folder("a-toy-s0")).count("clone") == 0
        assert_collected(toy, toy.jobs("a"))
        results.append(toy.results())
    assert results[0] == results[1]
    assert len(results[0]) == 2


# The program


def test_the_program_from_submission_to_comparison(here: Slurm, tmp_path: Path) -> None:
    project = make_project(tmp_path)

    def cluster(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(STAGES / "cluster.py"), *arguments]
        return subprocess.run(
            command,
            cwd=project.root,
            env=environment(project),
            capture_output=True,
            text=True,
            check=False,
        )

    # The comparison is not there yet, and the mixture is made by the first command.
    refused = cluster("submit", "--partition", "nowhere")
    assert refused.returncode == 2
    assert "sbatch: invalid partition specified: nowhere" in refused.stderr
    sent = cluster("submit", "--time", "10", "--cpus-per-task", "1", "--comment=mine", "--hold")
    assert sent.returncode == 0, sent.stderr
    assert "2 of 2 cells to submit" in sent.stdout
    jobs = list(here.states())
    assert [job.partition("_")[2] for job in jobs] == ["0", "1"]
    again = cluster("submit", "--time", "10")
    assert again.returncode == 2
    assert "all 2 cells that are not done are submitted" in again.stderr
    early = cluster("collect")
    assert early.returncode == 2
    assert "not done: cg-low-sample-rn-s0, cg-low-sample-rn-s1" in early.stderr
    assert "2 pending" in cluster("status").stdout
    here.ask("scontrol", "release", jobs[0].partition("_")[0])
    wait_until(lambda: not here.states())
    shown = cluster("status").stdout.splitlines()
    assert [line.split()[0] for line in shown] == [
        *("cg-low-sample-rn-s0", "cg-low-sample-rn-s1"),
        "2",
    ]
    assert shown[-1] == "2 done"
    before = project.noted()
    collected = cluster("collect")
    assert collected.returncode == 0, collected.stderr
    assert "2 cells taken over, 0 not done" in collected.stdout
    assert project.noted() == [*before, "compare"]
    assert project.status() == {}
    nothing = cluster("submit", "--time", "10", "--wait")
    assert nothing.returncode == 0
    assert "0 of 2 cells to submit" in nothing.stdout
    # One more, with the wait and the collection.
    (project.root / "recipe.txt").write_text("another")
    waited = cluster("submit", "--time", "10", "--wait")
    assert waited.returncode == 0, (waited.stdout, waited.stderr)
    assert "2 cells taken over, 0 not done" in waited.stdout
    assert not list(project.submissions.glob("*/snapshot.git"))


def test_a_remote_in_place_of_a_shared_cache(here: Slurm, tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.dvc("remote", "add", "store", str(tmp_path / "store"))
    commit(project)

    def cluster(*arguments: str) -> str:
        return project.run(sys.executable, str(STAGES / "cluster.py"), *arguments)

    cluster("submit", "--time", "10", "--remote", "store")
    wait_until(lambda: not here.states())
    # The tasks had nothing of the workspace's cache, and left nothing there.
    assert (project.submissions / "cache").is_dir()
    before = project.noted()
    assert "0 cells taken over" not in cluster("collect", "--remote", "store")
    assert project.noted() == [*before, "compare"]
