"""Try the recipes out on made-up images: whether this machine can train them, and what it takes.

python stages/dry_run.py                                    # the models of params.yaml
python stages/dry_run.py --preset imagenet-captions         # of a preset, which is not written
python stages/dry_run.py --preset cc12m --model rn50 --global-batch 64
torchrun --standalone --nproc-per-node 4 stages/dry_run.py --preset cc3m

Two steps are trained with the recipe's global batch and precision. On a CPU, where that would take
long (many have no half precision and imitate it, thirty times slower), it is 8 images in fp32
unless --global-batch and --precision say otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from clip_mixtures.corpora.generated import write_generated
from clip_mixtures.errors import UserError, reports_user_errors
from clip_mixtures.evaluation.predictions import EvaluationSet, decoded, predict_checkpoints
from clip_mixtures.evaluation.readers import Reader, SupervisedReader, ZeroShotReader
from clip_mixtures.evaluation.zero_shot import published_templates
from clip_mixtures.files import read_yaml
from clip_mixtures.index import read_index
from clip_mixtures.mixtures.spec import DOMAINS
from clip_mixtures.mixtures.store import count_rows
from clip_mixtures.presets import laid_over
from clip_mixtures.training.config import PRECISIONS, Recipe
from clip_mixtures.training.cost import Speed, speed_key, write_speeds
from clip_mixtures.training.dry_run import DryRun, dry_run
from clip_mixtures.training.models import create_clip
from clip_mixtures.training.processes import (
    Processes,
    from_first,
    join_processes,
    leave_processes,
    wait_for_all,
)
from experiment import BUILD, PARAMS, PRESETS, Experiment, Model, load_experiment, scratch_root

CPU_BATCH = 8
# Pictures that are different; a batch of thousands takes them in turn.
DIFFERENT = 64
_EVALUATED = 32


@reports_user_errors
def main() -> None:
    """Print a table, a row a model."""
    args = _arguments()
    processes = join_processes()
    with _scratch(processes) as scratch:
        experiment, keys = _models(args.preset, args.model)
        models = {key: _tried(experiment.model(key), args.precision, processes) for key in keys}
        batches = {key: _batch(args.global_batch, one, processes) for key, one in models.items()}
        if processes.is_first:
            domains = experiment.domains.names or ()
            write_generated(scratch / "corpus", max(batches.values()), args.images, domains)
        wait_for_all(processes)
        seen = {
            key: _try(experiment, key, model, batches[key], scratch, processes)
            for key, model in models.items()
        }
        if processes.is_first:
            images = args.train_images or (None if args.preset else _stored(experiment))
            recipes = {key: experiment.model(key).recipe for key in models}
            found = {key: one for key, one in seen.items() if one}
            print(report(found, recipes, processes, images))
            if args.save is not None:
                write_speeds(args.save, dict(_speeds(experiment, found, processes)))
        wait_for_all(processes)
    leave_processes(processes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", help="of the folder presets, laid over params.yaml")
    parser.add_argument("--model", help="key under `models`; by default all of them")
    parser.add_argument("--global-batch", type=int, metavar="N", help="images a step")
    parser.add_argument(
        "--images",
        type=int,
        default=DIFFERENT,
        metavar="N",
        help="different pictures to make (%(default)s)",
    )
    parser.add_argument(
        "--train-images",
        type=int,
        metavar="N",
        help="training images of a run, for the steps of an epoch; by default those of the "
        "mixtures in build/",
    )
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="JSON for the speeds, as stages/plan.py reads it"
    )
    parser.add_argument("--precision", choices=PRECISIONS, help="in place of the recipe's")
    args = parser.parse_args()
    for name in ("global_batch", "images", "train_images"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: allowed: 1 or more")
    return args


@contextlib.contextmanager
def _scratch(processes: Processes) -> Iterator[Path]:
    """Make a folder that all processes see, and remove it."""
    root = scratch_root()
    made = None
    if processes.is_first:
        root.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(dir=root, prefix="dry-run-")
    folder = Path(from_first(made, processes))
    try:
        yield folder
    finally:
        if processes.is_first:
            shutil.rmtree(folder, ignore_errors=True)


def _models(preset: str | None, model: str | None) -> tuple[Experiment, list[str]]:
    """Return the parameters and which models to try: with a preset, those that it is about."""
    if preset is None:
        experiment = load_experiment()
        keys = list(experiment.models)
    else:
        file = PRESETS / f"{preset}.yaml"
        with laid_over(file, PARAMS) as params:
            experiment = load_experiment(params)
        named = read_yaml(file).get("models") or {}
        keys = list(dict.fromkeys([*named, *(cell.model for cell in experiment.cells)]))
    if model is not None:
        experiment.model(model)
        keys = [model]
    return experiment, keys


def _batch(wanted: int | None, model: Model, processes: Processes) -> int:
    """Return the global batch to try."""
    if wanted is not None:
        if wanted % processes.world_size:
            raise UserError(
                f"--global-batch {wanted}: {processes.world_size} processes cannot share it; give "
                f"a multiple of {processes.world_size}"
            )
        return wanted
    if processes.device.type == "cuda":
        return model.recipe.global_batch_size
    # What the processes can share.
    few = math.ceil(CPU_BATCH / processes.world_size) * processes.world_size
    return min(few, model.recipe.global_batch_size)


def _tried(model: Model, precision: str | None, processes: Processes) -> Model:
    """Return a model with the precision to try."""
    if precision is None and processes.device.type == "cpu":
        precision = "fp32"
    if precision is None:
        return model
    return Model(model.architecture, dataclasses.replace(model.recipe, precision=precision))


def _try(
    experiment: Experiment,
    key: str,
    model: Model,
    batch: int,
    scratch: Path,
    processes: Processes,
) -> DryRun | None:
    corpus, own = scratch / "corpus", scratch / key
    indices = {path.stem: path for path in corpus.glob("*.parquet")}
    mixture = experiment.mixture(experiment.cells[0].mixture)

    def evaluate(checkpoint: Path) -> float:
        return _accuracy(checkpoint, model, indices[DOMAINS], processes)

    if processes.is_first:
        print(f"{key}: {model.architecture}, global batch {batch}", flush=True)
        own.mkdir()
    wait_for_all(processes)
    seen = dry_run(
        model.architecture, model.recipe, batch, mixture, indices, own, processes, evaluate
    )
    wait_for_all(processes)
    return seen


def _accuracy(checkpoint: Path, model: Model, index: Path, processes: Processes) -> float:
    """Evaluate a checkpoint on some test images, among all classes; one prompt a class."""
    domains = read_index(index)
    names = domains.class_names()
    clip = create_clip(model.architecture, processes.device)
    precision = model.recipe.precision
    reader: Reader
    if model.is_supervised:
        reader = SupervisedReader(clip, len(names), precision)
    else:
        reader = ZeroShotReader(clip, {DOMAINS: names}, published_templates()[:1], precision)
    test = domains.frame[domains.frame["split"] == "test"].iloc[:_EVALUATED]
    images = EvaluationSet(DOMAINS, test, domains.root)
    portions = decoded(images, clip.image_size)
    table = predict_checkpoints(reader, {0: checkpoint}, images, portions, progress=False)
    return float((table["prediction"] == table["class_id"]).mean())


def _speeds(
    experiment: Experiment, found: Mapping[str, DryRun], processes: Processes
) -> Iterator[tuple[str, Speed]]:
    for name, seen in found.items():
        model, device = experiment.model(name), processes.device.type
        yield (
            speed_key(name, model.architecture, model.recipe, device),
            Speed(
                device,
                processes.world_size,
                seen.precision,
                seen.images_per_second,
                seen.checkpoint_bytes,
            ),
        )


def _stored(experiment: Experiment) -> int | None:
    """Return the most training images of the mixtures that are built; None where none is."""
    files = {BUILD / "mixtures" / cell.mixture / "train.parquet" for cell in experiment.cells}
    return max((count_rows(path) for path in files if path.is_file()), default=None)


def report(
    seen: Mapping[str, DryRun],
    recipes: Mapping[str, Recipe],
    processes: Processes,
    train_images: int | None,
) -> str:
    """Return what was seen as text: how it was seen, and a table in Markdown.

    Args:
        seen: model key to what was seen of it.
        recipes: model key to its recipe.
        processes: that shared the batch.
        train_images: of a run, for the steps of an epoch; None where not known.
    """
    lines = [
        f"{processes.world_size} process(es) on {processes.device.type}; two steps, the second "
        f"timed; {_EVALUATED} images evaluated among 345 classes, after that."
    ]
    if any(
        (one.global_batch, one.precision)
        != (recipes[key].global_batch_size, recipes[key].precision)
        for key, one in seen.items()
    ):
        lines.append(
            "Batch or precision are not the recipe's: it shows that everything is built and "
            "trains; time and memory are those of what was tried."
        )
    rows = [_row(key, one, recipes[key], train_images) for key, one in seen.items()]
    header = list(rows[0])
    table = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *(row.values() for row in rows)]
    return "\n".join([*lines, "", *(f"| {' | '.join(row)} |" for row in table)])


def _row(key: str, seen: DryRun, recipe: Recipe, train_images: int | None) -> dict[str, str]:
    steps = None if train_images is None else train_images // recipe.global_batch_size
    return {
        "model": key,
        "architecture": f"{seen.architecture}{', classifier' if seen.is_supervised else ''}",
        "weights": f"{seen.parameters / 1e6:.1f} M",
        "image": f"{seen.image_size} px",
        "recipe": f"{recipe.global_batch_size:,}, {recipe.precision}",
        "steps/epoch": "-" if steps is None else f"{steps:,}",
        "tried": f"{seen.global_batch:,}, {seen.precision}",
        "a process": f"{seen.process_batch:,}",
        "at a time": f"{seen.device_batch:,} x {seen.pieces}",
        "step": f"{seen.seconds:.2f} s",
        "images/s": f"{seen.images_per_second:,.1f}",
        "input/s (workers)": f"{seen.input_per_second:,.0f} ({seen.workers})",
        "peak memory": f"{seen.peak_bytes / 1e9:.2f} GB",
        "checkpoint": f"{seen.checkpoint_bytes / 1e6:.1f} MB",
        "loss before": f"{seen.loss_before:.4f}",
        "after": f"{seen.loss_after:.4f}",
        "top-1": f"{100 * seen.accuracy:.1f} %",
    }


if __name__ == "__main__":
    main()
