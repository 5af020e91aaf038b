"""Predictions of every checkpoint of a run in one pass: each image is decoded once.

The images go by in portions that fit into memory, and every checkpoint sees a portion before the
next one comes; while they do, threads decode the next one. ImageNet's validation set and all test
domains pass by, so one run serves every test domain.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.pixels import pack
from clip_mixtures.evaluation.readers import Reader
from clip_mixtures.evaluation.zero_shot import rank
from clip_mixtures.index import read_index
from clip_mixtures.verification import verification_of

# Predictions say whether the true class is among the first so many.
TOP = 5
# A portion of decoded images; two are in memory at a time.
PORTION_BYTES = 1 << 30

_COLUMNS = (
    "path",
    "domain",
    "class_id",
    "split",
    "archive",
    "offset",
    "length",
    "compression",
)
Portion: TypeAlias = tuple[slice, npt.NDArray[np.uint8]]


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Images to classify.

    Attributes:
        name: "domains" or "imagenet": which classes compete.
        frame: index rows; their labels are row numbers of the index.
        root: the corpus root.
    """

    name: str
    frame: pd.DataFrame
    root: Path


def evaluation_set(
    name: str, index: Path, verification: Path, split: str = "test"
) -> EvaluationSet:
    """Return the images of a split that can be read.

    Args:
        name: of the set.
        index: its index file.
        verification: folder with what was found when every image was opened.
        split: "train" or "test".

    Raises:
        UserError: for an index or a verification that is absent or damaged.
    """
    readable = verification_of(index, verification)["readable"]
    # Captions are the bulk of a large index, and of no use here.
    whole = read_index(index, columns=_COLUMNS)
    return EvaluationSet(name, whole.frame[(whole.frame["split"] == split) & readable], whole.root)


def decoded(
    images: EvaluationSet, size: int, workers: int = 1, portion_bytes: int = PORTION_BYTES
) -> Iterator[Portion]:
    """Decode a set portion by portion, the next one in the background.

    Args:
        images: the set.
        size: side of the square images in pixels.
        workers: threads that decode.
        portion_bytes: memory of a portion; at least one image is decoded.

    Yields:
        Which rows, and their pixels (n, size, size, 3) uint8, as open_clip's evaluation transform
        makes them.

    Raises:
        UserError: for the first image that cannot be read.
    """
    rows = max(portion_bytes // (3 * size * size), 1)
    portions = [slice(start, start + rows) for start in range(0, len(images.frame), rows)]
    with ThreadPoolExecutor(workers) as pool:
        upcoming = _start(pool, workers, images, portions[0], size) if portions else None
        for number, portion in enumerate(portions):
            assert upcoming is not None
            pixels, tasks = upcoming
            for task in tasks:
                task.result()
            following = portions[number + 1 : number + 2]
            upcoming = _start(pool, workers, images, following[0], size) if following else None
            yield portion, pixels


def _start(
    pool: ThreadPoolExecutor, workers: int, images: EvaluationSet, portion: slice, size: int
) -> tuple[npt.NDArray[np.uint8], list[Future[None]]]:
    frame = images.frame.iloc[portion]
    pixels = np.empty((len(frame), size, size, 3), dtype=np.uint8)
    bounds = np.linspace(0, len(frame), workers + 1).astype(int)
    # Every task opens the archives for itself: a reader belongs to one thread.
    tasks = [
        pool.submit(pack, frame.iloc[start:end], images.root, size, pixels[start:end])
        for start, end in itertools.pairwise(bounds)
        if end > start
    ]
    return pixels, tasks


def predict_checkpoints(
    reader: Reader,
    checkpoints: Mapping[int, Path],
    images: EvaluationSet,
    portions: Iterable[Portion],
    progress: bool = True,
) -> pd.DataFrame:
    """Classify a set with every checkpoint, over all of its classes.

    Args:
        reader: of the kind of training.
        checkpoints: epoch to file.
        images: the set, N rows with domain and class_id.
        portions: all of its pixels, see :func:`decoded`.
        progress: whether to show a bar.

    Returns:
        One row a checkpoint and image: epoch, row, domain, class_id, prediction, and the rank of
        the true class if it is among the first five (0 is best), else -1.

    Raises:
        UserError: for a checkpoint that cannot be loaded or whose scores are not finite.
        ValueError: when the portions are not the whole set.
    """
    labels = images.frame["class_id"].to_numpy(dtype=np.int32)
    best = np.full((len(checkpoints), len(labels), TOP), -1, dtype=np.int32)
    seen = 0
    bar = tqdm(
        total=len(checkpoints) * len(labels),
        desc=f"evaluating {images.name}",
        unit="img",
        disable=not progress,
    )
    with bar:
        for portion, pixels in portions:
            for number, path in enumerate(checkpoints.values()):
                reader.load(path)
                # With fewer classes than places the last places stay empty.
                ranked = _ranked(reader, path, images.name, pixels)
                best[number, portion, : ranked.shape[1]] = ranked
                bar.update(len(pixels))
            seen += len(pixels)
    if seen != len(labels):
        raise ValueError(f"{images.name}: {seen} images for {len(labels)} rows")
    return _table(list(checkpoints), images, labels, best)


def _ranked(
    reader: Reader, path: Path, name: str, pixels: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int64]:
    try:
        return rank(lambda batch: reader.logits(batch, name), reader.model, pixels, TOP)
    except FloatingPointError as error:
        raise UserError(
            f"{path}: {error} ({name}); the training diverged, or evaluate.precision is too coarse "
            "for it: try fp32"
        ) from None


def _table(
    epochs: list[int],
    images: EvaluationSet,
    labels: npt.NDArray[np.int32],
    best: npt.NDArray[np.int32],
) -> pd.DataFrame:
    found = best == labels[None, :, None]
    ranks = np.where(found.any(axis=2), found.argmax(axis=2), -1).astype(np.int8)
    return pd.DataFrame(
        {
            "epoch": np.repeat(np.array(epochs, dtype=np.int32), len(labels)),
            "row": np.tile(images.frame.index.to_numpy(dtype=np.int64), len(epochs)),
            "domain": np.tile(images.frame["domain"].to_numpy(dtype=object), len(epochs)),
            "class_id": np.tile(labels, len(epochs)),
            "prediction": best[:, :, 0].reshape(-1),
            "rank": ranks.reshape(-1),
        }
    )
