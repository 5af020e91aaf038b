"""Train CLIP, or a classifier, on one mixture; killed and started again, it goes on where it was.

torchrun --standalone --nproc-per-node 1 stages/train_clip.py \
    --mixture cg-low --model sample-rn --seed 0
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from clip_mixtures.errors import reports_user_errors
from clip_mixtures.files import sha256_file
from clip_mixtures.training.run import Run, train_run
from experiment import BUILD, cell_of_arguments, load_experiment, scratch_root
from steady import steady
from timed import timed

# DVC keeps it in step with the data before any stage runs.
PINNED_DATA = Path("data.dvc")


@reports_user_errors
@steady
@timed
def main() -> None:
    """Write build/runs/<run>/: checkpoints, loss curves and facts of the run."""
    cell = cell_of_arguments(__doc__)
    experiment = load_experiment()
    settings = experiment.model(cell.model)
    run = Run(
        name=cell.run,
        architecture=settings.architecture,
        config=settings.recipe,
        seed=cell.seed,
        mixture=BUILD / "mixtures" / experiment.mixture(cell.mixture).key,
        data_version=sha256_file(PINNED_DATA) if PINNED_DATA.is_file() else "",
    )
    scratch = scratch_root() / "runs"
    train_run(run, scratch, BUILD / "runs" / cell.run, dataclasses.asdict(cell))


if __name__ == "__main__":
    main()
