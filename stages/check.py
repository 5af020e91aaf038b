"""Check params.yaml and data/ before any work starts.

python stages/check.py          parameters, the environment's numbers, and that the processes can
                                share the batch
python stages/check.py --data   also that data/ is what data.dvc pins and has the classes named
python stages/check.py --mixture cg-low --model sample-rn    before training, also that the mixture,
                                which must be built, has the images of a batch
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from clip_mixtures.corpora.captions import class_name_of
from clip_mixtures.corpora.indexing import domain_lists
from clip_mixtures.environment import NPROC, NUMBERS, number_of
from clip_mixtures.errors import UserError, reports_user_errors
from clip_mixtures.mixtures.store import count_rows
from clip_mixtures.training.config import per_process_batch
from experiment import BUILD, DATA, Experiment, load_experiment
from mechanism_params import Mechanisms, load_mechanisms, vocabulary_file


@reports_user_errors
def main() -> None:
    """Exit with status 2 and one line when something is wrong."""
    args = _arguments()
    experiment = load_experiment()
    for variable in NUMBERS:
        number_of(variable)
    _check_processes(experiment, number_of(NPROC) or 1)
    mechanisms = load_mechanisms(experiment)
    if args.mixture:
        _check_images(experiment, args.mixture, args.model)
    if args.data:
        _check_data()
        _check_paths(experiment, mechanisms)
        load_experiment(class_names=_class_names(experiment))
    print("params.yaml and data/ are in order" if args.data else "params.yaml is in order")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", action="store_true", help="compare data/ with data.dvc as well")
    parser.add_argument("--mixture", help="key under `mixtures` in params.yaml; with --model")
    parser.add_argument("--model", help="key under `models` in params.yaml; with --mixture")
    args = parser.parse_args()
    if bool(args.mixture) != bool(args.model):
        raise UserError("--mixture and --model: give both, or neither")
    return args


def _check_processes(experiment: Experiment, processes: int) -> None:
    for key in dict.fromkeys(cell.model for cell in experiment.cells):
        batch = experiment.model(key).recipe.global_batch_size
        per_process_batch(batch, processes, _batch_of(experiment, key))


def _batch_of(experiment: Experiment, model: str) -> str:
    """Name the batch of a model, and where params.yaml says it."""
    own = f"models.{model}"
    is_supervised = experiment.model(model).is_supervised
    where = f"{own}.supervised" if is_supervised else f"{own}.train or train"
    return f"global_batch_size of model {model} ({where})"


def _check_images(experiment: Experiment, mixture: str, model: str) -> None:
    """Refuse a batch that is larger than the mixture, which torchrun would bury in its report.

    Of a mixture a classifier has no more than these images: those with a label.
    """
    images = count_rows(BUILD / "mixtures" / experiment.mixture(mixture).key / "train.parquet")
    batch = experiment.model(model).recipe.global_batch_size
    if batch > images:
        raise UserError(
            f"{_batch_of(experiment, model)}: {batch} is more than the {images} training images of "
            f"mixture {mixture}; make it smaller"
        )


def _check_paths(experiment: Experiment, mechanisms: Mechanisms) -> None:
    """Refuse parameters that name data that are not there."""
    sources = experiment.sources
    named: dict[str, Any] = {"corpus.domains_root": experiment.domains.root}
    for field in dataclasses.fields(sources):
        named[f"corpus.{field.name}"] = getattr(sources, field.name)
    for name, source in sources.bases.items():
        named |= {f"corpus.bases.{name}.{key}": value for key, value in source.items()}
    named["mechanisms.sharing.vocabulary"] = vocabulary_file(mechanisms.sharing)
    for key, path in named.items():
        if isinstance(path, Path) and not path.exists():
            raise UserError(f"{key}: {path} is not there; put it there, or name a path that is")


def _check_data() -> None:
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
