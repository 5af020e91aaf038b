"""Run the cells that are not done on a SLURM cluster, each as one task of an array job.

python stages/cluster.py submit --dry-run                  # the job script and the cells; no SLURM
python stages/cluster.py submit --partition gpu --gpus-per-node 4 --cpus-per-task 32 --time 12:00:00
python stages/cluster.py submit --nodes 2 --gpus-per-node 4 --account my-project    # a cell on two
python stages/cluster.py status
python stages/cluster.py collect

Every task works in a clone of what is here now, so that later edits change nothing that waits or
runs. A task that reaches its time limit, or is preempted, goes on. `collect` takes over what is
done and computes no cell; plain `dvc repro` finds the same, and would train here what is not done.
Options that are not listed go to sbatch. docs/cluster.md tells more.
"""

from __future__ import annotations

import argparse
import collections
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from clip_mixtures.errors import UserError, reports_user_errors, unknown
from clip_mixtures.files import read_yaml
from clip_mixtures.scheduling.cluster import prepare, submit
from clip_mixtures.scheduling.logs import last_lines
from clip_mixtures.scheduling.sbatch import (
    Resources,
    job_script,
    minutes_of,
    sbatch_options,
    slurm_executor,
)
from clip_mixtures.scheduling.snapshots import check_tracked, run_dvc
from clip_mixtures.scheduling.submissions import (
    DONE,
    FAILED,
    IN_FLIGHT,
    CellJob,
    CellState,
    QueueEntry,
    Submission,
    cell_states,
    in_flight,
    one_at_a_time,
    read_settled_queue,
    read_submissions,
    restore,
    tidy,
)
from experiment import Cell, Experiment, load_experiment, scratch_root
from mechanism_params import Mechanisms, load_mechanisms
from work import FIRST_STAGES, INTERRUPTED, SHARED_STAGE, cells_to_do, repro, stages_of

HERE = Path()
PINNED_DATA = Path("data.dvc")
PIPELINE = Path("dvc.yaml")
_POLL_SECONDS = 5.0
_SHOWN_LINES = 8


@reports_user_errors
def main() -> None:
    """Submit cells, say what became of them, or take over what is done."""
    args, further = _arguments()
    if args.command == "submit":
        resources = _resources(args, further)
    elif further:
        raise UserError(f"{further[0]}: unknown option; only `submit` takes options of sbatch")
    if shutil.which("dvc") is None:
        raise UserError("dvc: no such program on PATH; `. .venv/bin/activate` first")
    experiment = load_experiment()
    mechanisms = load_mechanisms(experiment)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.command == "status":
            _status()
        elif args.command == "collect":
            _collect(experiment, mechanisms, args.remote)
        elif args.dry_run:
            _dry_run(experiment, mechanisms, args.remote, resources)
        else:
            submission = _submit(experiment, mechanisms, args.remote, resources)
            if args.wait:
                _wait(submission)
                _collect(experiment, mechanisms, args.remote)
    except KeyboardInterrupt:
        print(
            "stopped; what is submitted goes on: python stages/cluster.py status", file=sys.stderr
        )
        sys.exit(INTERRUPTED)


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    send = commands.add_parser(
        "submit",
        help="submit the cells that are not done",
        epilog="Further options, such as --account NAME or --mem=64G, go to sbatch as they are.",
        allow_abbrev=False,
    )
    send.add_argument("--partition", help="by default SLURM's own default")
    send.add_argument("--gpus-per-node", type=int, metavar="N", help="one process for each")
    send.add_argument("--nodes", type=int, default=1, metavar="N", help="of each cell (default: 1)")
    send.add_argument("--cpus-per-task", type=int, metavar="C", help="cores of each node")
    send.add_argument(
        "--time",
        default="24:00:00",
        help="limit of a task, which goes on when it is reached (default: %(default)s)",
    )
    send.add_argument("--array-parallelism", type=int, metavar="K", help="cells at a time")
    send.add_argument(
        "--timeouts",
        type=int,
        default=20,
        metavar="N",
        help="how often a task may reach its limit and go on (default: %(default)s)",
    )
    send.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="COMMAND",
        help="shell command before anything else, such as 'module load cuda'; may be repeated",
    )
    send.add_argument("--dry-run", action="store_true", help="show all, submit nothing")
    send.add_argument("--wait", action="store_true", help="wait for the cells and collect them")
    commands.add_parser("status", help="say what became of the cells")
    take = commands.add_parser("collect", help="take over what is done, and compare")
    for one in (send, take):
        one.add_argument(
            "--remote", metavar="NAME", help="DVC remote for results, where no cache is shared"
        )
    return parser.parse_known_args()


def _resources(args: argparse.Namespace, further: Sequence[str]) -> Resources:
    for name, least in (
        ("gpus_per_node", 1),
        ("nodes", 1),
        ("cpus_per_task", 1),
        ("array_parallelism", 1),
        ("timeouts", 0),
    ):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: allowed: {least} or more")
    return Resources(
        minutes=minutes_of(args.time),
        nodes=args.nodes,
        partition=args.partition,
        gpus_per_node=args.gpus_per_node,
        cpus_per_task=args.cpus_per_task,
        parallelism=args.array_parallelism,
        timeouts=args.timeouts,
        setup=tuple(args.setup),
        further=sbatch_options(further),
    )


def _root() -> Path:
    return _scratch() / "cluster"


def _scratch() -> Path:
    return scratch_root().resolve()


def _jobs(cells: Sequence[Cell], mechanisms: Mechanisms) -> list[CellJob]:
    known = read_yaml(PIPELINE)["stages"]
    shared = [name for name in FIRST_STAGES if name in known]
    if PINNED_DATA.is_file():
        shared.append(str(PINNED_DATA))
    return [
        CellJob(
            cell.run,
            tuple(stages_of(cell, mechanisms)),
            (*shared, f"{SHARED_STAGE}@{cell.mixture}"),
        )
        for cell in cells
    ]


def _check_remote(remote: str | None) -> None:
    if remote is not None:
        known = [line.split()[0] for line in run_dvc(HERE, "remote", "list").splitlines() if line]
        if remote not in known:
            raise unknown("remote", remote, known, "--remote")


def _waiting(
    experiment: Experiment, mechanisms: Mechanisms, queue: Sequence[QueueEntry] | None
) -> list[CellJob]:
    """Return the cells that are neither done nor submitted, and say what the others are."""
    todo = cells_to_do(experiment, mechanisms)
    flying = in_flight(_root(), queue)
    there = [cell.run for cell in todo if cell.run in flying]
    if there:
        shown = ", ".join(f"{name} ({flying[name].job or 'just submitted'})" for name in there)
        print(f"submitted before, and pending or running: {shown}")
    cells = [cell for cell in todo if cell.run not in flying]
    if there and not cells:
        raise UserError(
            f"all {len(there)} cells that are not done are submitted: python stages/cluster.py "
            "status; `scancel JOB` withdraws one"
        )
    print(f"{len(cells)} of {len(experiment.cells)} cells to submit", flush=True)
    return _jobs(cells, mechanisms)


def _dry_run(
    experiment: Experiment, mechanisms: Mechanisms, remote: str | None, resources: Resources
) -> None:
    _check_remote(remote)
    check_tracked(HERE.resolve())
    try:
        queue = read_settled_queue(_root())
    except UserError as error:
        # The packages may be here, and the cluster elsewhere.
        print(f"without SLURM ({error}): what is submitted already is not known")
        queue = None
    jobs = _waiting(experiment, mechanisms, queue)
    for job in jobs:
        print(f"{job.name}: {' '.join(job.stages)}")
    if jobs:
        submission = Submission(_root() / "SUBMISSION", "", remote, tuple(jobs))
        print(f"\n{job_script(slurm_executor(submission, resources), len(jobs))}")
    print("dry run: nothing was brought up to date or submitted")


def _submit(
    experiment: Experiment, mechanisms: Mechanisms, remote: str | None, resources: Resources
) -> Submission | None:
    """Submit what is not done; None if that is nothing."""
    for program in ("sbatch", "srun", "squeue"):
        if shutil.which(program) is None:
            raise UserError(
                f"{program}: no such program on PATH; run this on a login node of the cluster, "
                "with --dry-run to see what it would do, or stages/work.py on this machine alone"
            )
    _check_remote(remote)
    check_tracked(HERE.resolve())
    with one_at_a_time(_root()):
        # Before hours of work: whether SLURM answers.
        read_settled_queue(_root())
        repro(SHARED_STAGE)
        jobs = _waiting(experiment, mechanisms, read_settled_queue(_root()))
        if not jobs:
            return None
        submission = prepare(HERE.resolve(), _root(), jobs, remote)
        submitted = submit(submission, _scratch(), slurm_executor(submission, resources))
    job = submitted[0].job_id.partition("_")[0]
    print(f"job {job}: {len(jobs)} cells in {submission.folder}")
    print("python stages/cluster.py status    # and, when they are done, collect")
    return submission


def _wait(submission: Submission | None) -> None:
    """Wait until no cell of a submission waits or runs; say it when one ends.

    Raises:
        UserError: when one failed.
    """
    if submission is None:
        return
    submission = next(one for one in read_submissions(_root()) if one.folder == submission.folder)
    over: dict[str, str] = {}
    said: set[str] = set()
    while len(said) < len(submission.jobs):
        states = cell_states(submission, read_settled_queue(_root()))
        for one in states:
            # Seen twice: a task that is lost with its machine may come back.
            if one.state not in IN_FLIGHT and over.get(one.name) == one.state:
                if one.name not in said:
                    print(f"{one.name}: {one.state}, {one.detail}", flush=True)
                said.add(one.name)
        over = {one.name: one.state for one in states}
        time.sleep(_POLL_SECONDS)
    failed = [one for one in states if one.state == FAILED]
    for one in failed:
        _show_log(one)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(states)} cells are not done: "
            f"{', '.join(one.name for one in failed)}; their logs say why; `python "
            "stages/cluster.py collect` takes over the others, `submit` goes on with these"
        )


def _latest(queue: Sequence[QueueEntry] | None, with_reasons: bool) -> dict[str, CellState]:
    """Return what became of each cell when it was last submitted."""
    return {
        one.name: one
        for submission in read_submissions(_root())
        for one in cell_states(submission, queue, with_reasons)
    }


def _status() -> None:
    latest = _latest(read_settled_queue(_root()), with_reasons=True)
    if not latest:
        print(f"nothing is submitted (in {_root()})")
        return
    width = max(map(len, latest))
    for one in latest.values():
        more = f", attempt {one.attempts}" if one.attempts > 1 else ""
        print(f"{one.name:{width}}  {one.job or '-':>10}  {one.state:8} {one.detail}{more}")
    for one in latest.values():
        if one.state == FAILED:
            _show_log(one)
    counts = collections.Counter(one.state for one in latest.values())
    print(", ".join(f"{count} {state}" for state, count in counts.items()))


def _show_log(state: CellState) -> None:
    if state.log:
        print(f"--- {state.name}: {state.log}", *last_lines(state.log)[-_SHOWN_LINES:], sep="\n")


def _collect(experiment: Experiment, mechanisms: Mechanisms, remote: str | None) -> None:
    """Take over what is done, remove what that leaves behind, and compare if nothing is missing.

    Raises:
        UserError: when cells are not done.
    """
    _check_remote(remote)
    repro(SHARED_STAGE)
    queue = read_settled_queue(_root())
    latest = _latest(queue, with_reasons=False)
    there = {name for name, one in latest.items() if one.state == DONE}
    todo = cells_to_do(experiment, mechanisms)
    # A remote may have what was computed on a cluster that this machine does not see.
    wanted = [cell for cell in todo if remote or cell.run in there]
    left = {cell.run for cell in todo}
    if wanted:
        stages = [stage for cell in wanted for stage in stages_of(cell, mechanisms)]
        restore(HERE, stages, remote, _root() / "collect.log")
        left = {cell.run for cell in cells_to_do(experiment, mechanisms)}
    tidy(_root(), {cell.run for cell in experiment.cells} - left, queue)
    print(f"{len(todo) - len(left)} cells taken over, {len(left)} not done", flush=True)
    if left:
        raise UserError(_what_is_left(left, there))
    repro()


def _what_is_left(left: Iterable[str], there: Iterable[str]) -> str:
    """Say which cells are not done, and of which there is a result that is not theirs."""
    changed = sorted(set(left) & set(there))
    parts = [f"not done: {', '.join(sorted(left))}"]
    if changed:
        parts.append(
            f"what was computed of {', '.join(changed)} is of other parameters, code or data than "
            "are here now"
        )
    parts.append(
        "`python stages/cluster.py status` says what runs, `submit` goes on with what does not"
    )
    return "; ".join(parts)


if __name__ == "__main__":
    main()
