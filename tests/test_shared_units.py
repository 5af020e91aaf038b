"""Shared units: ranks and examples by hand, classes that a domain lacks, widths."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.activations import Features
from clip_mixtures.mechanisms.sae import SparseAutoencoder
from clip_mixtures.mechanisms.shared_units import rank_units, share_units, strongest_images
from clip_mixtures.mechanisms.sharing import chance_matrix, chance_score

DOMAINS = ("real", "sketch")


def plain_autoencoder(width: int) -> SparseAutoencoder:
    """Make one whose unit j is the positive part of input j."""
    model = SparseAutoencoder(width, 1)
    with torch.no_grad():
        model.encoder_weight.copy_(torch.eye(width))
        model.dictionary.copy_(torch.eye(width))
        model.encoder_bias.zero_()
    return model.eval()


def embedded(features: list[list[float]], images: list[tuple[str, int]]) -> Features:
    frame = pd.DataFrame(images, columns=["domain", "class_id"]).assign(row=range(len(images)))
    return Features(features=np.array(features, dtype=np.float32), images=frame)


def test_units_rank_by_the_domain_that_uses_them_least() -> None:
    # Two classes with 4 real images and 2 sketches each; three units.
    counts = np.array([[[4, 2, 0], [1, 2, 2]], [[4, 0, 4], [2, 2, 0]]])
    table = rank_units(counts, np.array([[4, 2], [4, 2]]), ["ant", "bee"], DOMAINS)
    assert table.to_dict("records") == [
        {"unit": 0, "class": "bee", "shared": 1.0, "real": 1.0, "sketch": 1.0},
        {"unit": 1, "class": "ant", "shared": 0.5, "real": 0.5, "sketch": 1.0},
    ]
    with pytest.raises(ValueError, match="do not match 1 classes"):
        rank_units(counts, np.array([[4, 2], [4, 2]]), ["ant"], DOMAINS)


@pytest.mark.parametrize("batch_size", [2, 100])
def test_the_strongest_images_of_each_domain(batch_size: int) -> None:
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    domains = ["real", "real", "sketch", "sketch", "sketch"]
    found = strongest_images(
        plain_autoencoder(2), features, domains, [0, 1], DOMAINS, 2, batch_size
    )
    assert found.tolist() == [[[0, 1], [2, -1]], [[1, -1], [3, 2]]]


def wide(*features: tuple[int, float]) -> list[list[float]]:
    """Make features of twenty numbers, all but one of them zero."""
    return [[value if place == unit else 0.0 for place in range(20)] for unit, value in features]


def test_what_the_domains_share() -> None:
    found = embedded(
        wide((0, 2.0), (1, 3.0), (0, 5.0), (2, 1.0)),
        [("real", 0), ("real", 1), ("sketch", 0), ("sketch", 1)],
    )
    shared = share_units(plain_autoencoder(20), found, [0, 1], "sketch", shown=2, examples=1)
    # Class 0 uses unit 0 in both domains; class 1 uses another unit in each.
    assert [np.flatnonzero(row).tolist() for row in shared.counts.reshape(4, 20)] == [
        [0], [0], [1], [2],
    ]  # fmt: skip
    assert shared.units[["unit", "class", "shared"]].values.tolist() == [[0, 0, 1.0]]
    assert shared.examples.tolist() == [[[0], [2]]]
    pairs = shared.table.set_index(["class", "domain_a", "domain_b"])["shared"]
    # One unit of the 5, 10, 15 and 20 places.
    wanted = np.mean([1 / k for k in (5, 10, 15, 20)])
    assert pairs[0, "real", "sketch"] == pytest.approx(wanted)
    assert pairs[1, "real", "sketch"] == 0
    assert shared.score.estimate == pytest.approx(wanted / 2)
    assert shared.score.n == 2
    # Sketches of class 0 use no unit of real class 1, and the other way round.
    assert shared.chance == 0


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_the_score_stands_beside_its_chance_level(protocol: str) -> None:
    """Every image has units 0 to 4; class 1 has unit 5 as well in both domains."""
    common = [1.0] * 5 + [0.0] * 25
    one = [1.0] * 5 + [2.0] + [0.0] * 24
    found = embedded(
        [common, one, common, one], [("real", 0), ("real", 1), ("sketch", 0), ("sketch", 1)]
    )
    shared = share_units(plain_autoencoder(30), found, [0, 1], "sketch", protocol=protocol)
    assert shared.chance == chance_score(
        chance_matrix(shared.counts, protocol=protocol), DOMAINS, "sketch", protocol
    )
    assert 0 < shared.chance < shared.score.estimate


def test_a_class_that_a_domain_lacks_is_left_out() -> None:
    found = embedded(wide((0, 2.0), (1, 3.0), (0, 5.0)), [("real", 0), ("real", 1), ("sketch", 0)])
    shared = share_units(plain_autoencoder(20), found, [1, 0], "real")
    assert (shared.classes, shared.left_out) == ((0,), (1,))
    assert math.isnan(shared.chance)
    with pytest.raises(UserError, match="none of the 1 held-out classes has test images in every"):
        share_units(plain_autoencoder(20), found, [1], "real")


def test_an_autoencoder_of_another_width_is_refused() -> None:
    found = embedded(wide((0, 1.0), (0, 1.0)), [("real", 0), ("sketch", 0)])
    with pytest.raises(UserError, match="takes features of 30 numbers, the checkpoint gives 20"):
        share_units(plain_autoencoder(30), found, [0], "real")
