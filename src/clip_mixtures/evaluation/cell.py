"""Evaluate one run: predictions of every checkpoint first, numbers from predictions second."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from clip_mixtures.evaluation.accuracy import HELD_OUT, SEEN
from clip_mixtures.evaluation.statistics import bootstrap_accuracy
from clip_mixtures.evaluation.zero_shot import predict, published_templates, text_classifier
from clip_mixtures.training.checkpoints import load_checkpoint
from clip_mixtures.training.models import ClipModel

# domain to "held_out" | "seen" to "balanced" | "micro" to estimate, low, high and n
Accuracies: TypeAlias = dict[str, dict[str, dict[str, dict[str, float | int | None]]]]


def predict_checkpoints(
    model: ClipModel,
    checkpoints: Mapping[int, Path],
    images: npt.NDArray[np.uint8],
    test: pd.DataFrame,
    class_names: Sequence[str],
) -> pd.DataFrame:
    """Classify the test images with every checkpoint, over all classes of the corpus.

    Args:
        model: of the run's architecture; its weights are replaced.
        checkpoints: epoch to file.
        images: (N, S, S, 3) uint8.
        test: the N index rows, whose index labels are row numbers of the domain index.
        class_names: by class id.

    Returns:
        One row a checkpoint and image: epoch, row, domain, class_id, prediction.

    Raises:
        UserError: for a checkpoint that cannot be loaded.
    """
    templates = published_templates()
    # The prompts are the same for every checkpoint; taking them apart costs as much as encoding.
    tokens = functools.cache(lambda texts: model.tokenizer(list(texts)))
    model.network.eval()
    parts = []
    for epoch, path in tqdm(checkpoints.items(), desc="evaluating", unit="checkpoint"):
        load_checkpoint(path, model.network)
        classifier = text_classifier(
            model.network, lambda texts: tokens(tuple(texts)), class_names, templates
        )
        parts.append(
            pd.DataFrame(
                {
                    "epoch": np.int32(epoch),
                    "row": test.index.to_numpy(dtype=np.int64),
                    "domain": test["domain"].to_numpy(),
                    "class_id": test["class_id"].to_numpy(dtype=np.int32),
                    "prediction": predict(model, images, classifier).astype(np.int32),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def accuracies(
    predictions: pd.DataFrame, held_out: Collection[int], resamples: int, seed: int
) -> Accuracies:
    """Turn predictions of one checkpoint into accuracies with bootstrap intervals.

    Args:
        predictions: columns domain, class_id, prediction.
        held_out: class ids that are held out in the test domain.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        domain to "held_out" | "seen" to "balanced" | "micro" to estimate, low, high and n.
    """
    result: Accuracies = {}
    is_held_out = predictions["class_id"].isin(list(held_out))
    for domain in predictions["domain"].unique():
        of_domain = predictions["domain"] == domain
        groups = {HELD_OUT: of_domain & is_held_out, SEEN: of_domain & ~is_held_out}
        result[str(domain)] = {
            group: _both_averages(predictions[rows], resamples, seed)
            for group, rows in groups.items()
            if rows.any()
        }
    return result


def _both_averages(
    predictions: pd.DataFrame, resamples: int, seed: int
) -> dict[str, dict[str, float | int | None]]:
    labels = predictions["class_id"].to_numpy(dtype=np.int64)
    predicted = predictions["prediction"].to_numpy(dtype=np.int64)
    return {
        average: bootstrap_accuracy(
            labels, predicted, average=average, resamples=resamples, seed=seed
        ).as_dict()
        for average in ("balanced", "micro")
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
