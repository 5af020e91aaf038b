"""Visual towers as chains: equal to the model, entered and left anywhere, arranged as neurons."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.modified_resnet import ModifiedResNet

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.towers import Submodule, Tower, tower_of
from clip_mixtures.training.models import create_clip

RESNET_50 = ["input", "act1", "act2", "act3", "avgpool"]
RESNET_50 += [f"resblock{number}" for number in range(1, 17)] + ["attnpool"]


@functools.cache
def clip(architecture: str) -> Any:
    torch.manual_seed(0)
    return create_clip(architecture).network.eval()


def tiny_resnet() -> ModifiedResNet:
    torch.manual_seed(0)
    return ModifiedResNet([1, 2, 1, 1], 8, 2, 32, 8).eval()


def pixels(size: int, images: int = 2) -> torch.Tensor:
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("architecture", "size"), [("sample-RN", 64), ("ViT-S-32", 224), ("Swin-T", 224)]
)
@torch.no_grad()
def test_a_chain_gives_what_the_model_gives(architecture: str, size: int) -> None:
    model = clip(architecture)
    images = pixels(size)
    assert torch.equal(tower_of(model.visual).run(images), model.encode_image(images))


@torch.no_grad()
def test_a_small_resnet_is_a_chain_of_its_own_parts() -> None:
    visual = tiny_resnet()
    tower = tower_of(visual)
    images = pixels(32)
    values = tower.values(images, tower.names)
    assert torch.equal(tower.run(images), visual(images))
    assert torch.equal(values["avgpool"], visual.stem(images))
    assert torch.equal(values["resblock3"], visual.layer2(visual.layer1(values["avgpool"])))
    assert torch.equal(values["attnpool"], visual(images))
    assert torch.equal(values["input"], images)


def test_a_resnet_50_has_the_submodules_of_the_study() -> None:
    tower = tower_of(ModifiedResNet([3, 4, 6, 3], 8, 2, 32, 8).eval())
    assert list(tower.names) == RESNET_50


@pytest.mark.parametrize(
    ("architecture", "blocks"), [("ViT-S-32", 12), ("Swin-T", 12), ("sample-RN", 4)]
)
def test_other_towers_have_numbered_blocks(architecture: str, blocks: int) -> None:
    names = tower_of(clip(architecture).visual).names
    assert [name for name in names if "block" in name][-1].endswith(f"block{blocks}")
    assert names[0] == "input"


@torch.no_grad()
def test_a_chain_can_be_left_and_entered_again() -> None:
    tower = tower_of(clip("ViT-S-32").visual)
    images = pixels(224, images=1)
    middle = tower.run(images, end="block3")
    assert torch.equal(tower.values(images, ["block3"])["block3"], middle)
    assert torch.equal(tower.run(middle, start="block3"), tower.run(images))
    assert torch.equal(tower.run(middle, start="block3", end="block3"), middle)


@torch.no_grad()
def test_values_come_in_the_order_of_the_chain() -> None:
    tower = tower_of(tiny_resnet())
    assert list(tower.values(pixels(32), ["attnpool", "act1", "resblock2"])) == [
        "act1",
        "resblock2",
        "attnpool",
    ]


@pytest.mark.parametrize("architecture", ["sample-RN", "ViT-S-32", "Swin-T"])
@torch.no_grad()
def test_every_value_has_its_channels_last_as_neurons(architecture: str) -> None:
    model = clip(architecture)
    tower = tower_of(model.visual)
    size = 64 if architecture == "sample-RN" else 224
    for name, value in tower.values(pixels(size, 1), tower.names).items():
        neurons = tower[name].neurons(value)
        assert neurons.shape[::2] == (1, value.shape[tower[name].channel_axis]), name
        assert torch.equal(tower[name].like(neurons, value), value), name


def test_positions_are_in_the_order_of_rows() -> None:
    submodule = Submodule("x", lambda value: value, 1)
    value = torch.arange(12.0).reshape(1, 2, 2, 3)
    neurons = submodule.neurons(value)
    assert neurons[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert neurons[0, 1].tolist() == [1, 7]


@given(
    st.integers(1, 3),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.sampled_from([1, -1]),
    st.integers(1, 3),
)
def test_neurons_and_like_undo_each_other(
    batch: int, sides: list[int], axis: int, other_batch: int
) -> None:
    submodule = Submodule("x", lambda value: value, axis)
    value = torch.randn(batch, *sides)
    neurons = submodule.neurons(value)
    assert neurons.shape[2] == value.shape[axis]
    assert torch.equal(submodule.like(neurons, value), value)
    others = torch.randn(other_batch, *neurons.shape[1:])
    assert torch.equal(submodule.neurons(submodule.like(others, value)), others)


def test_an_unknown_layer_is_answered_with_those_there_are() -> None:
    tower = tower_of(tiny_resnet())
    with pytest.raises(UserError, match=r"'resblock9'.*input, act1, .*resblock5, attnpool"):
        tower.run(pixels(32), end="resblock9")
    with pytest.raises(UserError, match="'block1'"):
        tower["block1"]
    with pytest.raises(UserError, match="'nothing'"):
        tower.values(pixels(32), ["nothing"])


def test_a_chain_is_not_followed_backwards() -> None:
    with pytest.raises(ValueError, match="act1 comes before resblock1"):
        tower_of(tiny_resnet()).run(pixels(32), start="resblock1", end="act1")


def test_a_tower_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="training mode"):
        tower_of(tiny_resnet().train())


def test_a_tower_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="visual tower Linear"):
        tower_of(torch.nn.Linear(2, 2).eval())


def test_a_tower_is_not_changed_by_being_taken_apart() -> None:
    visual = tiny_resnet()
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    tower = tower_of(visual)
    assert isinstance(tower, Tower)
    with torch.no_grad():
        tower.values(pixels(32), tower.names)
    assert all(torch.equal(value, before[name]) for name, value in visual.state_dict().items())
    assert all(parameter.requires_grad for parameter in visual.parameters())
