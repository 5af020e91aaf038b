"""Evaluate every checkpoint of one run on all test images.

python stages/evaluate.py --mixture cg-low --model sample-rn --seed 0
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import torch

from clip_mixtures.corpora.classes import imagenet_class_names
from clip_mixtures.errors import reports_user_errors
from clip_mixtures.evaluation.cell import class_table, confusion_table, history_of
from clip_mixtures.evaluation.predictions import decoded, evaluation_set, predict_checkpoints
from clip_mixtures.evaluation.readers import Reader, SupervisedReader, ZeroShotReader
from clip_mixtures.evaluation.zero_shot import prompt_templates
from clip_mixtures.files import atomic_write_json, atomic_write_text, replacing
from clip_mixtures.index import read_index
from clip_mixtures.mixtures.spec import DOMAINS
from clip_mixtures.mixtures.store import definition_of
from clip_mixtures.training.checkpoints import list_checkpoints
from clip_mixtures.training.layout import CURVES, FACTS
from clip_mixtures.training.models import create_clip
from clip_mixtures.training.processes import decoding_workers
from experiment import (
    BUILD,
    INDEX,
    VERIFICATION,
    Cell,
    Experiment,
    cell_of_arguments,
    load_experiment,
)
from finished import forget_finished
from steady import steady
from timed import timed

IMAGENET = "imagenet"
FILES = {DOMAINS: INDEX / "domains.parquet", IMAGENET: INDEX / "imagenet_validation.parquet"}


@reports_user_errors
@steady
@timed
def main() -> None:
    """Write build/evaluation/<run>/: predictions, metrics.json, classes, confusions, training/."""
    cell = cell_of_arguments(__doc__)
    domains = read_index(FILES[DOMAINS])
    class_names = domains.class_names()
    experiment = load_experiment(class_names=class_names)
    mixture = definition_of(BUILD / "mixtures" / cell.mixture)
    reader = _reader(experiment, cell, class_names)
    checkpoints = list_checkpoints(BUILD / "runs" / cell.run / "checkpoints")
    out = BUILD / "evaluation" / cell.run
    tables = {}
    for name in reader.sets:
        images = evaluation_set(name, FILES[name], VERIFICATION)
        portions = decoded(images, reader.model.image_size, max(decoding_workers(), 1))
        tables[name] = predict_checkpoints(reader, checkpoints, images, portions)
        _write_parquet(out / f"predictions-{name}.parquet", tables[name])

    held_out = [class_names.index(name) for name in mixture.held_out]
    settings = experiment.evaluate
    history = history_of(
        tables[DOMAINS], held_out, settings.resamples, settings.seed, tables.get(IMAGENET)
    )
    _write_parquet(out / "classes.parquet", class_table(tables[DOMAINS], class_names, held_out))
    confusions = confusion_table(tables[DOMAINS], class_names, held_out)
    atomic_write_text(out / "confusions.csv", confusions.to_csv(index=False, lineterminator="\n"))
    atomic_write_json(
        out / "metrics.json",
        {
            "run": cell.run,
            "mixture": cell.mixture,
            "model": cell.model,
            "seed": cell.seed,
            "test_domain": mixture.test_domain,
            "classes": len(class_names),
            "checkpoints": history,
        },
    )
    run = BUILD / "runs" / cell.run
    _keep_training(run, out / "training")
    forget_finished("runs")
    images_seen = sum(len(table) for table in tables.values()) // len(checkpoints)
    print(f"{cell.run}: {len(checkpoints)} checkpoints, {images_seen} test images each")


def _reader(experiment: Experiment, cell: Cell, class_names: list[str]) -> Reader:
    settings, evaluate = experiment.model(cell.model), experiment.evaluate
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if evaluate.precision == "fp32":
        # By default convolutions on a GPU round to 10 bits.
        torch.backends.cudnn.allow_tf32 = False
    model = create_clip(settings.architecture, device)
    if settings.is_supervised:
        return SupervisedReader(model, len(class_names), evaluate.precision)
    names = {DOMAINS: class_names}
    if FILES[IMAGENET].is_file():
        names[IMAGENET] = list(imagenet_class_names(evaluate.protocol == "published"))
    templates = prompt_templates(evaluate.prompts, evaluate.protocol)
    return ZeroShotReader(model, names, templates, evaluate.precision)


def _keep_training(run: Path, out: Path) -> None:
    """Copy facts and curves of the training: whoever compares cells needs no checkpoints."""
    copied = shutil.copytree(run / CURVES, out / CURVES, dirs_exist_ok=True)
    shutil.copy(run / FACTS, copied.parent / FACTS)


def _write_parquet(path: Path, frame: pd.DataFrame) -> None:
    with replacing(path) as temporary:
        frame.to_parquet(temporary, compression="zstd", index=False)


if __name__ == "__main__":
    main()
