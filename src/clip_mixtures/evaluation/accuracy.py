"""Top-1 accuracy of zero-shot predictions, a class at a time and a domain at a time.

Every prediction is made in the full-way problem: the model picks among all classes of the study,
held out or not. The split into held-out and seen classes only decides which images are averaged.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

HELD_OUT = "held_out"
SEEN = "seen"
GROUPS = (HELD_OUT, SEEN)


def per_class_accuracy(
    labels: npt.NDArray[np.int64], predictions: npt.NDArray[np.int64]
) -> pd.DataFrame:
    """Count images and correct predictions of every class that occurs in ``labels``.

    Args:
        labels: true class ids, shape (N,), integer.
        predictions: predicted class ids, shape (N,), integer.

    Returns:
        One row a class, by rising class id: ``label`` (int64), ``correct`` (int64, images),
        ``images`` (int64), ``accuracy`` (float64, fraction in [0, 1]; the recall of the class).

    Raises:
        ValueError: the arrays are empty, differ in length, or do not hold integer ids.
    """
    check_predictions(labels, predictions)
    classes, positions, images = np.unique(labels, return_inverse=True, return_counts=True)
    correct = np.bincount(positions[labels == predictions], minlength=len(classes))
    return pd.DataFrame(
        {
            "label": classes.astype(np.int64),
            "correct": correct.astype(np.int64),
            "images": images.astype(np.int64),
            "accuracy": correct / images,
        }
    )


def accuracy_table(
    labels: npt.NDArray[np.int64],
    predictions: npt.NDArray[np.int64],
    domains: npt.NDArray[np.str_],
    held_out: Collection[int],
) -> pd.DataFrame:
    """Average the accuracy of held-out and of seen classes in every domain.

    Args:
        labels: true class ids, shape (N,), integer.
        predictions: predicted class ids among all classes, shape (N,), integer.
        domains: the domain of each image, shape (N,), strings.
        held_out: ids of the classes that are held out of the test domain in training. The same
            classes make the ``held_out`` group in every domain.

    Returns:
        One row a (domain, group) that has images; domains in the order in which they first
        appear, ``held_out`` before ``seen``. Columns: ``domain``, ``group``, ``balanced`` (mean
        over the classes present of their recall; each class weighs the same), ``micro`` (mean over
        images), ``images``, ``classes``. Accuracies are fractions in [0, 1].

    Raises:
        ValueError: the arrays are empty, differ in length, or do not hold integer ids.
    """
    check_predictions(labels, predictions)
    if np.shape(domains) != np.shape(labels):
        raise ValueError(
            f"domains has shape {np.shape(domains)} but labels has {np.shape(labels)}; "
            "give one domain name an image"
        )
    # Codes instead of names keep the order of first appearance through the sorting group-by.
    codes, names = pd.factorize(np.asarray(domains, dtype=object))
    images = pd.DataFrame(
        {
            "domain": codes,
            "seen": ~np.isin(labels, np.fromiter(held_out, dtype=np.int64)),
            "label": labels,
            "correct": labels == predictions,
        }
    )
    by_class = images.groupby(["domain", "seen", "label"])["correct"].agg(["mean", "sum", "size"])
    by_group = by_class.groupby(level=["domain", "seen"]).agg(
        balanced=("mean", "mean"),
        correct=("sum", "sum"),
        images=("size", "sum"),
        classes=("size", "size"),
    )
    position = by_group.index.get_level_values("domain").to_numpy()
    is_seen = by_group.index.get_level_values("seen").to_numpy()
    return pd.DataFrame(
        {
            "domain": np.asarray(names, dtype=object)[position],
            "group": np.where(is_seen, SEEN, HELD_OUT),
            "balanced": by_group["balanced"].to_numpy(),
            "micro": (by_group["correct"] / by_group["images"]).to_numpy(),
            "images": by_group["images"].to_numpy(dtype=np.int64),
            "classes": by_group["classes"].to_numpy(dtype=np.int64),
        }
    )


def check_predictions(labels: npt.NDArray[Any], predictions: npt.NDArray[Any]) -> None:
    """Refuse arrays that cannot be labels and predictions of the same images.

    Raises:
        ValueError: the arrays are empty, not of shape (N,), differ in length, or do not hold
            integer class ids.
    """
    for name, values in (("labels", labels), ("predictions", predictions)):
        array = np.asarray(values)
        if array.ndim != 1:
            raise ValueError(
                f"{name} has shape {array.shape}; give one class id an image, shape (N,)"
                " (take the argmax of scores first)"
            )
        if array.size and not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} has dtype {array.dtype}; give integer class ids")
    if len(labels) != len(predictions):
        raise ValueError(
            f"{len(labels)} labels but {len(predictions)} predictions; "
            "both must describe the same images in the same order"
        )
    if len(labels) == 0:
        raise ValueError("no images to score; the selection of domain and classes is empty")
