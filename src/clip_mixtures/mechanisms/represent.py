"""All tables of the embedding of one checkpoint, from its activations."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import pandas as pd

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.activations import Activations
from clip_mixtures.mechanisms.config import EmbeddingConfig
from clip_mixtures.mechanisms.distances import (
    class_distances,
    domain_distances,
    mean_difference,
    top_dimensions,
)
from clip_mixtures.mechanisms.embedding import domain_maps, subsample
from clip_mixtures.mechanisms.separation import separation

# Above this many images the neighbours of all of them cost more than they tell.
_MOST_IMAGES = 12_000


def represent(
    activations: Activations,
    test_domain: str,
    config: EmbeddingConfig,
    resamples: int,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Map and measure an embedding.

    Args:
        activations: of the checkpoint; features (N, D).
        test_domain: which the second map lacks, and which is compared with the others.
        config: of maps and neighbours.
        resamples: of the bootstrap over classes.
        seed: of the bootstrap.

    Returns:
        ``maps`` (see :func:`embedding.domain_maps`, with ``class_id``), ``distances`` and
        ``class_distances``, ``separation``, ``mean_difference`` (of each domain from the others,
        with a column ``domain``) and ``top_dimensions`` (of the test domain, for the images on the
        map).

    Raises:
        UserError: when there are no images of the test domain.
        ValueError: see there, as for features that are all the same.
    """
    features, images = activations.features, activations.images
    domains, classes = images["domain"].to_numpy(), images["class_id"].to_numpy()
    _check_images(domains, test_domain, config)
    maps = domain_maps(
        features,
        domains,
        without=test_domain,
        per_domain=config.per_domain,
        seed=config.seed,
        densmap=config.densmap,
        neighbours=config.neighbours,
        min_dist=config.min_dist,
    )
    maps["class_id"] = classes[maps["row"]]
    chosen = maps.loc[maps["map"] == "all", "row"].to_numpy()
    names = list(dict.fromkeys(domains))
    measured = subsample(domains, max(_MOST_IMAGES // len(names), 1), config.seed)
    options = {"resamples": resamples, "seed": seed}
    return {
        "maps": maps,
        "distances": domain_distances(features, domains),
        "class_distances": class_distances(features, domains, classes, **options),
        "separation": separation(
            features[measured],
            domains[measured],
            classes[measured],
            neighbours=config.purity_neighbours,
            **options,
        ),
        "mean_difference": pd.concat(
            [mean_difference(features, domains, name).assign(domain=name) for name in names],
            ignore_index=True,
        ),
        "top_dimensions": top_dimensions(features[chosen], domains[chosen], test_domain),
    }


def _check_images(domains: npt.NDArray[Any], test_domain: str, config: EmbeddingConfig) -> None:
    """Refuse more neighbours than the smaller map, or the whole set, has images."""
    counts = pd.Series(domains).value_counts().clip(upper=config.per_domain)
    fewest = int(counts.drop(test_domain, errors="ignore").sum())
    for name, value, images in (
        ("neighbours", config.neighbours, fewest),
        ("purity_neighbours", config.purity_neighbours, len(domains)),
    ):
        if value >= images:
            raise UserError(
                f"mechanisms.embedding.{name}: is {value}, of {images} images; allowed: fewer than "
                "there are images"
            )
