"""Check params.yaml and data/ before any work starts.

python stages/check.py          parameters, and that the processes can share the batch
python stages/check.py --data   also that data/ is what data.dvc pins
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from clip_mixtures.corpora.captions import class_name_of
from clip_mixtures.corpora.indexing import domain_lists
from clip_mixtures.errors import UserError, reports_user_errors
from clip_mixtures.training.config import per_process_batch
from experiment import DATA, Experiment, load_experiment
from mechanism_params import load_mechanisms


@reports_user_errors
def main() -> None:
    """Exit with status 2 and one line when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="store_true", help="compare data/ with data.dvc as well")
    args = parser.parse_args()
    experiment = load_experiment()
    _check_processes(experiment)
    load_mechanisms(experiment)
    if args.data:
        _check_data(experiment)
        load_experiment(class_names=_class_names(experiment))
    print("params.yaml and data/ are in order" if args.data else "params.yaml is in order")


def _check_processes(experiment: Experiment) -> None:
    value = os.environ.get("NPROC") or "1"
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"NPROC: is {value!r}; allowed: a number of processes from 1")
    for cell in experiment.cells:
        recipe = experiment.model(cell.model).recipe
        per_process_batch(recipe.global_batch_size, int(value))


def _check_data(experiment: Experiment) -> None:
    root = DATA
    if not root.is_dir():
        raise UserError(
            f"{root}/: absent; build the sample with `python -m clip_mixtures sample --out {root}` "
            "(or `make demo`), or fetch your own with `dvc pull`"
        )
    command = [sys.executable, "-m", "dvc", "data", "status", "--json"]
    status = subprocess.run(command, capture_output=True, text=True, check=False)
    if status.returncode:
        last = (status.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"dvc data status failed: {last}")
    changes = json.loads(status.stdout or "{}").get("uncommitted", {})
    changed = [path for kind in ("added", "modified", "deleted") for path in changes.get(kind, [])]
    if any(path.rstrip("/").split("/")[0] == root.name for path in changed):
        raise UserError(
            f"{root}/: differs from what data.dvc pins. If that is meant, `dvc add {root}`; "
            "if not, `dvc checkout` or `python -m clip_mixtures sample --force` brings it back"
        )


def _class_names(experiment: Experiment) -> list[str]:
    lists = domain_lists(experiment.domains)
    paths = (line.rsplit(" ", 1)[0] for lines in lists.values() for line in lines)
    return sorted({class_name_of(path) for path in paths})


if __name__ == "__main__":
    main()
