"""The numbers of one run, from its predictions alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from clip_mixtures.evaluation.accuracy import HELD_OUT, SEEN
from clip_mixtures.evaluation.statistics import bootstrap_accuracy

# domain to "held_out" | "seen" to "balanced" | "micro" | "..._top5" to estimate, low, high and n
Averages: TypeAlias = dict[str, dict[str, float | int | None]]
Accuracies: TypeAlias = dict[str, dict[str, Averages]]


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
            group: averages(predictions[rows], resamples, seed)
            for group, rows in groups.items()
            if rows.any()
        }
    return result


def averages(predictions: pd.DataFrame, resamples: int, seed: int) -> Averages:
    """Average over classes and over images, for the first choice and the first five.

    Args:
        predictions: columns class_id, prediction and rank; one row or more.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        "balanced" | "micro" | "balanced_top5" | "micro_top5" to estimate, low, high and n.
    """
    labels = predictions["class_id"].to_numpy(dtype=np.int64)
    predicted = predictions["prediction"].to_numpy(dtype=np.int64)
    among_first = np.where(predictions["rank"] >= 0, labels, -1)
    kinds: tuple[Literal["balanced", "micro"], ...] = ("balanced", "micro")
    return {
        f"{kind}{suffix}": bootstrap_accuracy(
            labels, answers, average=kind, resamples=resamples, seed=seed
        ).as_dict()
        for suffix, answers in (("", predicted), ("_top5", among_first))
        for kind in kinds
    }


def history_of(
    predictions: pd.DataFrame,
    held_out: Collection[int],
    resamples: int,
    seed: int,
    imagenet: pd.DataFrame | None = None,
) -> list[dict[str, Any]]:
    """Return the accuracies of every checkpoint, by epoch.

    Args:
        predictions: of the domains' test images.
        held_out: class ids that are held out in the test domain.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        imagenet: predictions on ImageNet's validation set, among its 1,000 classes.

    Returns:
        epoch, accuracies (see :func:`accuracies`), and imagenet (see :func:`averages`) if given.
    """
    history: list[dict[str, Any]] = []
    for epoch in sorted(predictions["epoch"].unique()):
        of_epoch = predictions[predictions["epoch"] == epoch]
        point = {"epoch": int(epoch), "accuracies": accuracies(of_epoch, held_out, resamples, seed)}
        if imagenet is not None:
            rows = imagenet["epoch"] == epoch
            point["imagenet"] = averages(imagenet[rows], resamples, seed)
        history.append(point)
    return history


def class_table(
    predictions: pd.DataFrame, class_names: Sequence[str], held_out: Collection[int]
) -> pd.DataFrame:
    """Count images and right answers of every checkpoint, domain and class.

    Args:
        predictions: columns epoch, domain, class_id, prediction and rank.
        class_names: by class id.
        held_out: class ids that are held out in the test domain.

    Returns:
        epoch, domain, class_id, class_name, group, images, correct, correct_top5; classes without
        images have no row.
    """
    right = predictions.assign(
        correct=predictions["prediction"] == predictions["class_id"],
        correct_top5=predictions["rank"] >= 0,
    )
    groups = right.groupby(["epoch", "domain", "class_id"], sort=False)
    table = groups.agg(
        images=("correct", "size"), correct=("correct", "sum"), correct_top5=("correct_top5", "sum")
    ).reset_index()
    names = np.asarray(class_names, dtype=object)[table["class_id"].to_numpy()]
    table.insert(3, "class_name", names)
    is_held_out = table["class_id"].isin(list(held_out))
    table.insert(4, "group", np.where(is_held_out, HELD_OUT, SEEN))
    return table.sort_values(["epoch", "domain", "class_id"], ignore_index=True)


def confusion_table(
    predictions: pd.DataFrame, class_names: Sequence[str], held_out: Collection[int]
) -> pd.DataFrame:
    """Count what the last checkpoint takes images of held-out classes for.

    Args:
        predictions: columns epoch, domain, class_id and prediction.
        class_names: by class id.
        held_out: class ids that are held out in the test domain.

    Returns:
        domain, class_name, predicted (a class name), images; of each domain and class the most
        frequent answer first.
    """
    last = predictions[predictions["epoch"] == predictions["epoch"].max()]
    chosen = last[last["class_id"].isin(list(held_out))]
    counts = chosen.groupby(["domain", "class_id", "prediction"]).size().rename("images")
    table = counts.reset_index().sort_values(
        ["domain", "class_id", "images", "prediction"], ascending=[True, True, False, True]
    )
    names = np.asarray(class_names, dtype=object)
    return pd.DataFrame(
        {
            "domain": table["domain"].to_numpy(),
            "class_name": names[table["class_id"].to_numpy()],
            "predicted": names[table["prediction"].to_numpy()],
            "images": table["images"].to_numpy(),
        }
    )
