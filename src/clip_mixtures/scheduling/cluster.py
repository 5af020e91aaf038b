"""Cells of a pipeline as tasks of a SLURM array job, each in a clone of its own.

A submission is a folder that all machines see: the snapshot that its tasks work from, a record of
which cell is which task, and for each cell its clone, what it said and how it ended. Every attempt
at a cell begins with a new clone. What lasts is elsewhere: finished stages in DVC's cache, which
all clones share, and unfinished ones in SCRATCH. So a task can end at any point, on any machine,
and its next attempt goes on.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import submitit

from clip_mixtures.errors import UserError
from clip_mixtures.files import atomic_write_json
from clip_mixtures.scheduling import nodes as several_nodes
from clip_mixtures.scheduling.leash import Leash
from clip_mixtures.scheduling.snapshots import (
    clone_snapshot,
    fill,
    run_dvc,
    take_snapshot,
    write_config,
)
from clip_mixtures.scheduling.submissions import (
    ATTEMPT,
    CLONE,
    CODE,
    CONFIG,
    OUTCOME,
    STORE,
    CellJob,
    Submission,
    read_json,
)
from clip_mixtures.scheduling.workers import ATTEMPTS, Place

# What asks a whole task to end (a time-out, an administrator) reaches the command and the task
# itself in any order. Only a command that is ended while its task lives on is tried once more.
PATIENCE_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class CellTask:
    """One cell, as it is run on a cluster; submitit calls it on every node of the task.

    Attributes:
        job: what to compute.
        submission: that it is part of.
        scratch: folder for unfinished runs, absolute.
    """

    job: CellJob
    submission: Submission
    scratch: Path

    @property
    def folder(self) -> Path:
        """Folder of the cell."""
        return self.submission.cell_folder(self.job.name)

    def __call__(self) -> None:
        """Compute the cell on the first node, and help with it on the others.

        Raises:
            SystemExit: when it is not done, so that SLURM sees a failure. Submitit lets it pass;
                an exception would end the log with a traceback in place of what DVC said.
        """
        here = submitit.JobEnvironment()
        # The nodes of one attempt, and no earlier one, meet here.
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        meeting = self.folder / "nodes" / f"{here.raw_job_id}-{restarts}"
        if here.global_rank:
            several_nodes.follow(meeting, self._environment())
            return
        if failure := self.compute(here.num_tasks, meeting):
            sys.exit(f"error: {self.job.name}: {failure}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what goes on in this task's place: itself, as all that lasts is on disk."""
        return submitit.helpers.DelayedSubmission(self)

    def compute(self, nodes: int = 1, meeting: Path | None = None) -> str:
        """Bring the cell's stages up to date in a new clone, and note how that ended.

        Args:
            nodes: how many share the cell.
            meeting: folder where they meet; needed if there are several.

        Returns:
            Nothing, or why the cell is not done.
        """
        self._begin()
        started = time.monotonic()
        try:
            failure = self._compute(nodes, meeting)
        except Exception as error:
            failure = str(error) or type(error).__name__
        finally:
            if meeting and nodes > 1:
                several_nodes.end(meeting)
        seconds = round(time.monotonic() - started, 1)
        atomic_write_json(self.folder / OUTCOME, {"failure": failure, "seconds": seconds})
        if not failure:
            shutil.rmtree(self._clone, ignore_errors=True)
        return failure

    @property
    def _clone(self) -> Path:
        return self.folder / CLONE

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / OUTCOME).unlink(missing_ok=True)
        before = read_json(self.folder / ATTEMPT) or {"number": 0}
        now = {"number": before["number"] + 1, "host": socket.gethostname()}
        atomic_write_json(self.folder / ATTEMPT, now)
        print(f"{self.job.name}: attempt {now['number']} on {now['host']}", flush=True)

    def _compute(self, nodes: int, meeting: Path | None) -> str:
        store, config = (self.submission.folder / name for name in (STORE, CONFIG))
        clone_snapshot(store, config, self._clone)
        fill(self._clone, self.job.inputs, self.job.stages, remote=None)
        environment = self._environment()
        if meeting and nodes > 1:
            programs = self.folder / "bin"
            several_nodes.write_stand_in(programs, meeting, nodes)
            environment["PATH"] = os.pathsep.join([str(programs), environment["PATH"]])
            # The machines agree on their own.
            environment.pop("RENDEZVOUS", None)
        command = [sys.executable, "-m", "dvc", "--cd", str(self._clone), "--wait-for-lock"]
        command += ["repro", "--single-item", *self.job.stages]
        number = 0
        for _ in range(ATTEMPTS):
            with Leash(command, environment) as leash:
                code = leash.wait()
            if code >= 0:
                break
            number = -code
            print(f"{self.job.name}: killed (signal {number})", flush=True)
            time.sleep(PATIENCE_SECONDS)
        else:
            return f"killed {ATTEMPTS} times (signal {number})"
        if code:
            return f"dvc repro failed (exit {code})"
        if remote := self.submission.remote:
            # Without the run-cache nobody would know what the objects are the result of.
            run_dvc(self._clone, "push", "--run-cache", "--remote", remote, *self.job.stages)
        return ""

    def _environment(self) -> dict[str, str]:
        """Return the environment of the cell's commands: the snapshot's code and this Python."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = tuple(name for name in visible.split(",") if name and name != "-1")
        place = Place(cores=tuple(sorted(os.sched_getaffinity(0))), gpus=gpus)
        code = [str(self._clone / folder) for folder in ("src", "stages")]
        programs = str(Path(sys.prefix) / "bin")
        return place.environment() | {
            "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(code),
            "SCRATCH": str(self.scratch),
            "DVC_NO_ANALYTICS": "1",
        }


def prepare(
    repository: Path, root: Path, jobs: Sequence[CellJob], remote: str | None = None
) -> Submission:
    """Make the folder of a submission, and try out what every task begins with.

    Args:
        repository: top folder of a git and DVC repository.
        root: folder of all submissions, which all machines see; absolute.
        jobs: the cells.
        remote: DVC's name of a remote for results. The cells' inputs are pushed to it, and fetched
            from it into a cache in `root`. None where all machines see the repository's cache.

    Returns:
        The submission, which is not yet submitted.

    Raises:
        UserError: when something that the tasks need is not in git, in the cache, or on the remote.
    """
    root.mkdir(parents=True, exist_ok=True)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-")
    folder = Path(tempfile.mkdtemp(dir=root, prefix=stamp))
    folder.chmod(0o755)
    try:
        commit = take_snapshot(repository, folder / STORE)
        write_config(repository, folder / CONFIG, root / "cache" if remote else None)
        code = folder / CODE
        clone_snapshot(folder / STORE, folder / CONFIG, code)
        inputs = list(dict.fromkeys(name for job in jobs for name in job.inputs))
        stages = [name for job in jobs for name in job.stages]
        if remote:
            run_dvc(repository, "push", "--remote", remote, *inputs, *stages)
        fill(code, inputs, stages if remote else (), remote)
        submission = Submission(folder, commit, remote, tuple(jobs))
        submission.write()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return submission


def submit(
    submission: Submission, scratch: Path, executor: submitit.core.core.PicklingExecutor
) -> list[submitit.Job[None]]:
    """Submit the cells of a submission, and note which task each of them is.

    Args:
        submission: as `prepare` made it.
        scratch: folder for unfinished runs, which all machines see; absolute.
        executor: one of submitit's.

    Returns:
        A job a cell, in their order.

    Raises:
        UserError: when SLURM refuses; then the submission's folder is removed.
    """
    tasks = [CellTask(job, submission, scratch) for job in submission.jobs]
    try:
        submitted = executor.submit_array(tasks)
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        shutil.rmtree(submission.folder, ignore_errors=True)
        said = [line.partition("error: ")[2] for line in str(error).splitlines()]
        why = next(filter(None, said), str(error).strip())
        raise UserError(
            f"sbatch: {why}; `sinfo` and `scontrol show partition` say what is"
        ) from error
    ids = {task.job.name: str(job.job_id) for task, job in zip(tasks, submitted, strict=True)}
    dataclasses.replace(submission, ids=ids).write()
    return submitted
