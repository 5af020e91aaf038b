"""Train CLIP on one mixture; killed and started again, it goes on where it was.

torchrun --standalone --nproc-per-node 1 stages/train_clip.py \
    --mixture cg-low --model sample-rn --seed 0
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from pathlib import Path

import torch

import clip_mixtures.training
from clip_mixtures.errors import reports_user_errors
from clip_mixtures.files import atomic_write_json, sha256_file
from clip_mixtures.index import read_index
from clip_mixtures.mixtures.build import read_rows
from clip_mixtures.training import clip
from clip_mixtures.training.data import (
    TrainingSet,
    captions_of,
    fingerprint,
    pack_rows,
    source_hash,
    tokenize,
)
from clip_mixtures.training.models import create_clip
from experiment import BUILD, INDEX, Cell, load_experiment


@reports_user_errors
def main() -> None:
    """Write build/runs/<run>/: checkpoints, loss curves and facts of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixture", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    experiment = load_experiment()
    mixture = experiment.mixture(args.mixture)
    architecture = experiment.architecture(args.model)
    cell = Cell(args.mixture, args.model, args.seed)
    selection = BUILD / "mixtures" / mixture.key / "train.parquet"
    indices = {name: read_index(INDEX / f"{name}.parquet") for name in ("base", "domains")}
    run_id = fingerprint(
        experiment.train,
        mixture.captions,
        architecture,
        args.seed,
        sha256_file(selection),
        [sha256_file(INDEX / f"{name}.parquet") for name in indices],
        source_hash(Path(clip_mixtures.training.__file__).parent),
        torch.__version__,
    )
    scratch = Path(os.environ.get("SCRATCH", "scratch")) / "runs" / f"{cell.run}-{run_id}"

    processes = clip.join_processes()
    torch.manual_seed(args.seed)
    model = create_clip(architecture, processes.device)
    parts = [(indices[name], rows) for name, rows in read_rows(selection).items()]
    images = scratch / f"images-{model.image_size}.uint8"
    if processes.is_first:
        pack_rows(parts, model.image_size, images, write=True)
    clip.wait_for_all(processes)
    captions = [c for i, rows in parts for c in captions_of(i.frame.iloc[rows], mixture.captions)]
    data = TrainingSet(
        pack_rows(parts, model.image_size, images, write=False), tokenize(captions, model.tokenizer)
    )
    facts = clip.train(model, data, experiment.train, args.seed, scratch, processes)
    if processes.is_first:
        recipe = {"architecture": architecture, **dataclasses.asdict(experiment.train)}
        atomic_write_json(
            scratch / clip.FACTS,
            {**dataclasses.asdict(cell), "train_images": len(data), **facts, "recipe": recipe},
        )
        clip.publish(scratch, BUILD / "runs" / cell.run)
        shutil.rmtree(scratch)
    clip.leave_processes(processes)


if __name__ == "__main__":
    main()
