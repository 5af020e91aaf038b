"""The model of a checkpoint, ready to be looked into: single precision, evaluation mode, frozen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from clip_mixtures.mechanisms.towers import Tower, tower_of
from clip_mixtures.training.checkpoints import list_checkpoints, load_checkpoint
from clip_mixtures.training.models import ClipModel, Normalisation, create_clip
from clip_mixtures.training.supervised import create_classifier


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model with its weights.

    Attributes:
        model: whose image input the tower takes; of a classifier, its text tower is untrained.
        tower: the visual tower.
        epoch: after which the checkpoint was written.
        has_text: whether the text tower was trained with it.
    """

    model: ClipModel
    tower: Tower
    epoch: int
    has_text: bool

    @property
    def normalisation(self) -> Normalisation:
        """What brings pixels to the tower's input, on its device."""
        device = next(self.model.network.parameters()).device
        return Normalisation(self.model.mean, self.model.std, device)


def load_last(
    architecture: str, checkpoints: Path, device: torch.device, classes: int | None = None
) -> Checkpoint:
    """Load the last checkpoint of a run.

    Args:
        architecture: of the run.
        checkpoints: folder of its checkpoints.
        device: where to put the model.
        classes: of the domains, for a classifier; None for CLIP.

    Raises:
        UserError: when there is none, it is damaged or of another architecture, or the analyses
            do not know the visual tower.
    """
    epoch, path = list(list_checkpoints(checkpoints).items())[-1]
    model = create_clip(architecture, device)
    network = model.network if classes is None else create_classifier(model, classes).to(device)
    load_checkpoint(path, network)
    network.eval().requires_grad_(False)
    tower = tower_of(network.get_submodule("visual"))
    return Checkpoint(model, tower, epoch, has_text=classes is None)
