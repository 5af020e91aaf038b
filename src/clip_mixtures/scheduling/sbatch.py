"""What a task gets from SLURM, and the array job that asks for it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import submitit

from clip_mixtures.errors import UserError
from clip_mixtures.scheduling.submissions import CODE, JOBS, Submission

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
# What would undo what tasks rely on, and what to say in its place.
_OURS = {
    "array": "--array-parallelism",
    "chdir": None,
    "error": None,
    "job-name": None,
    "mincpus": "--cpus-per-task",
    "no-requeue": None,
    "ntasks": None,
    "ntasks-per-node": None,
    "open-mode": None,
    "output": None,
    "requeue": None,
    "signal": None,
    "wrap": None,
}


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a task gets from SLURM.

    Attributes:
        minutes: time limit; a task that reaches it is requeued and goes on.
        nodes: machines of a cell.
        partition: None for SLURM's default.
        gpus_per_node: None to ask for none.
        cpus_per_task: of each node; None for SLURM's default.
        parallelism: cells at a time; None for all.
        timeouts: how often a task may reach its time limit and go on.
        signal_seconds: how long before the time limit it is told.
        setup: shell commands before anything else.
        further: options of sbatch, without their dashes; True for one without a value.
    """

    minutes: int
    nodes: int = 1
    partition: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    parallelism: int | None = None
    timeouts: int = 20
    signal_seconds: int = 120
    setup: tuple[str, ...] = ()
    further: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)


class _AnywhereExecutor(submitit.SlurmExecutor):
    """Writes job scripts on machines without SLURM, too."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def slurm_executor(submission: Submission, resources: Resources) -> submitit.SlurmExecutor:
    """Return what submits tasks as one array job.

    Args:
        submission: whose tasks.
        resources: of each task.
    """
    executor = _AnywhereExecutor(submission.folder / JOBS, max_num_timeout=resources.timeouts)
    code = [str(submission.folder / CODE / folder) for folder in ("src", "stages")]
    # Since SLURM 22.05, srun does not take this over from sbatch.
    cpus = [f"--cpus-per-task={resources.cpus_per_task}"] if resources.cpus_per_task else []
    wanted: dict[str, Any] = {
        "job_name": submission.job_name,
        "time": resources.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "partition": resources.partition,
        "gpus_per_node": resources.gpus_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "array_parallelism": resources.parallelism,
        "signal_delay_s": resources.signal_seconds,
        "stderr_to_stdout": True,
        # What a task itself is made of is the snapshot's, too.
        "setup": [*resources.setup, f"export PYTHONPATH={os.pathsep.join(code)}"],
        "srun_args": ["--kill-on-bad-exit=1", *cpus],
        "additional_parameters": {
            "requeue": True,
            "chdir": str(submission.folder),
            **resources.further,
        },
    }
    executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})
    return executor


def job_script(executor: submitit.SlurmExecutor, tasks: int) -> str:
    """Return the script that sbatch would get.

    Args:
        executor: as `slurm_executor` made it.
        tasks: how many cells.
    """
    parameters = dict(executor.parameters)
    if tasks > 1:
        executor.parameters["map_count"] = tasks
    try:
        return executor._make_submission_file_text(executor._submitit_command_str, "")
    finally:
        executor.parameters = parameters


def minutes_of(limit: str) -> int:
    """Return the minutes, rounded up, of a time limit in one of sbatch's forms.

    Raises:
        UserError: when it is in none, or is no time at all.
    """
    found = _TIME.fullmatch(limit)
    if found is None:
        raise UserError(
            f"--time {limit}: allowed: HH:MM:SS, D-HH:MM:SS, D-HH, MM:SS or minutes, such as "
            "12:00:00"
        )
    days, *rest = (int(part) if part else None for part in found.groups())
    parts = [part for part in rest if part is not None]
    if days is None and len(parts) < 3:
        # Without days, a lone number is minutes, and two are minutes and seconds.
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    total = math.ceil(((days or 0) * 24 + hours) * 60 + minutes + seconds / 60)
    if total < 1:
        raise UserError(f"--time {limit}: allowed: a minute or more, such as 12:00:00")
    return total


def sbatch_options(words: Sequence[str]) -> dict[str, str | bool]:
    """Return options of sbatch by name; True for one without a value.

    Raises:
        UserError: for a word that is no long option, or one that tasks rely on.
    """
    options: dict[str, str | bool] = {}
    name = ""
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            if name in _OURS:
                way_out = f"give {_OURS[name]}" if _OURS[name] else "leave it out"
                raise UserError(f"--{name}: is set by this program; {way_out}")
            options[name] = value if equals else True
        elif word.startswith("-") or options.get(name) is not True:
            raise UserError(f"{word}: not an option; options of sbatch in full, such as --mem=64G")
        else:
            options[name] = word
    return options
