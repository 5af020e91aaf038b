"""Choose a few test images to show: the same ones for every run, some right and some wrong."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

# Images for each test domain: those on which runs disagree, that all get right, all get wrong.
QUOTAS = {"contested": 6, "right": 3, "wrong": 3}
# Pixels; twice the side on the page, for screens that have two to its one.
THUMBNAIL = 96
_QUALITY = 80


def choose_examples(answers: pd.DataFrame) -> list[int]:
    """Choose images of held-out classes on which runs can be told apart.

    At most one image a class: six on which runs disagree, the most evenly split first; three that
    all runs get right and three that all get wrong, spread over the classes. What one kind lacks
    the others fill. So these images say nothing about how often runs are right.

    Args:
        answers: a row an image and run, the same images for every run: ``row`` (of the index),
            ``class_id`` and ``prediction``.

    Returns:
        Rows of the index, those that most runs get right first.
    """
    right = (answers["prediction"] == answers["class_id"]).groupby(answers["row"])
    images = pd.DataFrame(
        {
            "share": right.mean(),
            "class_id": answers.groupby("row")["class_id"].first(),
        }
    ).reset_index()
    images["evenness"] = (images["share"] - 0.5).abs()
    images["kind"] = np.select(
        [images["share"] == 1, images["share"] == 0], ["right", "wrong"], "contested"
    )
    chosen = images.iloc[:0]
    for kind, quota in QUOTAS.items():
        chosen = _with_more(chosen, images[images["kind"] == kind], quota)
    for kind in QUOTAS:
        missing = sum(QUOTAS.values()) - len(chosen)
        chosen = _with_more(chosen, images[images["kind"] == kind], missing)
    order = chosen.sort_values(["share", "class_id"], ascending=[False, True], kind="stable")
    return [int(row) for row in order["row"]]


def _with_more(chosen: pd.DataFrame, images: pd.DataFrame, most: int) -> pd.DataFrame:
    fresh = images[~images["class_id"].isin(chosen["class_id"])]
    fresh = fresh.sort_values(["evenness", "row"], kind="stable").drop_duplicates("class_id")
    if len(fresh) > most and fresh["evenness"].nunique() == 1:
        # All are alike: rather than the first classes of the alphabet, some of all of it.
        fresh = fresh.iloc[np.linspace(0, len(fresh) - 1, most).round().astype(int)]
    return pd.concat([chosen, fresh.head(most)])


def webp(image: npt.NDArray[np.uint8]) -> bytes:
    """Return an (H, W, 3) image as a small WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="WEBP", quality=_QUALITY, method=6)
    return buffer.getvalue()
