"""Run the cells that are not done, several at a time, and end with one `dvc repro`.

python stages/work.py                     # a worker for each GPU, or without GPUs for each core
python stages/work.py --workers 2 --gpus-per-worker 4

Every worker has cores or GPUs to itself and takes one cell after another, from training to its last
analysis. A small network trains faster in two single-threaded cells side by side than twice on two
cores. Which stage a cell runs is told here; all that it says goes to
scratch/work/<run>.log. A cell that was killed is tried once more; one that failed keeps no other
from being run. Stopped, by Ctrl-C or however else, it takes all that it started along, and the same
command goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from clip_mixtures.errors import UserError, reports_user_errors
from clip_mixtures.scheduling.leash import Leash
from clip_mixtures.scheduling.logs import AFTER_BAR, last_lines
from clip_mixtures.scheduling.workers import Outcome, Place, places, run_commands
from experiment import Cell, Experiment, load_experiment, scratch_root
from mechanism_params import Mechanisms, load_mechanisms

# Cells are chains of these; what comes before them is shared, and done first.
SHARED_STAGE = "mixture"
# Stages that are there once: before all mixtures, and behind all cells.
FIRST_STAGES, LAST_STAGES = ("code", "corpus", "verify"), ("examples", "compare")
CELL_STAGES = ("train", "evaluate")
# Of the cells that are looked into; each of these families has a pipeline file of its own, for DVC
# rewrites the whole lock file beside it after every stage.
PIPELINES = "pipeline/{family}/dvc.yaml"
LOOKED_INTO = ("activations", "representation", "sae", "sharing")
CIRCUITS = ("circuits",)
# As DVC announces the stages of a cell.
_BEGINS = re.compile(AFTER_BAR + r"Running stage '(?:[^']*:)?(\w+)@")
INTERRUPTED = 130  # as shells have it


def stages_of(cell: Cell, mechanisms: Mechanisms | None = None) -> list[str]:
    """Return DVC's names of a cell's stages, in order.

    Args:
        cell: which.
        mechanisms: which cells are looked into; none if it is None.
    """
    names = [f"{stage}@" for stage in CELL_STAGES]
    if mechanisms:
        families: tuple[str, ...] = LOOKED_INTO if cell in mechanisms.cells else ()
        families += CIRCUITS if cell in mechanisms.circuit_cells else ()
        names += [f"{PIPELINES.format(family=family)}:{family}@" for family in families]
    return [f"{name}{cell.mixture}-{cell.model}-{cell.seed}" for name in names]


def cells_to_do(experiment: Experiment, mechanisms: Mechanisms) -> list[Cell]:
    """Return the cells of which any stage is not up to date.

    Raises:
        UserError: when DVC cannot say.
    """
    stages = {cell: stages_of(cell, mechanisms) for cell in experiment.cells}
    wanted = [stage for names in stages.values() for stage in names]
    command = ["dvc", "status", "--json", *wanted]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        lines = answer.stderr.strip().splitlines()
        raise UserError(f"dvc status: {lines[-1] if lines else 'no answer'}")
    changed = {name for name, changes in json.loads(answer.stdout).items() if changes}
    return [cell for cell, names in stages.items() if changed & set(names)]


def run_cells(
    cells: Sequence[Cell],
    at: Sequence[Place],
    logs: Path,
    mechanisms: Mechanisms | None = None,
) -> list[Outcome]:
    """Run cells, one worker at each place, and return how each ended, in their order.

    Args:
        cells: what to do.
        at: the places; each takes the next cell that nobody has.
        logs: folder for what the cells say.
        mechanisms: which of the cells are looked into; none if it is None.

    Raises:
        KeyboardInterrupt: as it came, after what ran has ended.
    """
    command = ["dvc", "--wait-for-lock", "repro", "--single-item"]
    commands = {cell.run: [*command, *stages_of(cell, mechanisms)] for cell in cells}
    return run_commands(commands, at, logs, unit="cell", begins=_BEGINS)


def repro(*stages: str) -> None:
    """Bring stages, or all, up to date; end with DVC's status when it fails."""
    # Without waiting for the lock, what has just been computed may go unrecorded.
    with Leash(["dvc", "--wait-for-lock", "repro", *stages]) as leash:
        code = leash.wait()
    if code:
        sys.exit(code)


def _run_all(experiment: Experiment, workers: int | None, gpus_per_worker: int) -> None:
    repro(SHARED_STAGE)
    mechanisms = load_mechanisms(experiment)
    cells = cells_to_do(experiment, mechanisms)
    if cells:
        at = places(workers, gpus_per_worker, len(cells))
        logs = scratch_root() / "work"
        print(
            f"{len(cells)} of {len(experiment.cells)} cells to do, {len(at)} at a time; what they "
            f"say: {logs}/<run>.log",
            flush=True,
        )
        outcomes = run_cells(cells, at, logs, mechanisms)
        failed = [outcome for outcome in outcomes if outcome.failure]
        for outcome in failed:
            print(f"--- {outcome.log}", *last_lines(outcome.log), sep="\n", file=sys.stderr)
        for outcome in failed:
            print(f"{outcome.name}: {outcome.failure}", file=sys.stderr)
        if failed:
            names = ", ".join(outcome.name for outcome in failed)
            raise UserError(
                f"{len(failed)} of {len(cells)} cells are not done: {names}; mend what is said "
                "above, and the same command goes on"
            )
    repro()


@reports_user_errors
def main() -> None:
    """Run the cells and bring the whole pipeline up to date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="cells at a time (one a GPU; without GPUs one a core, at most four)",
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=int,
        default=1,
        metavar="N",
        help="GPUs of each worker (%(default)s)",
    )
    args = parser.parse_args()
    for name in ("workers", "gpus_per_worker"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: allowed: 1 or more")
    if shutil.which("dvc") is None:
        raise UserError("dvc: no such program on PATH; `. .venv/bin/activate` first")
    experiment = load_experiment()
    # Asked to terminate, as by a cluster, it puts things in order as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _run_all(experiment, args.workers, args.gpus_per_worker)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is not done", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
