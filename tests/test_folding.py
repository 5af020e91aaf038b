"""Folded submodules: equal to their own, with constant parameters, left alone where unknown."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from circuit_towers import small_images, small_resnet
from open_clip.modified_resnet import ModifiedResNet

from clip_mixtures.mechanisms.folding import (
    AttentionPool,
    Convolution,
    ConvolutionReLU,
    ResidualBlock,
    fold,
    folded,
)
from clip_mixtures.mechanisms.towers import tower_of
from clip_mixtures.training.models import create_clip


@pytest.mark.parametrize(("layers", "width"), [((2, 1, 1, 2), 4), ((1, 2, 1, 1), 8)])
@torch.no_grad()
def test_every_value_of_a_folded_resnet_is_its_own(layers: tuple[int, ...], width: int) -> None:
    tower = tower_of(small_resnet(layers, width))
    images = small_images()
    expected = tower.values(images, tower.names)
    for name, value in folded(tower).values(images, tower.names).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)


def test_kinds_of_submodules() -> None:
    kinds = [type(submodule.function) for submodule in folded(tower_of(small_resnet())).submodules]
    assert kinds[1:4] == [ConvolutionReLU] * 3
    assert kinds[5:9] == [ResidualBlock] * 4
    assert kinds[9] == AttentionPool


@torch.no_grad()
def test_a_convolution_by_hand() -> None:
    convolution = torch.nn.Conv2d(1, 1, 1, bias=False)
    norm = torch.nn.BatchNorm2d(1, eps=0).eval()
    convolution.weight.fill_(3.0)
    numbers = {"weight": 2.0, "bias": 1.0, "running_mean": 4.0, "running_var": 16.0}
    norm.load_state_dict({n: torch.tensor([value]) for n, value in numbers.items()}, strict=False)
    part = fold(torch.nn.Sequential(convolution, norm, torch.nn.ReLU()).eval())
    assert isinstance(part, ConvolutionReLU)
    # 2 (3 x - 4) / 4 + 1 = 1.5 x - 1
    assert part(torch.tensor([2.0, 0.0]).view(2, 1, 1, 1)).flatten().tolist() == [2.0, 0.0]
    assert part.convolution.weight.item() == 1.5
    assert part.convolution.bias.item() == -1


@torch.no_grad()
def test_some_outputs_of_a_convolution() -> None:
    torch.manual_seed(0)
    part = Convolution(torch.randn(4, 2, 3, 3), torch.randn(4), stride=2, padding=1)
    value = torch.randn(1, 2, 6, 6)
    some = torch.tensor([3, 1])
    torch.testing.assert_close(part.only(some)(value), part(value)[:, some])
    torch.testing.assert_close(part.linear(value) + part.bias[:, None, None], part(value))


def test_a_backward_pass_reaches_the_input_alone() -> None:
    visual = small_resnet()
    tower = folded(tower_of(visual))
    images = small_images().requires_grad_()
    tower.run(images).sum().backward()
    assert images.grad is not None
    assert all(parameter.grad is None for parameter in visual.parameters())
    for submodule in tower.submodules:
        function = submodule.function
        if dataclasses.is_dataclass(function):
            tensors = [v for v in vars(function).values() if isinstance(v, torch.Tensor)]
            assert not any(tensor.requires_grad for tensor in tensors)


def test_other_submodules_stay_as_they_are() -> None:
    network: Any = create_clip("ViT-S-32").network.eval()
    tower = tower_of(network.visual)
    assert folded(tower) == tower


@torch.no_grad()
def test_frozen_statistics_are_folded_too() -> None:
    visual = small_resnet()
    expected = visual(small_images())
    visual.lock(freeze_bn_stats=True)
    tower = folded(tower_of(visual))
    torch.testing.assert_close(tower.run(small_images()), expected, rtol=0, atol=1e-12)
    assert isinstance(visual, ModifiedResNet)
