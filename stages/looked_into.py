"""The checkpoint that the analyses of a cell look into."""

from __future__ import annotations

from pathlib import Path

import torch

import clip_mixtures
from clip_mixtures.mechanisms.checkpoint import Checkpoint, load_last
from clip_mixtures.training.data import source_hash
from experiment import BUILD, Cell, Experiment


def checkpoint_of(experiment: Experiment, cell: Cell, classes: int) -> Checkpoint:
    """Load the last checkpoint of a cell, on a GPU where there is one.

    Args:
        experiment: which has the cell.
        cell: which.
        classes: of the corpus.

    Raises:
        UserError: when it has none, or a damaged one.
    """
    # Single precision is meant: by default convolutions on a GPU round to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    settings = experiment.model(cell.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = BUILD / "runs" / cell.run / "checkpoints"
    return load_last(
        settings.architecture, folder, device, classes if settings.is_supervised else None
    )


def code_version() -> str:
    """Return a hash of the code that decides what is found in a checkpoint.

    What was left in a scratch folder by other code is not continued.
    """
    package = Path(clip_mixtures.__file__).parent
    deciding = ("mechanisms", "evaluation", "training", "images.py", "archives.py", "index.py")
    return source_hash(*(package / name for name in deciding))
