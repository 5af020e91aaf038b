"""Edges between neighbours: the published numbers, hand answers, every way to compute them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from circuit_towers import (
    Values,
    plain_edges,
    product_tower,
    small_images,
    small_resnet,
    text_rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attribution import LEFT, published

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms import edges as edges_module
from clip_mixtures.mechanisms import residual_edges
from clip_mixtures.mechanisms.circuits import edge_attributions, node_attributions, top_units
from clip_mixtures.mechanisms.towers import Tower, tower_of
from clip_mixtures.training.models import create_clip

PAIR_TEXT = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
PAIR_UNITS = {"pair": torch.tensor([0, 1]), "product": torch.tensor([0])}

_NUMBER = re.compile(r"\b\d[\d,]*")


def pair_images(*pixels: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([(*pixel, 9.0) for pixel in pixels], dtype=torch.float64).view(-1, 3, 1, 1)


def drawn_units(tower: Tower, images: torch.Tensor, share: float, seed: int = 0) -> Values:
    """Draw neurons of every submodule, in no order."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        values = tower.values(images, tower.names)
    return {
        name: torch.randperm(width, generator=generator)[: max(1, int(share * width))]
        for name, width in (
            (name, value.shape[tower[name].channel_axis]) for name, value in values.items()
        )
    }


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_edges_are_the_published_ones(
    shared_file: Callable[[str], Path], kind: torch.dtype, tolerance: float
) -> None:
    visual, text, images, label, answers = published(shared_file, kind)
    found = edge_attributions(visual, text, images, label, steps=10, protocol="published")
    assert {f"edge/{up}/{down}" for up, down in found} == {
        name for name in answers if name.startswith("edge/")
    }
    for (up, down), edges in found.items():
        expected = answers[f"edge/{up}/{down}"]
        assert edges.shape == expected.shape
        assert np.abs(edges.numpy() - expected).max() <= tolerance * np.abs(expected).max()


def test_published_edges_by_hand() -> None:
    # d = p q, y = s^2 p q: the error's slope is 2 (s^2 - 1) p q * s q along p, times -p. At s = 1
    # it is zero, at s = 1/2 it is 0.75 (p q)^2; the same along q; halved by the two steps.
    images = pair_images((2, 3))
    found = edge_attributions(product_tower(), PAIR_TEXT, images, 0, 2, units=PAIR_UNITS)
    assert list(found) == [("pair", "product")]
    torch.testing.assert_close(
        found["pair", "product"], torch.tensor([[0.375 * 36, 0.375 * 36]]).double()
    )


def test_images_are_counted_once_unless_as_published() -> None:
    one, two = pair_images((2, 3)), pair_images((2, 3), (1, 1))
    for protocol, divisor in (("published", 4), ("corrected", 2)):
        apart, together = (
            edge_attributions(product_tower(), PAIR_TEXT, images, 0, 2, protocol, units=PAIR_UNITS)
            for images in (one, two)
        )
        factor = apart["pair", "product"] / 36
        torch.testing.assert_close(together["pair", "product"], factor * (36 + 1) / divisor)


def test_corrected_edges_sum_to_the_error_that_is_left() -> None:
    visual, images = small_resnet((1, 2, 1, 1)), small_images()
    tower = tower_of(visual)
    with torch.no_grad():
        values = tower.values(images, tower.names)
    everything = {name: torch.arange(value.shape[1]) for name, value in values.items()}
    found = edge_attributions(visual, text_rows(), images, 0, 80, "corrected", units=everything)
    assert len(found) == 9
    for (up, down), edges in found.items():
        with torch.no_grad():
            zero = tower[down].function(torch.zeros_like(values[up]))
        error = tower[down].neurons(zero - values[down]).square().mean(dim=(0, 1))
        assert (edges.sum(dim=1) - error).abs().max() < 0.02 * error.max()


@pytest.mark.parametrize(("layers", "width"), [((1, 1, 1, 1), 4), ((2, 1, 1, 2), 8)])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_fast_edges_are_the_plain_formula(
    layers: tuple[int, ...], width: int, share: float
) -> None:
    visual, images = small_resnet(layers, width), small_images(3)
    tower = tower_of(visual)
    units = drawn_units(tower, images, share)
    found = edge_attributions(visual, text_rows(), images, 0, units=units)
    assert list(found) == list(itertools.pairwise(tower.names[1:]))
    for (up, down), edges in found.items():
        expected = plain_edges(tower, images, up, down, units, LEFT)
        torch.testing.assert_close(edges, expected, rtol=1e-10, atol=1e-15)


def test_edges_in_single_precision() -> None:
    visual, images = small_resnet((2, 1, 1, 2), 8), small_images(3)
    tower = tower_of(visual)
    units = drawn_units(tower, images, 0.2)
    expected = edge_attributions(visual, text_rows(), images, 0, units=units)
    found = edge_attributions(visual.float(), text_rows(), images.float(), 0, units=units)
    for pair, edges in found.items():
        assert edges.dtype == torch.float32
        # Where a product underflows there is nothing to compare.
        tolerance = 1e-5 * expected[pair].abs().max() + 1e-15
        assert (edges - expected[pair]).abs().max() <= tolerance, pair


@pytest.mark.parametrize("gathering", [True, False])
@pytest.mark.parametrize("few", ["upstream", "downstream"])
def test_every_way_through_a_residual_block_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, gathering: bool, few: str
) -> None:
    visual, images = small_resnet((2, 1, 1, 1), 4), small_images()
    tower = tower_of(visual)
    units = drawn_units(tower, images, 0.3)
    for pair in (("avgpool", "resblock1"), ("resblock1", "resblock2"), ("resblock3", "resblock4")):
        some = dict(units)
        fewer = pair[0] if few == "upstream" else pair[1]
        some[fewer] = some[fewer][:2]
        expected = plain_edges(tower, images, *pair, some, LEFT)
        with monkeypatch.context() as patch:
            patch.setattr(residual_edges, "_gathering_pays", lambda *_: gathering)
            found = edge_attributions(visual, text_rows(), images, 0, units=some, pairs=[pair])
        torch.testing.assert_close(found[pair], expected, rtol=1e-10, atol=1e-15)


def test_backward_passes_give_the_same_as_forward_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    visual, images = small_resnet(), small_images()
    units = drawn_units(tower_of(visual), images, 0.2)
    expected = edge_attributions(visual, text_rows(), images, 0, 5, "corrected", units=units)
    monkeypatch.setattr(edges_module, "_BY_KIND", {})
    found = edge_attributions(visual, text_rows(), images, 0, 5, "corrected", units=units)
    for pair, edges in found.items():
        torch.testing.assert_close(edges, expected[pair], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(
    ("architecture", "pair"),
    [("ViT-S-32", ("block1", "block2")), ("Swin-T", ("block2", "block3"))],
)
def test_edges_of_transformers_are_the_plain_formula(
    architecture: str, pair: tuple[str, str]
) -> None:
    torch.manual_seed(0)
    network: Any = create_clip(architecture).network.double().eval()
    tower = tower_of(network.visual)
    images = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    units = {name: torch.tensor([5, 90, 17]) for name in pair}
    text = text_rows(512 if architecture == "Swin-T" else network.visual.output_dim)
    found = edge_attributions(tower, text, images, 0, 2, units=units, pairs=[pair])
    assert list(found) == [pair]
    expected = plain_edges(tower, images, *pair, units, [1, 0.5])
    torch.testing.assert_close(found[pair], expected, rtol=1e-8, atol=1e-15)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_without_units_the_top_ones_are_taken() -> None:
    visual, images, text = small_resnet(), small_images(), text_rows()
    units = top_units(node_attributions(visual, text, images, 2, 4, "corrected"))
    expected = edge_attributions(visual, text, images, 2, 4, "corrected", units=units)
    found = edge_attributions(visual, text, images, 2, 4, "corrected")
    assert list(found) == list(expected)
    for pair, edges in found.items():
        assert torch.equal(edges, expected[pair])


def test_some_pairs() -> None:
    visual, images = small_resnet(), small_images()
    units = drawn_units(tower_of(visual), images, 0.5)
    pairs = [("resblock2", "resblock3"), ("input", "act1")]
    found = edge_attributions(visual, text_rows(), images, 0, units=units, pairs=pairs)
    assert list(found) == pairs
    expected = plain_edges(tower_of(visual), images, "input", "act1", units, LEFT)
    torch.testing.assert_close(found["input", "act1"], expected, rtol=1e-10, atol=1e-15)
    assert edge_attributions(visual, text_rows(), images, 0, units=units, pairs=[]) == {}


def test_one_published_step_sees_no_error() -> None:
    visual, images = small_resnet(), small_images()
    found = edge_attributions(visual, text_rows(), images, 0, steps=1)
    assert all(edges.abs().max() < 1e-12 for edges in found.values())
    one = edge_attributions(product_tower(), PAIR_TEXT, pair_images((1, 2)), 0, 1, units=PAIR_UNITS)
    assert one["pair", "product"].tolist() == [[0, 0]]


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.floats(1, 3))
def test_a_bound_on_memory_does_not_change_edges(images: int, times: float) -> None:
    visual, pixels = small_resnet(), small_images(images)
    units = drawn_units(tower_of(visual), pixels, 0.3)
    arguments = (visual, text_rows(), pixels, 0, 3)
    whole = edge_attributions(*arguments, units=units)
    bound = int(times * needed(pixels, units))
    parts = edge_attributions(*arguments, units=units, memory_bytes=bound)
    for pair, edges in whole.items():
        torch.testing.assert_close(parts[pair], edges, rtol=1e-10, atol=1e-15)


def needed(images: torch.Tensor, units: Values) -> int:
    """Return the smallest bound that is enough, from what the messages say."""
    bound, arguments = 1, (small_resnet(), text_rows(), images, 0, 2)
    for _ in range(10):
        try:
            edge_attributions(*arguments, units=units, memory_bytes=bound)
        except UserError as error:
            given, *_, enough = (int(n.replace(",", "")) for n in _NUMBER.findall(str(error)))
            if given != bound or enough <= bound:
                raise
            bound = enough
        else:
            return bound
    raise RuntimeError("no message named a bound that is enough")


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.data())
def test_edges_follow_the_order_of_units_and_count_repeated_images(
    times: int, data: st.DataObject
) -> None:
    visual, images = small_resnet(), small_images()
    pair = ("resblock1", "resblock2")
    units = {"resblock1": torch.tensor([3, 0, 9]), "resblock2": torch.tensor([1, 20, 7, 30])}
    order = {name: data.draw(st.permutations(range(len(units[name])))) for name in pair}
    permuted = {name: units[name][order[name]] for name in pair}
    text = text_rows()
    expected = edge_attributions(visual, text, images, 0, 4, units=units, pairs=[pair])[pair]
    found = edge_attributions(
        visual, text, images.repeat(times, 1, 1, 1), 0, 4, units=permuted, pairs=[pair]
    )[pair]
    torch.testing.assert_close(
        found * times, expected[order["resblock2"]][:, order["resblock1"]], rtol=1e-10, atol=1e-15
    )


def test_a_dead_neuron_has_no_edges() -> None:
    visual, images = small_resnet((2, 1, 1, 1)), small_images()
    visual.layer1[0].bn3.weight.data[3] = 0
    visual.layer1[0].bn3.bias.data[3] = -1
    visual.layer1[0].downsample[2].weight.data[3] = 0
    visual.layer1[0].downsample[2].bias.data[3] = 0
    units = {"resblock1": torch.tensor([2, 3]), "resblock2": torch.tensor([0, 3, 5])}
    pair = ("resblock1", "resblock2")
    found = edge_attributions(visual, text_rows(), images, 0, units=units, pairs=[pair])[pair]
    assert found[:, 1].tolist() == [0, 0, 0]
    assert found[:, 0].abs().min() > 0


def test_an_odd_side_is_pooled_as_the_network_pools_it() -> None:
    visual, images = small_resnet((1, 1, 1, 1)), small_images(2, 32)
    tower = tower_of(visual)
    # 7 x 7 places, of which the pooling after the first three pairs leaves 3 x 3.
    odd = Tower(
        (
            tower.submodules[0],
            type(tower.submodules[5])(
                "cut", lambda value: tower.run(value, end="resblock1")[..., :7, :7], 1
            ),
            tower["resblock2"],
        ),
        lambda value: value.mean(dim=(2, 3)),
    )
    units = {"cut": torch.tensor([1, 7]), "resblock2": torch.tensor([0, 11, 4])}
    pair = ("cut", "resblock2")
    found = edge_attributions(odd, text_rows(32), images, 0, units=units)[pair]
    torch.testing.assert_close(
        found, plain_edges(odd, images, *pair, units, LEFT), rtol=1e-10, atol=1e-15
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": [("act1", "act3")]}, "act3 does not come right after act1"),
        ({"pairs": [("attnpool", "input")]}, "input does not come right after attnpool"),
        ({"units": {"act1": torch.tensor([0])}}, "no neurons of act2"),
        ({"units": {"act1": torch.tensor([], dtype=torch.int64)}}, r"shape \(0,\)"),
        ({"units": {"act1": torch.tensor([2])}}, "from 2 to 2, but its neurons from 0 to 1"),
        ({"units": {"act1": torch.tensor([-1])}}, "from -1 to -1"),
        ({"label": 5}, "label is 5"),
        ({"images": small_images(0)}, "B > 0"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "tower": small_resnet(), "text_features": text_rows(), "images": small_images(), "label": 0
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        edge_attributions(**{**arguments, **change})


def test_an_unknown_layer_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'resblock9'; .*resblock4, attnpool"):
        edge_attributions(
            small_resnet(), text_rows(), small_images(), 0, pairs=[("resblock4", "resblock9")]
        )


def test_activations_that_are_not_finite_are_named() -> None:
    visual, images = small_resnet(), small_images()
    units = drawn_units(tower_of(visual), images, 0.2)
    visual.layer3[0].conv1.weight.data[0, 0] = torch.inf
    with pytest.raises(UserError, match="activations of resblock3 are not finite"):
        edge_attributions(visual, text_rows(), images, 0, units=units)
