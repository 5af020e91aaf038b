"""One pass over images that adds up what the analyses need, and keeps nothing else.

The class means of all layers are added up as the images go by: the activations themselves, some
hundred gigabytes at the scale of the paper, are never kept. Everything is single precision or
better; the published analysis averages positions in half precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm import tqdm

from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.predictions import EvaluationSet, Portion
from clip_mixtures.mechanisms.activations import Activations
from clip_mixtures.mechanisms.towers import INPUT, Tower
from clip_mixtures.training.models import Normalisation, to_pixels

BATCH = 64


def collect(
    tower: Tower,
    normalisation: Normalisation,
    images: EvaluationSet,
    portions: Iterable[Portion],
    *,
    domains: Sequence[str],
    classes: int,
    epoch: int,
) -> Activations:
    """Read the activations of all layers but the input in one pass.

    Args:
        tower: of the checkpoint, on the device of the normalisation.
        normalisation: of its input.
        images: N index rows with ``domain`` and ``class_id``.
        portions: all of their pixels, see :func:`evaluation.predictions.decoded`.
        domains: in the order of the means.
        classes: how many there are.
        epoch: of the checkpoint, to be passed on.

    Raises:
        UserError: for activations that are not finite.
        ValueError: for an image of another domain or class, or portions that are not the whole set.
    """
    cells = _cells(images.frame, domains, classes)
    sums: dict[str, torch.Tensor] = {}
    features: list[torch.Tensor] = []
    for rows, pixels in _batches(normalisation, images, portions):
        where = torch.from_numpy(cells[rows]).to(pixels.device)
        with torch.inference_mode():
            for submodule, value in tower.trace(pixels):
                if submodule.name != INPUT:
                    # Half a batch of a large network's activations is gigabytes: none is kept.
                    pooled = submodule.neurons(value).float().mean(dim=1).double()
                    _check_finite(pooled, f"layer {submodule.name}", epoch)
                    _add(sums, submodule.name, where, pooled, len(domains) * classes)
            embedded = tower.head(value).float()
        _check_finite(embedded, "the embedding", epoch)
        features.append(embedded.cpu())
    counts = np.bincount(cells, minlength=len(domains) * classes)
    with np.errstate(invalid="ignore"):
        means = {
            name: (total.cpu().numpy() / counts[:, None])
            .astype(np.float32)
            .reshape(len(domains), classes, -1)
            for name, total in sums.items()
        }
    return Activations(
        features=torch.cat(features).numpy(),
        images=pd.DataFrame(
            {
                "row": images.frame.index.to_numpy(dtype=np.int64),
                "domain": images.frame["domain"].to_numpy(dtype=object),
                "class_id": images.frame["class_id"].to_numpy(dtype=np.int32),
            }
        ),
        domains=tuple(domains),
        class_means=means,
        epoch=epoch,
    )


def features_of(
    tower: Tower,
    normalisation: Normalisation,
    images: EvaluationSet,
    portions: Iterable[Portion],
) -> Iterator[torch.Tensor]:
    """Embed images, a batch at a time, in order: (B, D) float32 on the tower's device.

    Raises:
        ValueError: when the portions are not the whole set.
    """
    for _, pixels in _batches(normalisation, images, portions):
        with torch.inference_mode():
            yield tower.run(pixels).float()


def _batches(
    normalisation: Normalisation, images: EvaluationSet, portions: Iterable[Portion]
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield rows and their normalised pixels, a batch at a time and in order."""
    seen = 0
    with tqdm(total=len(images.frame), desc=f"reading {images.name}", unit="img") as bar:
        for portion, pixels in portions:
            if portion.start != seen:
                raise ValueError(f"{images.name}: a portion begins at {portion.start}, not {seen}")
            for start in range(0, len(pixels), BATCH):
                batch = torch.from_numpy(pixels[start : start + BATCH]).to(normalisation.device)
                yield slice(seen, seen + len(batch)), normalisation.apply(to_pixels(batch))
                seen += len(batch)
                bar.update(len(batch))
    if seen != len(images.frame):
        raise ValueError(f"{images.name}: {seen} images for {len(images.frame)} rows")


def _add(
    sums: dict[str, torch.Tensor], name: str, where: torch.Tensor, rows: torch.Tensor, cells: int
) -> None:
    """Add rows (B, C) to the sums (cells, C) of a layer."""
    if name not in sums:
        sums[name] = torch.zeros((cells, rows.shape[1]), dtype=rows.dtype, device=rows.device)
    sums[name].index_add_(0, where, rows)


def _cells(frame: pd.DataFrame, domains: Sequence[str], classes: int) -> npt.NDArray[np.int64]:
    """Number each image's domain and class."""
    of_domain = pd.Index(domains).get_indexer(pd.Index(frame["domain"]))
    labels = frame["class_id"].to_numpy(dtype=np.int64)
    if (of_domain < 0).any():
        strange = frame["domain"].iloc[int(np.argmin(of_domain))]
        raise ValueError(f"an image is of domain {strange!r}, not of {', '.join(domains)}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"class ids reach from {labels.min()} to {labels.max()}, of {classes}")
    return np.asarray(of_domain * classes + labels, dtype=np.int64)


def _check_finite(values: torch.Tensor, what: str, epoch: int) -> None:
    # A sum shows that a number is not finite, and costs little.
    if not torch.isfinite(values.sum()):
        raise UserError(
            f"{what} of the checkpoint of epoch {epoch} has activations that are not finite; its "
            "training diverged (lower the learning rate), or its checkpoint is damaged"
        )
