"""Cells on a cluster: snapshots, job scripts, submissions, nodes that follow, and tasks."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import submitit
from dvc.config import Config
from hypothesis import given
from hypothesis import strategies as st
from toy_cells import Toy, edit, environment, make_project, make_toy

import cluster as program
from clip_mixtures.errors import UserError
from clip_mixtures.scheduling import nodes, submissions
from clip_mixtures.scheduling.cluster import CellTask, prepare, submit
from clip_mixtures.scheduling.nodes import Launch
from clip_mixtures.scheduling.sbatch import (
    Resources,
    job_script,
    minutes_of,
    sbatch_options,
    slurm_executor,
)
from clip_mixtures.scheduling.snapshots import check_tracked, take_snapshot, write_config
from clip_mixtures.scheduling.submissions import (
    DONE,
    FAILED,
    PENDING,
    RUNNING,
    UNKNOWN,
    CellJob,
    QueueEntry,
    Submission,
    cell_states,
    in_flight,
    one_at_a_time,
    read_queue,
    read_settled_queue,
    read_submissions,
    restore,
    tidy,
)

STAGES = Path(__file__).parents[1] / "stages"
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@localhost")


def git(folder: Path, *arguments: str) -> str:
    found = subprocess.run(
        ["git", "-C", str(folder), *IDENTITY, *arguments],
        env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Make a git repository with a pipeline; DVC is not needed for what git does."""
    root = tmp_path / "repository"
    (root / "src").mkdir(parents=True)
    (root / "pipeline" / "sae").mkdir(parents=True)
    (root / "src" / "code.py").write_text("first\n")
    (root / "params.yaml").write_text("lr: 1\n")
    (root / "gone").write_text("gone\n")
    (root / ".gitignore").write_text("/build/\n")
    (root / "dvc.yaml").write_text(
        "stages:\n"
        "  train:\n"
        "    matrix: {mixture: [a, b]}\n"
        "    cmd: python tools/train.py --mixture ${item.mixture}\n"
        "    deps: [build/index, lists, 'recipes/${item.mixture}.txt']\n"
        "    params: [lr, {other.yaml: [x]}]\n"
    )
    (root / "pipeline" / "sae" / "dvc.yaml").write_text(
        "stages:\n  sae:\n    wdir: ../..\n    cmd: [echo hello, echo]\n    deps: [names.csv]\n"
    )
    git(tmp_path, "init", "--quiet", str(root))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "first")
    return root


def files_of(store: Path, folder: Path) -> dict[str, str]:
    """Return the text of every file of a snapshot."""
    git(folder, "clone", "--quiet", str(store), str(folder / "checked-out"))
    root = folder / "checked-out"
    names = git(root, "ls-files").splitlines()
    return {name: (root / name).read_text() for name in names}


# Snapshots


def test_a_snapshot_holds_what_is_here_and_leaves_it_alone(
    repository: Path, tmp_path: Path
) -> None:
    (repository / "params.yaml").write_text("lr: 2\n")
    (repository / "src" / "code.py").write_text("staged\n")
    (repository / "src" / "new.py").write_text("new\n")
    git(repository, "add", "src")
    (repository / "src" / "code.py").write_text("edited after that\n")
    (repository / "gone").unlink()
    (repository / "notes.txt").write_text("not of the pipeline\n")
    # DVC's own record of a first run is not tracked yet.
    (repository / "dvc.lock").write_text("schema: '2.0'\n")
    before = (git(repository, "status", "--porcelain"), git(repository, "show-ref"))
    commit = take_snapshot(repository, tmp_path / "store.git")
    assert (git(repository, "status", "--porcelain"), git(repository, "show-ref")) == before
    assert git(tmp_path / "store.git", "rev-parse", "HEAD").strip() == commit
    # Later edits, and even the end of the repository, change nothing.
    (repository / "params.yaml").write_text("lr: 3\n")
    shutil.rmtree(repository)
    found = files_of(tmp_path / "store.git", tmp_path)
    assert found["params.yaml"] == "lr: 2\n"
    assert found["src/code.py"] == "edited after that\n"
    assert found["src/new.py"] == "new\n"
    assert found["dvc.lock"] == "schema: '2.0'\n"
    assert {"gone", "notes.txt"}.isdisjoint(found)


def test_without_changes_a_snapshot_is_head(repository: Path, tmp_path: Path) -> None:
    take_snapshot(repository, tmp_path / "store.git")
    trees = [
        git(folder, "rev-parse", "HEAD^{tree}") for folder in (repository, tmp_path / "store.git")
    ]
    assert trees[0] == trees[1]


@pytest.mark.parametrize(
    "name",
    [
        "src/new.py",
        "stages/deep/new.py",
        "lists/one.txt",
        "recipes/a.txt",
        "other.yaml",
        "tools/train.py",
        "names.csv",
        "data.dvc",
        "pipeline/new/dvc.yaml",
    ],
)
def test_what_a_task_would_lack_is_refused(repository: Path, name: str) -> None:
    check_tracked(repository)
    (repository / name).parent.mkdir(parents=True, exist_ok=True)
    (repository / name).write_text("stages: {}\n")
    with pytest.raises(UserError, match=f"^{re.escape(name)}: not tracked .* git add {name} "):
        check_tracked(repository)
    git(repository, "add", name)
    check_tracked(repository)


@pytest.mark.parametrize("name", ["notes.txt", "recipes/deep/a.txt", "build/index", "hello/x"])
def test_what_no_stage_names_may_be_untracked(repository: Path, name: str) -> None:
    (repository / name).parent.mkdir(parents=True, exist_ok=True)
    (repository / name).write_text("")
    if name != "hello/x":
        check_tracked(repository)
        return
    # A word of a command is taken for the file of that name.
    with pytest.raises(UserError, match="hello/x: not tracked"):
        check_tracked(repository)


def test_an_unfinished_merge_is_refused(repository: Path) -> None:
    git(repository, "checkout", "--quiet", "-b", "other")
    (repository / "params.yaml").write_text("lr: 2\n")
    git(repository, "commit", "--quiet", "--all", "--message", "second")
    git(repository, "checkout", "--quiet", "-")
    (repository / "params.yaml").write_text("lr: 3\n")
    git(repository, "commit", "--quiet", "--all", "--message", "third")
    with pytest.raises(subprocess.CalledProcessError):
        git(repository, "merge", "other")
    with pytest.raises(UserError, match=r"params\.yaml: unmerged; finish the merge"):
        check_tracked(repository)


def test_what_is_no_repository_of_its_own_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the top of its git repository"):
        check_tracked(repository / "src")
    with pytest.raises(UserError, match="git rev-parse: fatal: not a git repository"):
        check_tracked(tmp_path)
    git(tmp_path, "init", "--quiet", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="has no commit; make one"):
        check_tracked(tmp_path / "empty")


def test_settings_of_dvc_hold_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "here" / ".dvc"
    folder.mkdir(parents=True)
    (folder / "config").write_text(
        "[core]\n    remote = store\n[cache]\n    dir = ../../cache\n    type = hardlink,symlink\n"
        "['remote \"store\"']\n    url = ../../store\n    verify = true\n"
        "['remote \"s3\"']\n    url = s3://bucket/path\n"
    )
    (folder / "config.local").write_text(
        "['remote \"s3\"']\n    access_key_id = me\n    secret_access_key = 'a#b,c'\n"
    )
    target = tmp_path / "far" / "away" / ".dvc" / "config.local"
    write_config(tmp_path / "here", target, tmp_path / "else where")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    found = Config(str(target.parent)).load_one("local")
    assert found["core"]["remote"] == "store"
    assert found["cache"] == {"dir": str(tmp_path / "else where"), "type": ["hardlink", "symlink"]}
    assert found["remote"]["store"] == {"url": str(tmp_path / "store"), "verify": "true"}
    assert found["remote"]["s3"] == {
        "url": "s3://bucket/path",
        "access_key_id": "me",
        "secret_access_key": "a#b,c",
    }


# What a task asks for


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        *(("30", 30), ("1:30", 2), ("02:00:00", 120), ("00:00:01", 1), ("1-0", 1440)),
        *(("1-12:30", 2190), ("2-00:00:01", 2881)),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(limit: str, minutes: int) -> None:
    assert minutes_of(limit) == minutes


@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_a_time_limit_is_rounded_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total:
        limit = f"{days}-{hours}:{minutes:02}:{seconds:02}"
        assert minutes_of(limit) == math.ceil(total / 60)


@pytest.mark.parametrize("limit", ["", "1h", "1:2:3:4", "-5", "1-", "12.5", "0", "00:00:00"])
def test_what_is_no_time_limit_is_refused(limit: str) -> None:
    with pytest.raises(UserError, match=f"^--time {re.escape(limit)}: allowed: .*12:00:00"):
        minutes_of(limit)


def test_options_go_to_sbatch_as_they_are() -> None:
    words = "--account mine --mem=64G --exclusive --constraint=a=b --mail-type END"
    assert sbatch_options(words.split()) == {
        "account": "mine",
        "mem": "64G",
        "exclusive": True,
        "constraint": "a=b",
        "mail-type": "END",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-A", "mine"], "-A: not an option; options of sbatch in full, such as --mem=64G"),
        (["mine"], "mine: not an option"),
        (["--mem=1G", "2G"], "2G: not an option"),
        (["--array=0-3"], "--array: is set by this program; give --array-parallelism"),
        (["--signal", "TERM"], "--signal: is set by this program; leave it out"),
    ],
)
def test_options_that_cannot_be_passed_on_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        sbatch_options(words)


def submission_of(folder: Path, names: Sequence[str], **more: object) -> Submission:
    jobs = tuple(CellJob(name, (f"train@{name}",), ("data.dvc",)) for name in names)
    one = Submission(folder, "0" * 40, None, jobs)
    return dataclasses.replace(one, **more)  # type: ignore[arg-type]


def test_the_job_script_asks_for_what_was_asked_for(tmp_path: Path) -> None:
    submission = submission_of(tmp_path / "20260101-x", ["a", "b", "c"])
    resources = Resources(
        minutes=90,
        nodes=2,
        partition="gpu",
        gpus_per_node=4,
        cpus_per_task=8,
        parallelism=2,
        setup=("module load cuda",),
        further={"account": "mine", "exclusive": True},
    )
    lines = job_script(slurm_executor(submission, resources), 3).splitlines()
    wanted = {
        *("--array=0-2%2", "--time=90", "--nodes=2", "--ntasks-per-node=1", "--partition=gpu"),
        *("--gpus-per-node=4", "--cpus-per-task=8", "--account=mine", "--exclusive", "--requeue"),
        *("--signal=USR2@120", "--job-name=clip-mixtures-20260101-x", "--open-mode=append"),
        f"--chdir={tmp_path / '20260101-x'}",
    }
    assert wanted <= {line.removeprefix("#SBATCH ") for line in lines}
    code = tmp_path / "20260101-x" / "code"
    setup = lines.index("module load cuda")
    assert lines[setup + 1] == f"export PYTHONPATH={code}/src:{code}/stages"
    (command,) = [line for line in lines if line.startswith("srun ")]
    assert " --kill-on-bad-exit=1 --cpus-per-task=8 " in command
    assert f" {sys.executable} -u -m submitit.core._submit " in command


def test_one_cell_is_no_array(tmp_path: Path) -> None:
    executor = slurm_executor(submission_of(tmp_path, ["a"]), Resources(minutes=1))
    script = job_script(executor, 1)
    assert "--array" not in script
    assert "--cpus-per-task" not in script
    assert "--gpus" not in script
    # Shown or submitted, it is the same executor.
    assert job_script(executor, 1) == script


# What became of it


def entry(job: str, state: str, why: str = "n1", name: str = "other") -> QueueEntry:
    return QueueEntry(job, name, state, why)


def say(submission: Submission, name: str, failure: str | None, attempts: int = 1) -> None:
    folder = submission.cell_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "attempt.json").write_text(json.dumps({"number": attempts, "host": "far"}))
    if failure is not None:
        (folder / "outcome.json").write_text(json.dumps({"failure": failure, "seconds": 61.4}))


@pytest.mark.parametrize(
    ("queued", "outcome", "state", "detail"),
    [
        (entry("7_0", "PENDING", "(Resources)"), None, PENDING, "Resources"),
        (entry("7_0", "RUNNING"), None, RUNNING, "on far"),
        (entry("7_0", "COMPLETING"), "", DONE, "in 61 s"),
        (entry("7_0", "COMPLETING"), "no sense", FAILED, "no sense"),
        # By hand, with `scontrol requeue`.
        (entry("7_0", "PENDING", "(BeginTime)"), "no sense", PENDING, "BeginTime"),
        (entry("7_1", "RUNNING"), "", DONE, "in 61 s"),
        (entry("7_1", "RUNNING"), "no sense", FAILED, "no sense"),
        (entry("7_1", "RUNNING"), None, FAILED, "ended without a word"),
        # Between the end of an attempt and the queue.
        (entry("7_0", "REQUEUED"), None, PENDING, "n1"),
        (entry("7_0", "PREEMPTED"), None, PENDING, "n1"),
        (entry("7_0", "OUT_OF_MEMORY"), None, FAILED, "out_of_memory"),
        (entry("7_0", "COMPLETED"), "", DONE, "in 61 s"),
    ],
)
def test_states_follow_from_the_queue_and_what_tasks_said(
    tmp_path: Path, queued: QueueEntry, outcome: str | None, state: str, detail: str
) -> None:
    submission = submission_of(tmp_path, ["a"], ids={"a": "7_0"})
    say(submission, "a", outcome, attempts=3)
    (found,) = cell_states(submission, [queued])
    assert (found.state, found.detail, found.attempts) == (state, detail, 3)
    assert found.log == tmp_path / "jobs" / "7_0_0_log.out"


def test_without_slurm_nothing_is_known_of_what_says_nothing(tmp_path: Path) -> None:
    submission = submission_of(tmp_path, ["a", "b"], ids={"a": "7_0", "b": "7_1"})
    say(submission, "a", "")
    assert [one.state for one in cell_states(submission, None)] == [DONE, UNKNOWN]


def test_a_submission_that_could_not_be_noted_is_known_by_its_name(tmp_path: Path) -> None:
    submission = submission_of(tmp_path / "x", ["a"])
    there = entry("9_0", "PENDING", "(Priority)", submission.job_name)
    assert cell_states(submission, [there])[0].state == PENDING
    found = cell_states(submission, [entry("9_0", "PENDING")])[0]
    assert (found.state, found.detail, found.log) == (FAILED, "was not submitted", None)


def test_accounting_says_why_if_there_is_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "sacct"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "7_0|NODE_FAIL"\necho "7_1|CANCELLED by 0"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    submission = submission_of(tmp_path, ["a", "b"], ids={"a": "7_0", "b": "7_1"})
    details = [one.detail for one in cell_states(submission, [])]
    assert details == ["node_fail", "cancelled by 0"]
    program.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    assert cell_states(submission, [])[0].detail == "ended without a word"


def test_the_queue_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_queue() is None
    program = tmp_path / "squeue"
    program.write_text("#!/bin/sh\necho '7_0|name|PENDING|(Nodes | down)'\necho odd\n")
    program.chmod(0o755)
    assert read_queue() == [QueueEntry("7_0", "name", "PENDING", "(Nodes | down)")]
    program.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"^squeue: Unable to contact .*; is SLURM up\? `sinfo`$"):
        read_queue()


def test_a_task_between_two_attempts_is_looked_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submissions, "_SETTLING_SECONDS", 0)
    readings = [[entry("7_1", "RUNNING")], [entry("7_0", "PENDING"), entry("7_1", "RUNNING")]]
    monkeypatch.setattr(submissions, "read_queue", lambda: readings.pop(0))
    submission = submission_of(tmp_path / "1", ["a"], ids={"a": "7_0"})
    submission.folder.mkdir()
    submission.write()
    queue = read_settled_queue(tmp_path)
    assert cell_states(submission, queue)[0].state == PENDING
    # One that has said how it ended is not.
    say(submission, "a", "no sense")
    readings = [[entry("7_1", "RUNNING")]]
    assert read_settled_queue(tmp_path) == [entry("7_1", "RUNNING")]


def test_records_are_read_back_and_damage_is_named(tmp_path: Path) -> None:
    first = submission_of(tmp_path / "1", ["a"], ids={"a": "7"}, remote="store")
    second = submission_of(tmp_path / "2", ["a", "b"])
    for one in (second, first):
        one.folder.mkdir()
        one.write()
    assert read_submissions(tmp_path) == [first, second]
    assert set(in_flight(tmp_path, [entry("7", "RUNNING")])) == {"a"}
    assert set(in_flight(tmp_path, [])) == set()
    for damage in ("{", "[]", "{}", '{"jobs": [{}]}'):
        (tmp_path / "1" / "submission.json").write_text(damage)
        with pytest.raises(UserError, match=r"1/submission\.json: damaged .* remove "):
            read_submissions(tmp_path)


def test_clones_go_when_their_cell_is_done(tmp_path: Path) -> None:
    names = ["done", "failed", "runs", "superseded"]
    ids = {name: f"7_{number}" for number, name in enumerate(names)}
    submission = submission_of(tmp_path / "1", names, ids=ids)
    for name in names:
        (submission.cell_folder(name) / "clone" / "src").mkdir(parents=True)
    (tmp_path / "1" / "snapshot.git").mkdir()
    submission.write()
    say(submission, "done", "")
    say(submission, "failed", "no sense")
    say(submission, "superseded", "no sense")

    def clones() -> set[str]:
        return {path.parent.name for path in tmp_path.glob("1/cells/*/clone")}

    running = [entry("7_2", "RUNNING")]
    tidy(tmp_path, {"done", "superseded", "runs"}, running)
    assert clones() == {"failed", "runs"}
    assert (tmp_path / "1" / "snapshot.git").is_dir()
    tidy(tmp_path, set(names), [])
    assert clones() == set()
    assert not (tmp_path / "1" / "snapshot.git").exists()
    assert (submission.cell_folder("failed") / "outcome.json").is_file()


def test_two_do_not_submit_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match="cells are being submitted already")
    with one_at_a_time(tmp_path), refused, one_at_a_time(tmp_path):
        pass
    with one_at_a_time(tmp_path):
        pass


# Several nodes


def test_every_node_runs_the_command_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    given_words = ("--standalone", "--nproc-per-node", "4", "stages/train_clip.py", "--seed", "0")
    one = Launch(given_words, "/clone", 3, "host0:29500", "key")
    first, other = one.command(is_first=True), one.command(is_first=False)
    assert first[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert first[3:] == [
        *("--nnodes", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", "host0:29500"),
        *("--rdzv-id", "key", "--rdzv-conf", "is_host=1", *given_words[1:]),
    ]
    assert [word for word in other if word != "is_host=0"] == [
        word for word in first if word != "is_host=1"
    ]


@pytest.fixture
def shell_for_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have launches run a shell command, which is told whether it is on the first node."""

    def command(self: Launch, is_first: bool) -> list[str]:
        return ["sh", "-c", self.arguments[0], "sh", str(int(is_first))]

    monkeypatch.setattr(Launch, "command", command)


def follower(folder: Path) -> threading.Thread:
    thread = threading.Thread(target=nodes.follow, args=(folder,))
    thread.start()
    return thread


@pytest.mark.usefixtures("shell_for_torchrun")
def test_nodes_follow_until_the_first_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = tmp_path / "meeting"
    follows = follower(meeting)
    nodes.write_stand_in(tmp_path, meeting, 2)
    (tmp_path / "clone").mkdir()
    monkeypatch.chdir(tmp_path / "clone")
    # Each waits for the other: none is run before or after it.
    both = "touch {0}-$1; until [ -e {0}-0 ] && [ -e {0}-1 ]; do sleep 0.05; done; exit {1}"
    assert nodes.launch(meeting, 2, [both.format("one", 0)]) == 0
    assert nodes.launch(meeting, 2, [both.format("two", 3)]) == 3
    assert follows.is_alive()
    nodes.end(meeting)
    follows.join(timeout=60)
    assert not follows.is_alive()
    assert sorted(os.listdir(tmp_path / "clone")) == ["one-0", "one-1", "two-0", "two-1"]


@pytest.mark.usefixtures("shell_for_torchrun")
def test_a_node_whose_command_does_not_end_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "GRACE_SECONDS", 0.2)
    meeting = tmp_path / "meeting"
    nodes.write_stand_in(tmp_path, meeting, 2)
    monkeypatch.chdir(tmp_path)
    follows = follower(meeting)
    stuck = "if [ $1 = 0 ]; then touch begun; sleep 60; fi; until [ -e begun ]; do :; done"
    status = nodes.launch(meeting, 2, [stuck])
    assert status == 0
    nodes.end(meeting)
    begun = time.monotonic()
    follows.join(timeout=60)
    assert not follows.is_alive()
    assert time.monotonic() - begun < 30


def test_nodes_that_have_nothing_to_do_end(tmp_path: Path) -> None:
    # The stage is up to date: nothing is launched.
    nodes.write_stand_in(tmp_path, tmp_path / "meeting", 2)
    nodes.end(tmp_path / "meeting")
    nodes.follow(tmp_path / "meeting")


# Tasks


@pytest.fixture(scope="module")
def toy_as_made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"), ("a", "b", "c"), seeds=4)


@pytest.fixture
def toy(toy_as_made: Toy, tmp_path: Path) -> Toy:
    shutil.copytree(toy_as_made.root, tmp_path / "toy", symlinks=True)
    shutil.copy(toy_as_made.log, tmp_path / "log")
    return Toy(tmp_path / "toy", tmp_path / "scratch", tmp_path / "log")


@pytest.fixture
def in_toy(monkeypatch: pytest.MonkeyPatch) -> Callable[[Toy], None]:
    def enter(toy: Toy) -> None:
        for name, value in environment(toy).items():
            monkeypatch.setenv(name, value)

    return enter


def test_two_workers_compute_twelve_cells_and_one_repro_runs_none(
    toy: Toy, in_toy: Callable[[Toy], None]
) -> None:
    in_toy(toy)
    cells = toy.jobs("a", "b", "c", seeds=range(4))
    # A task of several cells, as nothing forbids: two clones, as on two machines.
    halves = [
        CellJob(
            name,
            tuple(stage for cell in part for stage in cell.stages),
            tuple(dict.fromkeys(one for cell in part for one in cell.inputs)),
        )
        for name, part in (("even", cells[::2]), ("odd", cells[1::2]))
    ]
    submission = prepare(toy.root, toy.submissions, halves)
    executor = submitit.LocalExecutor(submission.folder / "jobs")
    executor.update_parameters(timeout_min=5)
    jobs = submit(submission, toy.scratch, executor)
    # What is edited while they wait or run is not theirs.
    edit(toy, steps=1)
    (toy.root / "stages" / "toy.py").write_text("raise SystemExit('not this one')")
    for job in jobs:
        job.wait()
    (submission,) = read_submissions(toy.submissions)
    states = cell_states(submission, [])
    assert [one.state for one in states] == [DONE, DONE], [
        path.read_text() for path in submission.folder.glob("jobs/*log*")
    ]
    assert len(toy.noted("train")) == 12 * 6
    assert len(toy.noted("evaluate")) == 12
    before = toy.noted()
    # Of the edited parameters nothing was computed, and collecting computes nothing.
    stages = [stage for half in halves for stage in half.stages]
    restore(toy.root, stages[:2], None, toy.submissions / "collect.log")
    assert toy.noted() == before
    said = (toy.submissions / "collect.log").read_text()
    assert "not computed here: python -SE stages/toy.py" in said
    toy.run("git", "checkout", "--quiet", "params.yaml", "stages")
    toy.dvc("repro", "--quiet")
    assert toy.noted() == before
    assert len(toy.results()) == 24
    assert not list(submission.folder.glob("cells/*/clone"))


def test_what_is_not_in_the_cache_is_refused_before_submission(
    toy: Toy, in_toy: Callable[[Toy], None]
) -> None:
    in_toy(toy)
    shutil.rmtree(toy.root / ".dvc" / "cache" / "files")
    with pytest.raises(UserError, match="dvc checkout: "):
        prepare(toy.root, toy.submissions, toy.jobs("a"))
    assert read_submissions(toy.submissions) == []
    assert not list(toy.submissions.glob("*/*"))


@pytest.fixture
def bare_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CellTask:
    """Make a task whose DVC does what the file `deed` says, and whose clone is empty."""
    submission = submission_of(tmp_path / "s", ["a"])
    from clip_mixtures.scheduling import cluster

    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "dvc.py").write_text(f"exec(open({str(tmp_path / 'deed')!r}).read())\n")
    task = CellTask(submission.jobs[0], submission, tmp_path / "scratch")
    monkeypatch.setattr(cluster, "clone_snapshot", lambda *_: None)
    monkeypatch.setattr(cluster, "fill", lambda *_, **__: None)
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 0.05)
    environment_of = CellTask._environment
    monkeypatch.setattr(
        CellTask,
        "_environment",
        lambda self: environment_of(self) | {"PYTHONPATH": str(tmp_path / "fake")},
    )
    return task


KILLED = """
import os, signal
path = {path!r}
number = len(os.listdir(path))
open(os.path.join(path, str(number)), "w").close()
if number < {times}:
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(
    ("times", "failure"), [(0, ""), (1, ""), (9, "killed 2 times (signal 15)")]
)
def test_a_command_that_is_killed_is_tried_once_more(
    bare_task: CellTask, tmp_path: Path, times: int, failure: str
) -> None:
    (tmp_path / "tries").mkdir()
    deed = KILLED.format(path=str(tmp_path / "tries"), times=times)
    (tmp_path / "deed").write_text(deed)
    assert bare_task.compute() == failure
    assert len(os.listdir(tmp_path / "tries")) == min(times + 1, 2)
    (found,) = cell_states(bare_task.submission, [])
    assert (found.state, found.attempts) == (FAILED if failure else DONE, 1)


def test_a_task_says_how_it_ended(
    bare_task: CellTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deed").write_text("import sys; sys.exit(7)")
    assert bare_task.compute() == "dvc repro failed (exit 7)"
    # Another attempt forgets the last one's end before it begins.
    monkeypatch.setattr(
        "clip_mixtures.scheduling.cluster.fill",
        lambda *_, **__: (_ for _ in ()).throw(UserError("no cache")),
    )
    assert bare_task.compute() == "no cache"
    (found,) = cell_states(bare_task.submission, [])
    assert (found.state, found.detail, found.attempts) == (FAILED, "no cache", 2)


def test_commands_find_the_snapshots_code_and_this_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = submission_of(tmp_path / "s", ["a"])
    task = CellTask(submission.jobs[0], submission, tmp_path / "scratch")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    monkeypatch.delenv("NPROC", raising=False)
    found = task._environment()
    clone = submission.cell_folder("a") / "clone"
    assert found["PYTHONPATH"] == f"{clone}/src:{clone}/stages"
    assert found["PATH"] == f"{Path(sys.prefix) / 'bin'}:/nowhere"
    assert found["SCRATCH"] == str(tmp_path / "scratch")
    # A process for each GPU that SLURM gives, unless the user said otherwise.
    assert (found["NPROC"], found["CUDA_VISIBLE_DEVICES"]) == ("2", "0,3")
    monkeypatch.setenv("NPROC", "1")
    assert task._environment()["NPROC"] == "1"


# The program


@dataclasses.dataclass(frozen=True)
class Said:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cluster(
    project: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """Run the program in this process: importing all that it needs takes seconds."""
    for name, value in environment(project).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", without_slurm(project))
    monkeypatch.chdir(project.root)
    # Its handler of SIGTERM is for a program.
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*arguments: str) -> Said:
        monkeypatch.setattr("sys.argv", ["cluster.py", *arguments])
        status: object = 0
        try:
            program.main()
        except SystemExit as end:
            status = end.code
        return Said(int(str(status or 0)), *capsys.readouterr())

    return run


def without_slurm(project: Toy) -> str:
    """Return a PATH with git and this environment's programs, but no SLURM."""
    programs = project.root.parent / "programs"
    if not programs.is_dir():
        programs.mkdir()
        for name in ("git", "sh", "mkdir", "cp", "cat"):
            (programs / name).symlink_to(str(shutil.which(name)))
    return f"{Path(sys.executable).parent}:{programs}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_project(tmp_path_factory.mktemp("project"))


def test_a_dry_run_shows_cells_and_job_script_without_slurm(
    project: Toy, cluster: Callable[..., Said]
) -> None:
    before = project.run("git", "status", "--porcelain")
    found = cluster(
         "submit", "--dry-run", "--time", "2:00:00", "--nodes", "2", "--mem=64G",
        "--setup", "module load cuda",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0] == "2 of 2 cells to submit"
    assert lines[1] == ("cg-low-sample-rn-s0: train@cg-low-sample-rn-0 evaluate@cg-low-sample-rn-0")
    assert {"#SBATCH --time=120", "#SBATCH --array=0-1%2", "#SBATCH --mem=64G"} <= set(lines)
    assert "module load cuda" in lines
    assert lines[-1] == "dry run: nothing was brought up to date or submitted"
    # Nothing was done.
    assert project.noted() == []
    assert project.run("git", "status", "--porcelain") == before
    assert not project.submissions.exists()


def test_a_dry_run_does_without_a_cluster_that_does_not_answer(
    project: Toy, cluster: Callable[..., Said]
) -> None:
    squeue = project.root.parent / "programs" / "squeue"
    squeue.write_text("#!/bin/sh\necho 'squeue: fatal: no controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    found = cluster("submit", "--dry-run")
    squeue.unlink()
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("without SLURM (squeue: fatal: no controller")
    assert "#SBATCH --array=0-1%2" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit"], "sbatch: no such program on PATH; run this on a login node"),
        (["submit", "--time", "soon"], "--time soon: allowed: HH:MM:SS"),
        (["submit", "--nodes", "0"], "--nodes 0: allowed: 1 or more"),
        (["submit", "--gpus-per-node=-1"], "--gpus-per-node -1: allowed: 1 or more"),
        (["submit", "--output=x"], "--output: is set by this program"),
        (["status", "--mem=1G"], "--mem=1G: unknown option; only `submit` takes options of sbatch"),
        (["submit", "--dry-run", "--remote", "stor"], "--remote: unknown remote 'stor'"),
    ],
)
def test_mistakes_are_one_line(
    cluster: Callable[..., Said], arguments: list[str], message: str
) -> None:
    found = cluster(*arguments)
    assert found.returncode == 2
    assert found.stderr.startswith(f"error: {message}")
    assert len(found.stderr.splitlines()) == 1


def test_what_is_not_tracked_is_refused_by_the_program(
    project: Toy, cluster: Callable[..., Said]
) -> None:
    (project.root / "stages").mkdir()
    (project.root / "stages" / "new.py").write_text("")
    found = cluster("submit", "--dry-run")
    shutil.rmtree(project.root / "stages")
    assert found.returncode == 2
    assert "stages/new.py: not tracked by git" in found.stderr


def test_there_is_nothing_to_tell_before_the_first_submission(
    project: Toy, cluster: Callable[..., Said]
) -> None:
    found = cluster("status")
    assert found.returncode == 0
    assert found.stdout == f"nothing is submitted (in {project.submissions})\n"
    assert submissions.read_submissions(project.submissions) == []
