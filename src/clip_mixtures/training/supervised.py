"""What a supervised classifier learns by: the same visual tower under a linear layer.

The study compares CLIP with classifiers of the same visual tower (paper section 4, appendix D): the
tower's embedding, ReLU, and one linear layer over ImageNet's 1,000 classes followed by the domains'
own. An ImageNet class that the domains have too is labelled as theirs, so that "lion" is one class
and not two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch.nn import functional

from clip_mixtures.corpora.classes import imagenet_synsets, synset_counterparts
from clip_mixtures.errors import UserError
from clip_mixtures.mixtures.spec import DOMAINS
from clip_mixtures.training.clip import decay_groups, frozen_statistics, synchronised
from clip_mixtures.training.config import SupervisedConfig
from clip_mixtures.training.loop import Batch
from clip_mixtures.training.models import ClipModel
from clip_mixtures.training.precision import Precision

IMAGENET_CLASSES = 1000
NO_LABEL = -1
_SYNSET = re.compile(r"(?:^|/)(n\d{8})(?=[/_.])")


class Classifier(torch.nn.Module):
    """A visual tower, ReLU, and a linear layer.

    Args:
        visual: maps (B, 3, S, S) images to (B, D) embeddings.
        width: D.
        classes: of the domains; there are 1,000 outputs more, for ImageNet.
    """

    def __init__(self, visual: torch.nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.visual = visual
        self.head = torch.nn.Linear(width, IMAGENET_CLASSES + classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, 1000 + classes) logits."""
        logits: torch.Tensor = self.head(functional.relu(self.visual(images)))
        return logits

    def domain_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return the (B, classes) logits of the domains' classes alone."""
        return self.domain_logits_of(self.visual(images))

    def domain_logits_of(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the (B, classes) logits of embeddings (B, D) of the visual tower."""
        logits: torch.Tensor = self.head(functional.relu(embeddings))[:, IMAGENET_CLASSES:]
        return logits


def create_classifier(model: ClipModel, classes: int) -> Classifier:
    """Put a linear layer on the visual tower of a freshly made CLIP model.

    Args:
        model: whose visual tower is taken; torch's global seed decides the layer's weights.
        classes: of the domains.
    """
    visual = model.network.get_submodule("visual")
    width = int(model.network.get_parameter("text_projection").shape[1])
    return Classifier(visual, width, classes)


class Supervised:
    """The objective of a classifier: cross entropy, SGD with Nesterov momentum.

    Args:
        network: a :class:`Classifier`.
        config: the recipe.
    """

    def __init__(self, network: Classifier, config: SupervisedConfig) -> None:
        self.network: torch.nn.Module = network
        self._classifier = network
        self._config = config
        self._correct: list[torch.Tensor] = []
        if config.grad_checkpointing:
            if isinstance(network.visual, ModifiedResNet):
                raise UserError(
                    "supervised.grad_checkpointing: is true, but the ResNets of open_clip keep "
                    "their activations whatever it says; say false, and where memory is short set "
                    "DEVICE_BATCH in the environment"
                )
            network.visual.set_grad_checkpointing()  # type: ignore[operator]

    def optimizer(self) -> torch.optim.Optimizer:
        """Make SGD with decay on weights, not on gains and biases."""
        config = self._config
        return torch.optim.SGD(
            decay_groups(self.network, config.weight_decay),
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            # Fused, its momentum begins with whatever lies in memory when gradients that are not
            # finite skip the first step (torch 2.11 to 2.15).
            fused=False,
        )

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the rate of a step (0-based): a fraction ``gamma`` less after each milestone."""
        epoch = step // steps_per_epoch
        passed = sum(epoch >= milestone for milestone in self._config.milestones)
        return float(self._config.learning_rate * self._config.gamma**passed)

    def backward(
        self, network: torch.nn.Module, parts: Sequence[Batch], precision: Precision
    ) -> torch.Tensor:
        """Leave the gradients of one batch; see :class:`loop.Objective`."""
        total = sum(len(part.images) for part in parts)
        whole = torch.zeros((), device=parts[0].images.device)
        correct = torch.zeros((), device=parts[0].images.device)
        for number, part in enumerate(parts):
            last = number + 1 == len(parts)
            with synchronised(network, last), precision.autocast():
                logits = network(part.images)
                share = len(part.images) / total
                loss = functional.cross_entropy(logits.float(), part.targets) * share
                precision.scaled(loss).backward()
            whole += loss.detach()
            correct += (logits.detach().argmax(dim=1) == part.targets).sum()
        self._correct.append(correct / total)
        return whole

    def trial(self, images: torch.Tensor) -> torch.Tensor:
        """Return a scalar of everything that is trained, to see how many images fit."""
        with frozen_statistics(self.network):
            total: torch.Tensor = self._classifier(images).sum()
        return total

    def after_step(self) -> None:
        """Do nothing."""

    def facts(self) -> dict[str, float]:
        """Return the accuracy on the training images since the last point of the curves."""
        accuracy = float(torch.stack(self._correct).mean()) if self._correct else float("nan")
        self._correct = []
        return {"training_accuracy": accuracy}


def labels_of(name: str, frame: pd.DataFrame, class_names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the outputs (n,) int64 that rows of an index are to have; -1 for no label.

    Args:
        name: of the index; rows of "domains" have labels, those of other sets have one if their
            path names an ImageNet synset, as a folder or at the beginning of the file name.
        frame: columns path and class_id.
        class_names: of the domains, by class id.
    """
    if name == DOMAINS:
        return frame["class_id"].to_numpy(dtype=np.int64) + IMAGENET_CLASSES
    outputs = imagenet_outputs(class_names)
    found = (_SYNSET.search(str(path)) for path in frame["path"])
    labels = [outputs.get(match.group(1), NO_LABEL) if match else NO_LABEL for match in found]
    return np.asarray(labels, dtype=np.int64)


def imagenet_outputs(class_names: Sequence[str]) -> dict[str, int]:
    """Map every ImageNet synset to its output.

    Args:
        class_names: of the domains; a synset whose DomainNet counterpart is among them takes its
            output (published: 450 synsets, 182 classes).
    """
    position = {name: IMAGENET_CLASSES + number for number, name in enumerate(class_names)}
    counterparts = synset_counterparts()
    return {
        synset: position.get(counterparts.get(synset, ""), number)
        for number, synset in enumerate(imagenet_synsets())
    }
