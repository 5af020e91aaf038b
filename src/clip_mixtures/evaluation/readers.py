"""Checkpoints as classifiers: zero-shot by prompts, or by the outputs that were trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from clip_mixtures.evaluation.prompts import Prompts, encode, prompts_of
from clip_mixtures.evaluation.zero_shot import Template, average_prompts, clip_logits, filled
from clip_mixtures.mixtures.spec import DOMAINS
from clip_mixtures.training.checkpoints import load_checkpoint
from clip_mixtures.training.models import ClipModel
from clip_mixtures.training.precision import autocast
from clip_mixtures.training.supervised import create_classifier


class Reader(Protocol):
    """What turns checkpoints of one kind of training into scores.

    Attributes:
        model: whose input the images are prepared for.
        sets: the names of the evaluation sets that it can score.
    """

    model: ClipModel
    sets: tuple[str, ...]

    def load(self, path: Path) -> None:
        """Take the weights of a checkpoint.

        Raises:
            UserError: when it cannot be loaded.
        """
        ...

    def logits(self, pixels: torch.Tensor, name: str) -> torch.Tensor:
        """Return (B, C) float32 scores of normalised pixels (B, 3, S, S) for a set's classes."""
        ...


class ZeroShotReader:
    """Read CLIP checkpoints: a class is the mean of its prompts.

    Args:
        model: of the run's architecture; its weights are replaced.
        class_names: of each evaluation set, by class id; the classes of one set compete.
        templates: of the prompts.
        precision: one of :data:`config.PRECISIONS`, of both towers.
    """

    def __init__(
        self,
        model: ClipModel,
        class_names: Mapping[str, Sequence[str]],
        templates: Sequence[Template],
        precision: str = "fp32",
    ) -> None:
        self.model = model
        self.sets: tuple[str, ...] = tuple(class_names)
        self._class_names, self._templates, self._precision = class_names, templates, precision
        # The prompts are the same for all checkpoints; taking them apart costs more than encoding.
        self._prompts: Callable[[str], Prompts] = functools.cache(self._made_ready)
        # A checkpoint comes back with every portion of a large set of images; its prompts do not.
        self._known: dict[Path, dict[str, torch.Tensor]] = {}
        self._classifiers: dict[str, torch.Tensor] = {}

    def load(self, path: Path) -> None:
        """Take the weights and encode the prompts."""
        load_checkpoint(path, self.model.network)
        self.model.network.eval()
        if path not in self._known:
            self._known[path] = {name: self._classifier(name) for name in self.sets}
        self._classifiers = self._known[path]

    def _made_ready(self, name: str) -> Prompts:
        texts = filled(self._templates, self._class_names[name])
        return prompts_of(self.model.network, self.model.tokenizer(texts))

    def _classifier(self, name: str) -> torch.Tensor:
        device = next(self.model.network.parameters()).device
        with autocast(self._precision, device):
            features = encode(self.model.network, self._prompts(name))
        return average_prompts(features.float(), len(self._class_names[name]))

    def logits(self, pixels: torch.Tensor, name: str) -> torch.Tensor:
        """Return the cosine with each class."""
        with autocast(self._precision, pixels.device):
            return clip_logits(self.model, pixels, self._classifiers[name])


class SupervisedReader:
    """Read checkpoints of classifiers: the domains' classes alone compete.

    ImageNet is left out: the classes that the domains have too share outputs among themselves.

    Args:
        model: whose visual tower and input the classifier has.
        classes: of the domains.
        precision: one of :data:`config.PRECISIONS`.
    """

    def __init__(self, model: ClipModel, classes: int, precision: str = "fp32") -> None:
        self.model = model
        self.sets: tuple[str, ...] = (DOMAINS,)
        self._precision = precision
        device = next(model.network.parameters()).device
        self._network = create_classifier(model, classes).to(device)

    def load(self, path: Path) -> None:
        """Take the weights."""
        load_checkpoint(path, self._network)
        self._network.eval()

    def logits(self, pixels: torch.Tensor, name: str) -> torch.Tensor:
        """Return the domains' logits."""
        if name not in self.sets:
            raise ValueError(f"set is {name!r}; a classifier is read on {self.sets}")
        with autocast(self._precision, pixels.device):
            embedding = self._network.visual(pixels)
        # In half precision the best of several hundred logits would often tie.
        return self._network.domain_logits_of(embedding.float())
