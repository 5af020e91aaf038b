"""Measure what the published rules of the representation analyses change, on made-up data.

    python benchmarks/representation_rules.py

Prints the numbers that docs/REPRODUCTION.md quotes: the classes of CKA and its intervals, the start
of sparse autoencoders, dead units, the logged validation loss, ties and zeros in the sharing of
units, the domain of the score, and the draw of images for the map. Everything is seeded but the
last, which is about draws that are not. Two minutes on one core.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn.functional import normalize

from clip_mixtures.mechanisms.cka import PUBLISHED_ORDER, cka_table, linear_cka
from clip_mixtures.mechanisms.config import SaeConfig
from clip_mixtures.mechanisms.sae import SparseAutoencoder, load_sae
from clip_mixtures.mechanisms.sae_curves import read_curves
from clip_mixtures.mechanisms.sae_training import train_sae
from clip_mixtures.mechanisms.shards import ShardSet, write_shards
from clip_mixtures.mechanisms.sharing import (
    KS,
    chance_matrix,
    chance_score,
    feature_histograms,
    score,
    sharing_matrix,
)

Floats = npt.NDArray[np.float32]

_CLASSES, _HELD_OUT = 345, (0, 11, 13, 15, 25, 58, 174, 190, 197, 218, 225, 250, 305, 319, 320)
_STUDIES = 200
_INPUTS = 256
_DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
# Test images of a class; held-out classes of DomainNet have 42 to 150 on average by domain.
_IMAGES = (42, 45, 63, 150, 150, 61)
_TEST_SIZES = (14604, 15582, 21850, 51750, 52041, 20916)
_RECIPE = SaeConfig(epochs=20, batch_size=512, learning_rate=1e-3, l1=3e-4)


def _cka() -> None:
    stream = np.random.default_rng(0)
    common = stream.normal(size=(_CLASSES, 12))
    means = np.stack(
        [
            (common + 0.5 * stream.normal(size=common.shape)) @ stream.normal(size=(12, 1024))
            for _ in PUBLISHED_ORDER
        ]
    )
    means[PUBLISHED_ORDER.index("painting"), 300] = np.nan
    tables = _both({"layer": means})
    for subset in ("all", "seen"):
        classes = [sorted(set(table.loc[table["subset"] == subset, "classes"])) for table in tables]
        print(f"CKA, {subset}: classes published {classes[0]}, corrected {classes[1]}")
    print(f"CKA: numbers differ by up to {_difference(tables):.1e}")
    means[PUBLISHED_ORDER.index("sketch"), 7] = np.nan
    tables = _both({"layer": means})
    lost = [int(table["cka"].isna().sum()) for table in tables]
    print(
        f"CKA, a class without sketches: {lost[0]} of {len(tables[0])} numbers NaN as published, "
        f"{lost[1]} corrected"
    )


def _intervals(numbers: int) -> None:
    """Count how often intervals hold the truth: so many numbers in as much noise, CKA 1/4."""
    stream = np.random.default_rng(3)
    held = {"jackknife": 0, "percentile bootstrap": 0}
    for _ in range(_STUDIES):
        means = stream.normal(size=(40, numbers)) + stream.normal(size=(2, 40, numbers))
        found = cka_table({"layer": means}, ("a", "b"), (), kernels=("linear",)).iloc[0]
        held["jackknife"] += int(found["low"] <= 0.25 <= found["high"])
        drawn = stream.integers(40, size=(200, 40))
        resampled = [linear_cka(means[0, labels], means[1, labels]) for labels in drawn]
        low, high = np.quantile(resampled, [0.025, 0.975])
        held["percentile bootstrap"] += int(low <= 0.25 <= high)
    shares = ", ".join(f"{name} {times / _STUDIES:.1%}" for name, times in held.items())
    print(f"CKA, 40 classes of {numbers} numbers, 95 % intervals that hold the truth: {shares}")


def _both(means: dict[str, npt.NDArray[np.float64]]) -> list[pd.DataFrame]:
    return [
        cka_table(means, PUBLISHED_ORDER, _HELD_OUT, protocol=protocol)
        for protocol in ("published", "corrected")
    ]


def _difference(tables: list[pd.DataFrame]) -> float:
    return float((tables[0]["cka"] - tables[1]["cka"]).abs().max())


def _starts() -> None:
    generator = torch.Generator().manual_seed(0)
    largest = {
        protocol: float(
            SparseAutoencoder(1024, protocol=protocol, generator=generator)
            .encoder_weight.detach()
            .abs()
            .max()
        )
        for protocol in ("published", "corrected")
    }
    ratio = largest["corrected"] / largest["published"]
    words = ", ".join(f"{name} {value:.4f}" for name, value in largest.items())
    print(f"start, 1024 -> 4096: largest encoder weight {words}, ratio {ratio:.1f}")


def _labelled() -> tuple[Floats, list[int], list[str]]:
    """Make images whose features are sums of directions of their class, domain and own."""
    stream = np.random.default_rng(1)
    of_class = stream.normal(size=(60, 6, _INPUTS))
    of_domain = stream.normal(size=(len(_DOMAINS), 3, _INPUTS))
    pool = stream.normal(size=(400, _INPUTS))
    rows, classes, domains = [], [], []
    for label in range(60):
        for place, (domain, images) in enumerate(zip(_DOMAINS, _IMAGES, strict=True)):
            # A domain shows some aspects of a class more than others.
            stress = stream.uniform(0, 1, size=6)
            for _ in range(images):
                made = (stress * stream.uniform(0, 1, 6)) @ of_class[label]
                made += stream.uniform(0, 0.7, 3) @ of_domain[place]
                made += stream.uniform(0, 0.5, 5) @ pool[stream.integers(400, size=5)]
                rows.append(made)
            classes += [label] * images
            domains += [domain] * images
    features = normalize(torch.from_numpy(np.stack(rows)), dim=1).half().numpy()
    return features, classes, domains


def _trained(
    shards: ShardSet, folder: Path, config: SaeConfig
) -> tuple[SparseAutoencoder, pd.DataFrame]:
    with contextlib.redirect_stderr(io.StringIO()):
        train_sae(shards, config, 0, folder, folder / "sae.safetensors", validation=shards)
    return load_sae(folder / "sae.safetensors"), read_curves(folder / "curves")


def _autoencoders(folder: Path) -> tuple[SparseAutoencoder, Floats, list[int], list[str]]:
    features, classes, domains = _labelled()
    order = np.random.default_rng(2).permutation(len(features))
    shards = write_shards(folder / "features", [features[order]])
    published = dataclasses.replace(_RECIPE, protocol="published")
    recipes = {
        "corrected start": _RECIPE,
        "published start": published,
        "published start, dead units made anew": dataclasses.replace(
            published, resample_every=400, resample_rows=16_384
        ),
    }
    models = {}
    print(f"autoencoders {_INPUTS} -> {4 * _INPUTS}, {len(features)} features, batch 512")
    for place, (name, recipe) in enumerate(recipes.items()):
        models[name], curves = _trained(shards, folder / str(place), recipe)
        for step in (100, int(curves["step"].max())):
            point = curves.iloc[(curves["step"] - step).abs().argmin()]
            print(
                f"  {name}, step {point['step']:.0f}: explained variance "
                f"{point['explained_variance']:.3f}, active units {point['l0']:.1f}, never fire "
                f"{point['dead_share']:.1%}"
            )
        last = curves.iloc[-1]
        parts = [last[f"validation_{part}"] for part in ("l1", "penalty", "reconstruction", "loss")]
        print(f"  {name}: validation loss {parts[3]:.5f}, mean of the four {np.mean(parts):.4f}")
    return models["corrected start"], features, classes, domains


def _sharing(
    model: SparseAutoencoder, features: Floats, classes: list[int], domains: list[str]
) -> None:
    asked = list(range(15))
    with contextlib.redirect_stderr(io.StringIO()):
        counts = feature_histograms(model, features, classes, domains, asked, _DOMAINS)
    ties = zeros = cells = 0
    for histogram in counts.reshape(-1, counts.shape[-1]):
        ordered = np.sort(histogram)[::-1]
        for k in KS:
            cells += 1
            ties += int(ordered[k - 1] == ordered[k] > 0)
            zeros += int(ordered[k - 1] == 0)
    print(f"sharing: of {cells} k-th places {ties} are ties, {zeros} have a count of zero")
    matrices = {name: sharing_matrix(counts, protocol=name) for name in ("published", "corrected")}
    by_class = np.abs(matrices["published"] - matrices["corrected"])
    print(
        f"sharing of a pair in a class: differs by {by_class.mean():.3f} on average, "
        f"{by_class.max():.3f} at most"
    )
    chances = chance_matrix(counts)
    for domain in _DOMAINS:
        found = {name: score(matrix, _DOMAINS, domain, name) for name, matrix in matrices.items()}
        corrected = found["corrected"]
        print(
            f"  score of {domain}: published {found['published'].estimate:.3f}, corrected "
            f"{corrected.estimate:.3f} [{corrected.low:.3f}, {corrected.high:.3f}], by chance "
            f"{chance_score(chances, _DOMAINS, domain):.3f}"
        )


def _map() -> None:
    shares = []
    for images in _TEST_SIZES:
        one, other = (np.random.default_rng().choice(images, 2000, replace=False) for _ in range(2))
        shares.append(len(np.intersect1d(one, other)) / 2000)
    expected = [2000 / images for images in _TEST_SIZES]
    print(
        f"map: two draws that are not seeded have {np.mean(shares):.1%} of their images in common "
        f"(expected {math.fsum(expected) / len(expected):.1%})"
    )


def main() -> None:
    """Print what each rule changes."""
    torch.set_num_threads(1)
    _cka()
    for numbers in (5, 20):
        _intervals(numbers)
    _starts()
    with tempfile.TemporaryDirectory() as name:
        _sharing(*_autoencoders(Path(name)))
    _map()


if __name__ == "__main__":
    main()
