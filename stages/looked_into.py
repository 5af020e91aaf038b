"""The checkpoint that the analyses of a cell look into."""

from __future__ import annotations

import torch

from clip_mixtures.mechanisms.checkpoint import Checkpoint, load_last
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
    settings = experiment.model(cell.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = BUILD / "runs" / cell.run / "checkpoints"
    return load_last(
        settings.architecture, folder, device, classes if settings.is_supervised else None
    )
