"""What the domains share of an autoencoder's units: scores, the units themselves, and examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn.functional import normalize

from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.statistics import Interval
from clip_mixtures.mechanisms.activations import Features
from clip_mixtures.mechanisms.sae import SparseAutoencoder
from clip_mixtures.mechanisms.sharing import (
    Counts,
    Floats,
    Ids,
    chance_matrix,
    chance_score,
    feature_histograms,
    score,
    sharing_matrix,
    sharing_table,
)

IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class SharedUnits:
    """What the domains share for the held-out classes.

    Attributes:
        classes: class ids that every domain has images of.
        left_out: held-out class ids that some domain has no images of.
        counts: images that have a unit among their strongest, (classes, domains, m).
        table: the sharing of every two domains in every class, see :func:`sharing.sharing_table`.
        score: of the test domain, over classes.
        chance: what the score would be between different classes, see
            :func:`sharing.chance_score`; NaN with one class.
        units: the most shared units, see :func:`rank_units`.
        examples: places of the images that activate the first of them most, (units, domains,
            images); -1 where there are none.
    """

    classes: tuple[int, ...]
    left_out: tuple[int, ...]
    counts: Counts
    table: pd.DataFrame
    score: Interval
    chance: float
    units: pd.DataFrame
    examples: IntArray


def share_units(
    model: SparseAutoencoder,
    found: Features,
    held_out: Sequence[int],
    test_domain: str,
    *,
    protocol: str = "corrected",
    resamples: int = 1000,
    seed: int = 0,
    shown: int = 8,
    examples: int = 3,
) -> SharedUnits:
    """Compare the units that the domains use for the held-out classes (appendix C.1).

    Args:
        model: the autoencoder, trained on features of the same checkpoint.
        found: embeddings of the test images by the checkpoint.
        held_out: class ids to compare, in order.
        test_domain: whose score is wanted.
        protocol: "corrected" or "published", see :mod:`sharing`.
        resamples: of the bootstrap over classes.
        seed: of the bootstrap.
        shown: units of which to find examples.
        examples: images of each in a domain.

    Raises:
        UserError: when no held-out class has images in every domain, or the autoencoder is of
            features of another width.
    """
    features = normalize(torch.from_numpy(np.array(found.features)), dim=1)
    if features.shape[1] != model.inputs:
        raise UserError(
            f"the autoencoder takes features of {model.inputs} numbers, the checkpoint gives "
            f"{features.shape[1]}; train it on this checkpoint (`dvc repro`, stage sae)"
        )
    images, domains = found.images, found.domains
    numbers = pd.crosstab(images["class_id"], images["domain"]).reindex(
        index=list(held_out), columns=list(domains), fill_value=0
    )
    everywhere = (numbers > 0).all(axis=1)
    classes = [class_id for class_id in held_out if everywhere[class_id]]
    if not classes:
        raise UserError(
            f"none of the {len(held_out)} held-out classes has test images in every domain; hold "
            "out other classes, or leave a domain out of the corpus"
        )
    class_ids, domain_ids = images["class_id"].to_numpy(), images["domain"].to_numpy()
    counts = feature_histograms(model, features, class_ids, domain_ids, classes, domains)
    units = rank_units(counts, numbers.loc[classes].to_numpy(dtype=np.int64), classes, domains)
    most = units["unit"].head(shown).tolist()
    return SharedUnits(
        classes=tuple(classes),
        left_out=tuple(class_id for class_id in held_out if not everywhere[class_id]),
        counts=counts,
        table=sharing_table(counts, classes, domains, protocol=protocol),
        score=score(
            sharing_matrix(counts, protocol=protocol),
            domains,
            test_domain,
            protocol,
            resamples=resamples,
            seed=seed,
        ),
        chance=chance_score(
            chance_matrix(counts, protocol=protocol), domains, test_domain, protocol
        ),
        units=units,
        examples=strongest_images(model, features, domain_ids, most, domains, examples),
    )


def rank_units(
    counts: Counts,
    images: IntArray,
    classes: Sequence[Hashable],
    domains: Sequence[Hashable],
) -> pd.DataFrame:
    """Rank units by how regularly every domain uses them for a class.

    For a class, a unit is as shared as the domain that uses it least: the smallest share, over
    domains, of the class's images that have it among their strongest. A unit counts by the class
    that it is shared most for.

    Args:
        counts: images that have a unit among their strongest, (classes, domains, m), see
            :func:`sharing.histograms`.
        images: images of each class in each domain, (classes, domains).
        classes: their names or ids.
        domains: their names.

    Returns:
        A row a unit that all domains use for some class, the most shared first: ``unit``,
        ``class``, ``shared`` (a fraction), and a column for each domain with its share of that
        class's images.

    Raises:
        ValueError: arrays that do not match.
    """
    if counts.shape[:2] != images.shape or images.shape != (len(classes), len(domains)):
        raise ValueError(
            f"counts {counts.shape} and images {images.shape} do not match {len(classes)} classes "
            f"in {len(domains)} domains"
        )
    shares = counts / np.maximum(images, 1)[:, :, None]
    least = shares.min(axis=1)
    best = least.argmax(axis=0)
    units = np.arange(counts.shape[2])
    table = pd.DataFrame(
        {
            "unit": units,
            "class": [classes[place] for place in best],
            "shared": least[best, units],
            **{str(name): shares[best, place, units] for place, name in enumerate(domains)},
        }
    )
    shared = table[table["shared"] > 0]
    return shared.sort_values(["shared", "unit"], ascending=[False, True], ignore_index=True)


def strongest_images(
    model: SparseAutoencoder,
    features: Floats,
    domain_ids: Ids,
    units: Sequence[int],
    domains: Sequence[Hashable],
    count: int,
    batch_size: int = 2048,
) -> IntArray:
    """Find the images of each domain that activate chosen units most.

    Args:
        model: the autoencoder, in evaluation mode.
        features: normalised image features, (N, n); a memory map will do.
        domain_ids: of each image, (N,).
        units: which.
        domains: in which order.
        count: images of each.
        batch_size: images to encode at a time.

    Returns:
        Places among the N images, (units, domains, count) int64; -1 where fewer images of a domain
        activate a unit at all.

    Raises:
        ValueError: when the features' width is not that of the autoencoder.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(features), batch_size):
            batch = torch.as_tensor(features[start : start + batch_size])
            codes = model.encode(batch.to(model.tied_bias.device))
            parts.append(codes[:, list(units)].cpu())
    activity = torch.cat(parts).numpy()
    of_domain = np.asarray(domain_ids)
    found = np.full((len(units), len(domains), count), -1, dtype=np.int64)
    for place, domain in enumerate(domains):
        rows = np.flatnonzero(of_domain == domain)
        for number, values in enumerate(activity[rows].T):
            order = np.argsort(-values, kind="stable")[:count]
            active = rows[order[values[order] > 0]]
            found[number, place, : len(active)] = active
    return found
