"""The features that a sparse autoencoder learns from: a checkpoint's embedding of training images.

They are unit vectors, as the study's are (appendix C.1). The study takes every training image of
every domain, also those that the mixture holds out, and the base set's. Features that were written
by a run that was killed are used again if nothing has changed that they follow from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from clip_mixtures.evaluation.predictions import EvaluationSet, decoded
from clip_mixtures.files import sha256_file
from clip_mixtures.mechanisms.activations import FloatArray
from clip_mixtures.mechanisms.checkpoint import Checkpoint
from clip_mixtures.mechanisms.collect import features_of
from clip_mixtures.mechanisms.shards import MANIFEST, ShardSet, open_shards, write_shards
from clip_mixtures.training.data import fingerprint


def features_fingerprint(
    checkpoint: Path, indices: Sequence[Path], verification: Path, code: str
) -> str:
    """Return what stands for everything that features follow from, short enough for a folder name.

    Args:
        checkpoint: file of the weights.
        indices: index files of the images.
        verification: folder with what was found when every image was opened.
        code: what stands for the code that makes them.
    """
    found = [verification / index.name for index in indices]
    return fingerprint(*map(sha256_file, (checkpoint, *indices, *found)), code)


def training_features(
    folder: Path,
    checkpoint: Checkpoint,
    sets: Sequence[EvaluationSet],
    *,
    dtype: str,
    workers: int,
) -> ShardSet:
    """Embed images into shards, or open those that are there.

    Args:
        folder: where the shards go; its name must stand for everything they follow from.
        checkpoint: whose features.
        sets: images, one set after the other.
        dtype: of the features on disk.
        workers: threads that decode.

    Raises:
        UserError: for an image that cannot be read, or a damaged shard.
        ValueError: for features that are not finite.
    """
    if (folder / MANIFEST).is_file():
        return open_shards(folder)
    return write_shards(folder, _features(checkpoint, sets, workers), dtype=dtype)


def features_of_tests(folder: Path, features: FloatArray, dtype: str) -> ShardSet:
    """Write the features of test images as shards, to judge an autoencoder by.

    Args:
        folder: where the shards go.
        features: (N, D) float32, of any length.
        dtype: of the features on disk.

    Raises:
        ValueError: for features that are not finite.
    """
    # A copy, for what is mapped cannot be written to, of which torch would warn.
    rows = torch.from_numpy(np.array(features))
    return write_shards(folder, [normalize(rows, dim=1)], dtype=dtype)


def _features(
    checkpoint: Checkpoint, sets: Sequence[EvaluationSet], workers: int
) -> Iterator[torch.Tensor]:
    for images in sets:
        portions = decoded(images, checkpoint.model.image_size, workers)
        for batch in features_of(checkpoint.tower, checkpoint.normalisation, images, portions):
            yield normalize(batch, dim=1)
