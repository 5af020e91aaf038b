"""Evaluate every checkpoint of one run on all test images.

python stages/evaluate.py --mixture cg-low --model sample-rn --seed 0
"""

from __future__ import annotations

import argparse

import torch

from clip_mixtures.errors import reports_user_errors
from clip_mixtures.evaluation.cell import (
    SupervisedReader,
    ZeroShotReader,
    history_of,
    predict_checkpoints,
)
from clip_mixtures.files import atomic_write_json, replacing
from clip_mixtures.images import pack
from clip_mixtures.index import read_index
from clip_mixtures.mixtures.audit import verification_of
from clip_mixtures.training.checkpoints import list_checkpoints
from clip_mixtures.training.models import create_clip
from experiment import BUILD, INDEX, VERIFICATION, Cell, load_experiment


@reports_user_errors
def main() -> None:
    """Write build/evaluation/<run>/predictions.parquet and metrics.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixture", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    domains = read_index(INDEX / "domains.parquet")
    class_names = domains.class_names()
    experiment = load_experiment(class_names=class_names)
    mixture = experiment.mixture(args.mixture)
    cell = Cell(args.mixture, args.model, args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = experiment.model(args.model)
    model = create_clip(settings.architecture, device)
    reader = (
        SupervisedReader(model, len(class_names))
        if settings.is_supervised
        else ZeroShotReader(model, class_names)
    )
    verified = verification_of(INDEX / "domains.parquet", VERIFICATION)
    test = domains.frame[(domains.frame["split"] == "test") & verified["readable"]]
    images = pack(test, domains.root, model.image_size, progress="decoding test images")
    checkpoints = list_checkpoints(BUILD / "runs" / cell.run / "checkpoints")
    predictions = predict_checkpoints(reader, checkpoints, images, test)
    held_out = [class_names.index(name) for name in mixture.held_out]
    history = history_of(
        predictions, held_out, experiment.bootstrap_resamples, experiment.bootstrap_seed
    )
    out = BUILD / "evaluation" / cell.run
    with replacing(out / "predictions.parquet") as temporary:
        predictions.to_parquet(temporary, compression="zstd", index=False)
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
    print(f"{cell.run}: {len(checkpoints)} checkpoints, {len(test)} test images each")


if __name__ == "__main__":
    main()
