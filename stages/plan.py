"""Say what will run before it does: cells, stages, what is there already, hours and disk.

python stages/plan.py                                   # of params.yaml
python stages/plan.py --measure                         # with hours: times two steps of each model
python stages/plan.py --preset cc12m --measure --train-images 9000000 --test-images 176000
python stages/plan.py --measure --budget-hours 100      # asks, or ends with status 3, above that

Hours are those of one device: a run on four GPUs takes a quarter of them. They are of training and
of the evaluation of every checkpoint; analyses come on top. A measured speed is kept in
scratch/speeds.json, and --measure times a model again.
"""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx
import torch
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError

from clip_mixtures.errors import UserError, reports_user_errors
from clip_mixtures.index import read_index
from clip_mixtures.mixtures.store import count_rows
from clip_mixtures.presets import laid_over
from clip_mixtures.training.cost import (
    Cost,
    evaluation_cost,
    read_speeds,
    speed_key,
    training_cost,
)
from experiment import (
    BUILD,
    INDEX,
    PARAMS,
    PRESETS,
    Cell,
    Experiment,
    load_experiment,
    scratch_root,
)
from mechanism_params import Mechanisms, load_mechanisms
from work import FIRST_STAGES, LAST_STAGES, stages_of

_OVER_BUDGET = 3
_CPU_BATCH = 64
UP_TO_DATE, CACHED, RUNNING, TO_RUN = "up to date", "cached", "running", "to run"
_STATES = (UP_TO_DATE, CACHED, RUNNING, TO_RUN)


@reports_user_errors
def main() -> None:
    """Print the plan; ask, or end with status 3, when it costs more than the budget."""
    args = _arguments()
    scratch = scratch_root()
    preset = PRESETS / f"{args.preset}.yaml" if args.preset else None
    with laid_over(preset, PARAMS) as params:
        experiment = load_experiment(params)
        mechanisms = load_mechanisms(experiment, params)
    # What is here was not made by a preset that is not written yet.
    states = {} if args.preset else stage_states()
    cells = {cell: stages_of(cell, mechanisms) for cell in experiment.cells}
    print(stages_table(states, cells, experiment, mechanisms))
    costs = _costs(experiment, cells, states, args, scratch / "speeds.json")
    if costs is None:
        print("\nHours and disk: --measure times two steps of each model")
        if args.budget_hours is not None:
            raise UserError("--budget-hours: needs measured speeds; add --measure")
        return
    where = "a GPU" if torch.cuda.is_available() else "this machine's CPU"
    print(f"\nHours of {where}.\n\n{costs_table(costs)}")
    total = sum(costs.values(), Cost())
    if args.budget_hours is not None and total.hours > args.budget_hours:
        _ask(total.hours, args.budget_hours)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", help="of the folder presets, laid over params.yaml")
    parser.add_argument("--measure", action="store_true", help="time two steps of each model")
    parser.add_argument("--budget-hours", type=float, metavar="H", help="device hours to ask above")
    for name, what in (("train", "of a mixture"), ("test", "of all test sets")):
        parser.add_argument(
            f"--{name}-images", type=int, metavar="N", help=f"images {what} that is not built yet"
        )
    args = parser.parse_args()
    for name in ("train_images", "test_images", "budget_hours"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: allowed: above 0")
    return args


def stage_states() -> dict[str, str]:
    """Return what `dvc repro` would do with every stage, or is doing in this folder.

    A stage behind one that is not up to date counts as to be run, though its results may turn out
    to be in the cache.

    Raises:
        UserError: when DVC cannot say.
    """
    found: dict[str, str] = {}
    try:
        with Repo(_wait_for_lock=True) as repo, repo.lock:
            # Its edges lead from a stage to what it depends on.
            for stage in reversed(list(networkx.topological_sort(repo.index.graph))):
                before = {found[one.addressing] for one in repo.index.graph.successors(stage)}
                is_ready = before <= {UP_TO_DATE}
                found[stage.addressing] = _state(repo, stage) if is_ready else TO_RUN
    except DvcException as error:
        raise UserError(f"dvc: {error}") from error
    return found


def _state(repo: Repo, stage: Any) -> str:
    try:
        if not stage.changed():
            return UP_TO_DATE
    except LockError:
        # Another DVC writes what this stage leaves.
        return RUNNING
    try:
        stage.save_deps()
        repo.stage_cache.restore(stage, dry=True)
    except (RunCacheNotFoundError, DvcException, FileNotFoundError):
        return TO_RUN
    return CACHED


def stages_table(
    states: Mapping[str, str],
    cells: Mapping[Cell, Sequence[str]],
    experiment: Experiment,
    mechanisms: Mechanisms,
) -> str:
    """Return a table in Markdown, a row a kind of stage; without states, of counts alone."""
    mixtures = dict.fromkeys(cell.mixture for cell in cells)
    names = [f"mixture@{key}" for key in mixtures]
    names += [stage for stages in cells.values() for stage in stages]
    names = [*FIRST_STAGES, *names, *LAST_STAGES]
    counts: dict[str, collections.Counter[str]] = {}
    for name in names:
        kind = name.rpartition(":")[2].partition("@")[0]
        counts.setdefault(kind, collections.Counter())[states.get(name, TO_RUN)] += 1
    models = ", ".join(dict.fromkeys(cell.model for cell in cells))
    lines = [
        f"{len(cells)} cells: {len(mixtures)} mixtures, models {models}, seeds "
        f"{', '.join(str(seed) for seed in dict.fromkeys(cell.seed for cell in cells))}; "
        f"{len(mechanisms.cells)} looked into, circuits of {len(mechanisms.circuit_cells)}. What "
        "comes behind a cached stage counts as to run; it may turn out to be cached, too.",
        "",
        f"| stage | all | {' | '.join(_STATES)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    total: collections.Counter[str] = collections.Counter()
    for kind, found in counts.items():
        lines.append(_counts_row(kind, found))
        total += found
    return "\n".join([*lines, _counts_row("together", total)])


def _counts_row(kind: str, found: collections.Counter[str]) -> str:
    each = " | ".join(str(found[state]) for state in _STATES)
    return f"| {kind} | {found.total()} | {each} |"


def _costs(
    experiment: Experiment,
    cells: Mapping[Cell, Sequence[str]],
    states: Mapping[str, str],
    args: argparse.Namespace,
    speeds_file: Path,
) -> dict[str, Cost] | None:
    """Return the cost of what is to run or runs, by model; None where a speed is not known."""
    waiting = {
        cell: {
            stage.partition("@")[0]
            for stage in stages
            if states.get(stage, TO_RUN) in (RUNNING, TO_RUN)
        }
        & {"train", "evaluate"}
        for cell, stages in cells.items()
    }
    waiting = {cell: kinds for cell, kinds in waiting.items() if kinds}
    models = dict.fromkeys(cell.model for cell in waiting)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keys = {model: _key(experiment, model, device) for model in models}
    if args.measure:
        _measure(experiment, models, args.preset, speeds_file, device)
    known = read_speeds(speeds_file) if speeds_file.is_file() else {}
    if not known.keys() >= set(keys.values()):
        return None
    if not waiting:
        return {}
    test_images = _test_images(args.test_images, states)
    mixtures = dict.fromkeys(cell.mixture for cell in waiting)
    sizes = {key: _train_images(key, args.train_images, states) for key in mixtures}
    costs: dict[str, Cost] = dict.fromkeys(models, Cost())
    for cell, kinds in waiting.items():
        recipe, speed = experiment.model(cell.model).recipe, known[keys[cell.model]]
        if "train" in kinds:
            costs[cell.model] += training_cost(recipe, sizes[cell.mixture], speed)
        if "evaluate" in kinds:
            costs[cell.model] += evaluation_cost(recipe, test_images, speed)
    return costs


def _key(experiment: Experiment, name: str, device: str) -> str:
    model = experiment.model(name)
    return speed_key(name, model.architecture, model.recipe, device)


def _measure(
    experiment: Experiment,
    models: Iterable[str],
    preset: str | None,
    speeds_file: Path,
    device: str,
) -> None:
    for model in models:
        command = [sys.executable, "stages/dry_run.py", "--model", model]
        command += ["--save", str(speeds_file)]
        command += ["--preset", preset] if preset else []
        if device == "cpu":
            # With a few images a step costs the same as with many.
            batch = min(experiment.model(model).recipe.global_batch_size, _CPU_BATCH)
            command += ["--global-batch", str(batch)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise UserError(f"stages/dry_run.py --model {model}: exit {done.returncode}, see above")


def _train_images(mixture: str, given: int | None, states: Mapping[str, str]) -> int:
    """Return the training images of a mixture: those given, or of one that is built."""
    if given is not None:
        return given
    path = BUILD / "mixtures" / mixture / "train.parquet"
    if states.get(f"mixture@{mixture}") != UP_TO_DATE or not path.is_file():
        raise UserError(
            f"{path}: not there or not up to date, so the images of {mixture} are not known; "
            "`dvc repro mixture` builds it, or give --train-images"
        )
    return count_rows(path)


def _test_images(given: int | None, states: Mapping[str, str]) -> int:
    """Return how many images are evaluated: those given, or of the index that is there."""
    if given is not None:
        return given
    files = [INDEX / f"{name}.parquet" for name in ("domains", "imagenet_validation")]
    if states.get("corpus") != UP_TO_DATE or not files[0].is_file():
        raise UserError(
            f"{files[0]}: not there or not up to date, so the test images are not known; `dvc "
            "repro corpus` makes it, or give --test-images"
        )
    frames = [read_index(file, columns=["split"]).frame for file in files if file.is_file()]
    return sum(int((frame["split"] == "test").sum()) for frame in frames)


def costs_table(costs: Mapping[str, Cost]) -> str:
    """Return a table in Markdown, a row a model."""
    lines = ["| to train and evaluate | device hours | checkpoints |", "| --- | ---: | ---: |"]
    for name, cost in {**costs, "together": sum(costs.values(), Cost())}.items():
        lines.append(f"| {name} | {cost.hours:,.2f} | {cost.disk_bytes / 1e9:,.2f} GB |")
    return "\n".join(lines)


def _ask(hours: float, budget: float) -> None:
    """Ask whether to go on; end with status 3 if not, or if there is nobody to ask."""
    question = f"\n{hours:,.2f} device hours are more than the budget of {budget:,.2f}"
    if sys.stdin.isatty() and input(f"{question}; go on? [y/N] ").strip().lower() == "y":
        return
    print(question, file=sys.stderr)
    sys.exit(_OVER_BUDGET)


if __name__ == "__main__":
    main()
