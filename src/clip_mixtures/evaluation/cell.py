"""Evaluate one run: predictions of every checkpoint first, numbers from predictions second."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm import tqdm

from clip_mixtures.evaluation.accuracy import HELD_OUT, SEEN
from clip_mixtures.evaluation.statistics import bootstrap_accuracy
from clip_mixtures.evaluation.zero_shot import (
    clip_logits,
    published_templates,
    rank,
    text_classifier,
)
from clip_mixtures.training.checkpoints import load_checkpoint
from clip_mixtures.training.models import ClipModel
from clip_mixtures.training.supervised import create_classifier

# Predictions say whether the true class is among the first so many.
TOP = 5

# domain to "held_out" | "seen" to "balanced" | "micro" | "..._top5" to estimate, low, high and n
Accuracies: TypeAlias = dict[str, dict[str, dict[str, dict[str, float | int | None]]]]


class Reader(Protocol):
    """What turns checkpoints of one kind of training into predictions."""

    model: ClipModel

    def load(self, path: Path) -> None:
        """Take the weights of a checkpoint.

        Raises:
            UserError: when it cannot be loaded.
        """
        ...

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (B, C) scores of normalised pixels (B, 3, S, S)."""
        ...


class ZeroShotReader:
    """Read CLIP checkpoints: a class is the mean of its prompts.

    Args:
        model: of the run's architecture; its weights are replaced.
        class_names: by class id.
    """

    def __init__(self, model: ClipModel, class_names: Sequence[str]) -> None:
        self.model, self._class_names = model, class_names
        self._templates = published_templates()
        # The prompts are the same for all checkpoints; taking them apart costs as much as encoding.
        self._tokens = functools.cache(lambda texts: model.tokenizer(list(texts)))
        self._classifier = torch.empty(0)

    def load(self, path: Path) -> None:
        """Take the weights and encode the prompts."""
        load_checkpoint(path, self.model.network)
        self.model.network.eval()
        self._classifier = text_classifier(
            self.model.network,
            lambda texts: self._tokens(tuple(texts)),
            self._class_names,
            self._templates,
        )

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the cosine with each class."""
        return clip_logits(self.model, pixels, self._classifier)


class SupervisedReader:
    """Read checkpoints of classifiers: the domains' classes alone compete.

    Args:
        model: whose visual tower and input the classifier has.
        classes: of the domains.
    """

    def __init__(self, model: ClipModel, classes: int) -> None:
        self.model = model
        device = next(model.network.parameters()).device
        self._network = create_classifier(model, classes).to(device)

    def load(self, path: Path) -> None:
        """Take the weights."""
        load_checkpoint(path, self._network)
        self._network.eval()

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the domains' logits."""
        return self._network.domain_logits(pixels)


def predict_checkpoints(
    reader: Reader,
    checkpoints: Mapping[int, Path],
    images: npt.NDArray[np.uint8],
    test: pd.DataFrame,
) -> pd.DataFrame:
    """Classify the test images with every checkpoint, over all classes of the corpus.

    Args:
        reader: of the kind of training.
        checkpoints: epoch to file.
        images: (N, S, S, 3) uint8.
        test: the N index rows, whose index labels are row numbers of the domain index.

    Returns:
        One row a checkpoint and image: epoch, row, domain, class_id, prediction, and the rank of
        the true class if it is among the first five (0 is best), else -1.

    Raises:
        UserError: for a checkpoint that cannot be loaded.
    """
    labels = test["class_id"].to_numpy(dtype=np.int32)
    parts = []
    for epoch, path in tqdm(checkpoints.items(), desc="evaluating", unit="checkpoint"):
        reader.load(path)
        best = rank(reader.logits, reader.model, images, TOP)
        found = best == labels[:, None]
        parts.append(
            pd.DataFrame(
                {
                    "epoch": np.int32(epoch),
                    "row": test.index.to_numpy(dtype=np.int64),
                    "domain": test["domain"].to_numpy(),
                    "class_id": labels,
                    "prediction": best[:, 0].astype(np.int32),
                    "rank": np.where(found.any(axis=1), found.argmax(axis=1), -1).astype(np.int8),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def accuracies(
    predictions: pd.DataFrame, held_out: Collection[int], resamples: int, seed: int
) -> Accuracies:
    """Turn predictions of one checkpoint into accuracies with bootstrap intervals.

    Args:
        predictions: columns domain, class_id, prediction and rank.
        held_out: class ids that are held out in the test domain.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        domain to "held_out" | "seen" to "balanced" | "micro" | "balanced_top5" | "micro_top5" to
        estimate, low, high and n.
    """
    result: Accuracies = {}
    is_held_out = predictions["class_id"].isin(list(held_out))
    for domain in predictions["domain"].unique():
        of_domain = predictions["domain"] == domain
        groups = {HELD_OUT: of_domain & is_held_out, SEEN: of_domain & ~is_held_out}
        result[str(domain)] = {
            group: _averages(predictions[rows], resamples, seed)
            for group, rows in groups.items()
            if rows.any()
        }
    return result


def _averages(
    predictions: pd.DataFrame, resamples: int, seed: int
) -> dict[str, dict[str, float | int | None]]:
    labels = predictions["class_id"].to_numpy(dtype=np.int64)
    predicted = predictions["prediction"].to_numpy(dtype=np.int64)
    among_first = np.where(predictions["rank"] >= 0, labels, -1)
    averages: tuple[Literal["balanced", "micro"], ...] = ("balanced", "micro")
    return {
        f"{average}{suffix}": bootstrap_accuracy(
            labels, answers, average=average, resamples=resamples, seed=seed
        ).as_dict()
        for suffix, answers in (("", predicted), ("_top5", among_first))
        for average in averages
    }


def history_of(
    predictions: pd.DataFrame, held_out: Collection[int], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Return the accuracies of every checkpoint, by epoch."""
    return [
        {
            "epoch": int(epoch),
            "accuracies": accuracies(
                predictions[predictions["epoch"] == epoch], held_out, resamples, seed
            ),
        }
        for epoch in sorted(predictions["epoch"].unique())
    ]
