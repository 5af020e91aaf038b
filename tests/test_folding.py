"""Folded submodules: equal to their own, with constant parameters, left alone where unknown."""

from __future__ import annotations

import dataclasses

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
    for tensor, value in (
        (norm.weight, 2.0), (norm.bias, 1.0), (norm.running_mean, 4.0), (norm.running_var, 16.0)
    ):  # fmt: skip
        tensor.fill_(value)
    part = fold(torch.nn.Sequential(convolution, norm, torch.nn.ReLU()).eval())
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


@torch.no_grad()
def test_changing_the_network_does_not_change_the_fold() -> None:
    visual = small_resnet()
    tower = folded(tower_of(visual))
    before = tower.run(small_images())
    for parameter in visual.parameters():
        parameter.zero_()
    # The attention pool shares its parameters, everything before it has copies.
    values = tower.values(small_images(), ["resblock4"])
    assert values["resblock4"].abs().sum() > 0
    assert before.abs().sum() > 0


def test_other_submodules_stay_as_they_are() -> None:
    tower = tower_of(create_clip("ViT-S-32").network.eval().visual)
    assert folded(tower) == tower


@torch.no_grad()
def test_frozen_statistics_are_folded_too() -> None:
    visual = small_resnet()
    expected = visual(small_images())
    visual.lock(freeze_bn_stats=True)
    tower = folded(tower_of(visual))
    torch.testing.assert_close(tower.run(small_images()), expected, rtol=0, atol=1e-12)
    assert isinstance(visual, ModifiedResNet)
