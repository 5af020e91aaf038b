"""What was submitted to a cluster, what became of it, and how its results are taken over.

A submission is a folder that all machines see. A cell of it is *pending* or *running* if SLURM's
queue says so, *done* or *failed* if the task has said so itself, and *failed* if it is in no queue
and has said nothing: then it was cancelled, or its machine was lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import getpass
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_mixtures.errors import UserError
from clip_mixtures.files import atomic_write_json, atomic_write_text

STORE = "snapshot.git"
CODE = "code"
CONFIG = "config.local"
JOBS = "jobs"
CELLS = "cells"
OUTCOME = "outcome.json"
ATTEMPT = "attempt.json"
CLONE = "clone"
_RECORD = "submission.json"
PENDING, RUNNING, DONE, FAILED = "pending", "running", "done", "failed"
_SETTLING_SECONDS = 2.0
# Where there is no SLURM to ask.
UNKNOWN = "unknown"
IN_FLIGHT = (PENDING, RUNNING, UNKNOWN)
# States of squeue in which a task has begun, and those in which it has ended for good. In all
# others it waits, or is on the way back to that.
_BEGUN = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")
_ENDED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL"),
    *("DEADLINE", "REVOKED"),
)
# DVC with one setting changed: `dvc repro --pull` has no --remote.
_PULL = """
import sys
from dvc.exceptions import DvcException
from dvc.repo import Repo
remote, *stages = sys.argv[1:]
with Repo(".", config={"core": {"remote": remote}}) as repo:
    try:
        repo.reproduce(stages, single_item=True, pull=True, on_error="keep-going")
    except DvcException as error:
        sys.exit(f"ERROR: {error}")
"""


@dataclasses.dataclass(frozen=True)
class CellJob:
    """What one task computes.

    Attributes:
        name: of the cell; names folders.
        stages: DVC's names of its stages, in order.
        inputs: DVC's names of what these need that is there already.
    """

    name: str
    stages: tuple[str, ...]
    inputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Submission:
    """Cells that were submitted together.

    Attributes:
        folder: of all that concerns them.
        commit: the snapshot that they are computed from.
        remote: DVC's name of the remote for results; None where all machines share the cache.
        jobs: the cells.
        ids: cell to SLURM's number of its task; empty until SLURM has taken them.
    """

    folder: Path
    commit: str
    remote: str | None
    jobs: tuple[CellJob, ...]
    ids: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def job_name(self) -> str:
        """Name of the array job."""
        return f"clip-mixtures-{self.folder.name}"

    def cell_folder(self, name: str) -> Path:
        """Return the folder of a cell."""
        return self.folder / CELLS / name

    def log(self, name: str) -> Path | None:
        """Return the file with what a cell's first node says; None before it is submitted."""
        number = self.ids.get(name)
        return self.folder / JOBS / f"{number}_0_log.out" if number else None

    def write(self) -> None:
        """Write the record of it."""
        record = dataclasses.asdict(self) | {"folder": None}
        atomic_write_json(self.folder / _RECORD, record)


@dataclasses.dataclass(frozen=True)
class CellState:
    """What became of a cell.

    Attributes:
        name: of the cell.
        job: SLURM's number of its task; nothing if it is not known.
        state: one of the constants of this module.
        detail: where it runs, why it waits, what it took, or why it is not done.
        attempts: how often it was begun.
        log: file with what it said.
    """

    name: str
    job: str
    state: str
    detail: str
    attempts: int
    log: Path | None


@dataclasses.dataclass(frozen=True)
class QueueEntry:
    """A task in SLURM's queue.

    Attributes:
        job: its number, `12` or `12_3`.
        name: of its job.
        state: as squeue says, such as `PENDING`.
        why: where it runs, or why it waits.
    """

    job: str
    name: str
    state: str
    why: str


def read_submissions(root: Path) -> list[Submission]:
    """Read all submissions in a folder, oldest first.

    Raises:
        UserError: when a record is damaged.
    """
    return [_read_submission(path.parent) for path in sorted(root.glob(f"*/{_RECORD}"))]


def _read_submission(folder: Path) -> Submission:
    record = read_json(folder / _RECORD)
    try:
        if record is None:
            raise ValueError("no JSON")
        jobs = tuple(
            CellJob(job["name"], tuple(job["stages"]), tuple(job["inputs"]))
            for job in record["jobs"]
        )
        return Submission(folder, record["commit"], record["remote"], jobs, record["ids"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / _RECORD}: damaged ({error}); `squeue --me` shows what still runs; scancel "
            f"that and remove {folder}"
        ) from error


def read_queue() -> list[QueueEntry] | None:
    """Return what this user has in SLURM's queue, or had until minutes ago; None without SLURM.

    Raises:
        UserError: when SLURM does not answer.
    """
    # A task that is being requeued is in none of the states that are shown by default.
    command = ["squeue", "--array", "--states=all", "--noheader", "--user", getpass.getuser()]
    answer = _ask([*command, "--format=%i|%j|%T|%R"])
    if answer is None:
        return None
    if answer.returncode:
        said = answer.stderr.strip().splitlines() or [f"status {answer.returncode}"]
        raise UserError(f"squeue: {said[-1].removeprefix('squeue: ')}; is SLURM up? `sinfo`")
    fields = [line.split("|", 3) for line in answer.stdout.splitlines()]
    return [QueueEntry(*(field.strip() for field in one)) for one in fields if len(one) == 4]


def read_settled_queue(root: Path) -> list[QueueEntry] | None:
    """Return the queue, read twice if it lacks a task that has not said how it ended.

    Between two attempts SLURM may show a task as ended, or not at all.

    Args:
        root: folder of all submissions.

    Raises:
        UserError: when SLURM does not answer, or a record is damaged.
    """
    queue = read_queue()
    for submission in read_submissions(root):
        for job in submission.jobs:
            said = read_json(submission.cell_folder(job.name) / OUTCOME)
            state, _ = _judge(submission, submission.ids.get(job.name, ""), queue, said)
            if state == FAILED and said is None:
                time.sleep(_SETTLING_SECONDS)
                return read_queue()
    return queue


def cell_states(
    submission: Submission, queue: Sequence[QueueEntry] | None, with_reasons: bool = True
) -> list[CellState]:
    """Return what became of the cells of a submission, in their order.

    Args:
        submission: which.
        queue: as `read_queue` returned it, before this call.
        with_reasons: ask SLURM's accounting, where there is any, about those that say nothing.
    """
    found = [_cell_state(submission, job.name, queue) for job in submission.jobs]
    silent = [one.job for one in found if one.state == FAILED and not one.detail]
    reasons = _read_accounting(silent) if silent and with_reasons else {}
    return [
        dataclasses.replace(one, detail=reasons.get(one.job, "ended without a word"))
        if one.job in silent
        else one
        for one in found
    ]


def _cell_state(submission: Submission, name: str, queue: Sequence[QueueEntry] | None) -> CellState:
    number = submission.ids.get(name, "")
    attempt = read_json(submission.cell_folder(name) / ATTEMPT) or {}
    outcome = read_json(submission.cell_folder(name) / OUTCOME)
    state, detail = _judge(submission, number, queue, outcome)
    if state == RUNNING and "host" in attempt:
        detail = f"on {attempt['host']}"
    return CellState(
        name, number, state, detail, int(attempt.get("number", 0)), submission.log(name)
    )


def _judge(
    submission: Submission,
    number: str,
    queue: Sequence[QueueEntry] | None,
    outcome: Mapping[str, Any] | None,
) -> tuple[str, str]:
    # Killed between SLURM's yes and the note of it, a submission is known by its job's name.
    found = [
        one
        for one in queue or ()
        if (one.job == number if number else one.name == submission.job_name)
    ]
    queued = [one for one in found if one.state not in _ENDED]
    if queued and queued[0].state not in _BEGUN:
        # Whatever it said before: it was requeued.
        return PENDING, queued[0].why.strip("()")
    if outcome is not None:
        failure = str(outcome.get("failure", ""))
        return (FAILED, failure) if failure else (DONE, f"in {outcome.get('seconds', 0):.0f} s")
    if queued:
        return RUNNING, f"on {queued[0].why}"
    if queue is None:
        return UNKNOWN, "there is no squeue here"
    if found:
        return FAILED, found[0].state.lower()
    return FAILED, "" if number else "was not submitted"


def _read_accounting(jobs: Sequence[str]) -> dict[str, str]:
    """Return how SLURM's accounting says that tasks ended; nothing where it keeps none."""
    command = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State"]
    answer = _ask([*command, f"--jobs={','.join(jobs)}"])
    if answer is None or answer.returncode:
        return {}
    lines = [line.split("|") for line in answer.stdout.splitlines()]
    return {line[0]: line[1].lower() for line in lines if len(line) == 2}


def in_flight(root: Path, queue: Sequence[QueueEntry] | None) -> dict[str, CellState]:
    """Return the cells, of all submissions, that wait or run.

    Args:
        root: folder of all submissions.
        queue: as `read_queue` returned it.
    """
    return {
        one.name: one
        for submission in read_submissions(root)
        for one in cell_states(submission, queue, with_reasons=False)
        if one.state in IN_FLIGHT
    }


@contextlib.contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Keep others from submitting meanwhile, so that no cell is submitted twice.

    Raises:
        UserError: when somebody else is.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{root}: cells are being submitted already; wait for that") from None
        yield


def restore(repository: Path, stages: Sequence[str], remote: str | None, log: Path) -> None:
    """Take over what others computed of stages; compute nothing.

    A stage whose parameters, code or data have changed since is left as it was, apart from its
    outputs in the workspace: DVC removes those of a stage that it would run.

    Args:
        repository: workspace.
        stages: DVC's names.
        remote: name of the remote to fetch from; None where the cache is shared.
        log: file for what DVC says.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # DVC runs commands by $SHELL. This one runs none.
    shell = log.with_name("compute-nothing")
    atomic_write_text(shell, '#!/bin/sh\necho "not computed here: $2" >&2\nexit 1\n')
    shell.chmod(0o755)
    if remote:
        command = [sys.executable, "-c", _PULL, remote, *stages]
    else:
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro"]
        command += ["--single-item", "--keep-going", *stages]
    with log.open("wb") as output:
        subprocess.run(
            command,
            cwd=repository,
            env={**os.environ, "SHELL": str(shell)},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )


def tidy(root: Path, done: Collection[str], queue: Sequence[QueueEntry] | None) -> None:
    """Remove the clones of cells that are done; of others they stay, to be looked into.

    Records and logs stay, too.

    Args:
        root: folder of all submissions.
        done: the cells whose results the workspace has.
        queue: as `read_queue` returned it.
    """
    for submission in read_submissions(root):
        kept = False
        for one in cell_states(submission, queue, with_reasons=False):
            if one.state not in IN_FLIGHT and one.name in done:
                for part in (CLONE, "bin", "nodes"):
                    _remove(submission.cell_folder(one.name) / part)
            else:
                kept = True
        if not kept:
            # Clones have their objects from the store.
            _remove(submission.folder / CODE)
            _remove(submission.folder / STORE)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a small JSON file; None where there is none or it is damaged."""
    try:
        # Over a network, a file's absence may be remembered for a while; a listing asks anew.
        os.listdir(path.parent)
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _ask(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
