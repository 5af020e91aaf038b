"""Effects of neurons: the published numbers, hand answers, completeness, memory, faults."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from circuit_towers import plain_nodes, ray_tower, small_images, small_resnet, text_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.modified_resnet import ModifiedResNet

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.circuits import (
    attribute_nodes,
    integration_path,
    node_attributions,
    top_units,
)
from clip_mixtures.mechanisms.towers import INPUT, Submodule, Tower, tower_of
from clip_mixtures.training.models import create_clip

LEFT = [1 - step / 10 for step in range(10)]
RAY_TEXT = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


def ray_images(*pixels: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(pixels, dtype=torch.float64).view(-1, 3, 1, 1)


def published(
    shared_file: Callable[[str], Path], kind: torch.dtype
) -> tuple[ModifiedResNet, torch.Tensor, torch.Tensor, int, Any]:
    saved = np.load(shared_file("oracle/numerics/circuit_tiny_model.npz"))
    facts = json.loads(shared_file("oracle/numerics/circuit_tiny_meta.json").read_text())
    config = facts["config"]
    visual = ModifiedResNet(
        config["layers"], config["output_dim"], config["heads"], config["image_size"],
        config["width"],
    )  # fmt: skip
    state = {name[3:]: torch.from_numpy(saved[name]) for name in saved if name.startswith("sd/")}
    visual.load_state_dict(state)
    return (
        visual.to(kind).eval(),
        torch.from_numpy(saved["txt"]).to(kind),
        torch.from_numpy(saved["images"]).to(kind),
        facts["label"],
        np.load(shared_file("oracle/numerics/circuit_tiny_float64_th0.1.npz")),
    )


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_nodes_and_top_units_are_the_published_ones(
    shared_file: Callable[[str], Path], kind: torch.dtype, tolerance: float
) -> None:
    visual, text, images, label, answers = published(shared_file, kind)
    found = node_attributions(visual, text, images, label, steps=10, protocol="published")
    assert list(found) == list(answers["names"])
    for name, units in top_units(found).items():
        expected = answers[f"node/{name}/act"]
        assert found[name].dtype == kind
        largest = np.abs(expected).max()
        assert np.abs(found[name].numpy() - expected).max() <= tolerance * max(largest, 1e-3)
        assert units.tolist() == answers[f"features/{name}"].tolist(), name


def test_published_nodes_by_hand() -> None:
    # s = 1 + 2 = 3 along (1 - a) s, slope of the cosine (1 + s^2)^(-3/2), points at a = 0 and 1/2.
    slope = (10**-1.5 + 3.25**-1.5) / 2
    found = attribute_nodes(
        ray_tower(), RAY_TEXT, ray_images((1, 1, 5)), 0, protocol="published", steps=2
    )
    torch.testing.assert_close(found.values[INPUT], -slope * torch.tensor([1.0, 2, 0]).double())
    assert found.changes[INPUT] == pytest.approx(-3 / math.sqrt(10))
    missed = abs(-3 * slope + 3 / math.sqrt(10))
    assert found.errors[INPUT] == pytest.approx(missed / (3 / math.sqrt(10)))


@pytest.mark.parametrize(
    ("rule", "points"), [("midpoint", [0.25, 0.75]), ("gauss-legendre", [0.5 - 3**-0.5 / 2] * 2)]
)
def test_corrected_nodes_by_hand(rule: str, points: list[float]) -> None:
    if rule == "gauss-legendre":
        points = [points[0], 1 - points[0]]
    slope = sum((1 + (3 * (1 - a)) ** 2) ** -1.5 for a in points) / 2
    found = node_attributions(
        ray_tower(), RAY_TEXT, ray_images((1, 1, 5)), 0, 2, "corrected", rule=rule
    )
    torch.testing.assert_close(found[INPUT], -slope * torch.tensor([1.0, 2, 0]).double())


def test_a_positive_effect_is_one_that_holds_the_score_down() -> None:
    found = node_attributions(
        ray_tower(), RAY_TEXT, ray_images((-1, 1, 0)), 0, protocol="corrected"
    )
    assert found[INPUT][0] > 0 > found[INPUT][1]
    assert found[INPUT][2] == 0


def test_effects_are_a_mean_over_images() -> None:
    one, two = (1.0, 1.0, 5.0), (-2.0, 0.5, 1.0)
    apart = [
        node_attributions(ray_tower(), RAY_TEXT, ray_images(pixel), 0)[INPUT]
        for pixel in (one, two)
    ]
    together = node_attributions(ray_tower(), RAY_TEXT, ray_images(one, two), 0)[INPUT]
    torch.testing.assert_close(together, (apart[0] + apart[1]) / 2)


@pytest.mark.parametrize(("layers", "width"), [((1, 1, 1, 1), 4), ((2, 1, 1, 2), 8)])
@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_fast_nodes_are_the_plain_formula(
    layers: tuple[int, ...], width: int, protocol: str
) -> None:
    visual, images, text = small_resnet(layers, width), small_images(3), text_rows()
    scales = LEFT if protocol == "published" else [1 - (step + 0.5) / 10 for step in range(10)]
    expected = plain_nodes(tower_of(visual), text[1], images, scales)
    found = node_attributions(visual, text, images, 1, 10, protocol)
    assert list(found) == list(expected)
    for name, effects in found.items():
        torch.testing.assert_close(effects, expected[name], rtol=1e-10, atol=1e-14)


def test_nodes_of_a_transformer_are_the_plain_formula() -> None:
    network: Any = create_clip("ViT-S-32").network
    visual = network.visual.double().eval()
    visual.transformer.resblocks = visual.transformer.resblocks[:2]
    images, text = small_images(1, 224), text_rows(visual.output_dim)
    expected = plain_nodes(tower_of(visual), text[0], images, [1, 2 / 3, 1 / 3])
    found = node_attributions(visual, text, images, 0, steps=3)
    assert list(found) == ["input", "patch_embedding", "block1", "block2", "norm"]
    for name, effects in found.items():
        torch.testing.assert_close(effects, expected[name], rtol=1e-8, atol=1e-12)
    assert all(parameter.grad is None for parameter in visual.parameters())


def test_a_pooling_hands_its_effects_back() -> None:
    visual, images = small_resnet(), small_images()
    both = node_attributions(visual, text_rows(), images, 0)
    alone = node_attributions(visual, text_rows(), images, 0, layers=["act3"])
    assert list(alone) == ["act3"]
    assert torch.equal(alone["act3"], both["avgpool"])


@pytest.mark.parametrize("rule", ["left", "midpoint", "gauss-legendre"])
def test_effects_sum_to_the_change_of_the_score(rule: str) -> None:
    visual, images = small_resnet(), small_images()
    errors = {
        steps: attribute_nodes(
            visual, text_rows(), images, 0, protocol="corrected", steps=steps, rule=rule
        ).errors
        for steps in (2, 64)
    }
    inner = [name for name in errors[64] if name != "attnpool"]
    assert max(errors[64][name] for name in inner) < (0.3 if rule == "left" else 0.02)
    assert np.median([errors[64][name] / errors[2][name] for name in inner]) < 0.2
    # A cosine does not change on the way to zero, and jumps there.
    assert errors[64]["attnpool"] == pytest.approx(1)


def test_changes_are_those_of_the_score_with_a_submodule_at_zero() -> None:
    visual, images, text = small_resnet(), small_images(), text_rows()
    tower = tower_of(visual)
    changes = attribute_nodes(visual, text, images, 2, protocol="corrected", steps=1).changes
    with torch.no_grad():
        score = torch.nn.functional.normalize(visual(images), dim=1) @ text[2]
        for name in ("input", "act3", "resblock2"):
            zero = torch.zeros_like(tower.values(images, [name])[name])
            without = torch.nn.functional.normalize(tower.run(zero, name), dim=1) @ text[2]
            assert changes[name] == pytest.approx(float((without - score).mean()), abs=1e-12)


def needed_for_nodes(visual: ModifiedResNet, images: torch.Tensor) -> int:
    with pytest.raises(UserError, match="one image takes") as error:
        node_attributions(visual, text_rows(), images, 0, memory_bytes=1)
    return int(str(error.value).split("takes ")[1].replace(",", ""))


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.floats(1, 6))
def test_a_bound_on_memory_does_not_change_effects(images: int, steps: int, times: float) -> None:
    visual, text, pixels = small_resnet(), text_rows(), small_images(images)
    bound = int(needed_for_nodes(visual, pixels) * times)
    layers = ["input", "act3", "resblock1", "resblock4"]
    whole = node_attributions(visual, text, pixels, 0, steps, layers=layers)
    parts = node_attributions(visual, text, pixels, 0, steps, layers=layers, memory_bytes=bound)
    for name, effects in whole.items():
        torch.testing.assert_close(parts[name], effects, rtol=1e-10, atol=1e-15)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(3)), st.integers(2, 3))
def test_effects_follow_neither_order_nor_repetition(order: list[int], times: int) -> None:
    visual, text, images = small_resnet(), text_rows(), small_images(3)
    expected = node_attributions(visual, text, images, 0, 3)
    found = node_attributions(visual, text, images[order].repeat(times, 1, 1, 1), 0, 3)
    for name, effects in found.items():
        torch.testing.assert_close(effects, expected[name], rtol=1e-10, atol=1e-15)


def test_arguments_stay_as_they_were() -> None:
    visual, images, text = small_resnet(), small_images(), text_rows()
    before = images.clone()
    with torch.no_grad():
        node_attributions(visual, text, images, 0, 2)
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert all(p.requires_grad and p.grad is None for p in visual.parameters())


def test_paths_by_hand() -> None:
    left = integration_path(4, "published")
    assert left.scales == (1, 0.75, 0.5, 0.25)
    assert left.weights == (0.25,) * 4
    assert integration_path(2, "corrected").scales == (0.75, 0.25)
    simpson_like = integration_path(3, "corrected", "gauss-legendre")
    assert simpson_like.scales == pytest.approx((0.5 + 0.15**0.5, 0.5, 0.5 - 0.15**0.5))
    assert simpson_like.weights == pytest.approx((5 / 18, 8 / 18, 5 / 18))


@given(st.integers(1, 40), st.sampled_from(["left", "midpoint", "gauss-legendre"]))
def test_paths_fall_from_the_value_towards_zero(steps: int, rule: str) -> None:
    path = integration_path(steps, "corrected", rule)
    assert len(path.scales) == len(path.weights) == steps
    assert sum(path.weights) == pytest.approx(1)
    assert path.scales[0] <= 1
    assert path.scales[-1] > 0
    assert all(a > b for a, b in zip(path.scales, path.scales[1:], strict=False))


def test_top_units_by_hand() -> None:
    found = top_units(
        {"a": torch.tensor([0.1, -3.0, 2.0, 0.0, 1.0]), "b": torch.tensor([-1.0])}, 0.4
    )
    assert found["a"].tolist() == [1, 2]
    assert found["b"].tolist() == [0]
    assert found["a"].dtype == torch.int64


@pytest.mark.parametrize(("channels", "count"), [(32, 4), (64, 7), (256, 26), (1024, 103), (3, 1)])
def test_a_tenth_is_rounded_up(channels: int, count: int) -> None:
    assert len(top_units({"a": torch.randn(channels)})["a"]) == count


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan])
def test_a_share_outside_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        top_units({"a": torch.ones(3)}, share)


def test_a_submodule_without_neurons_is_named() -> None:
    with pytest.raises(ValueError, match="act1 has no neurons"):
        top_units({"act1": torch.empty(0)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, "label is 3, outside 0 to 2"),
        ({"label": -1}, "label is -1"),
        ({"images": torch.zeros(0, 3, 32, 32)}, r"shape \(0, 3, 32, 32\)"),
        ({"images": torch.zeros(3, 32, 32)}, r"give \(B, 3, H, W\)"),
        ({"text_features": torch.ones(8)}, r"give \(classes, D\)"),
        ({"text_features": torch.ones(3, 8)}, "length 2.828; normalise"),
        ({"steps": 0}, "steps is 0"),
        ({"rule": "midpoint"}, "whose rule is 'left'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "text_features": text_rows(), "images": small_images(), "label": 0, "protocol": "published"
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        node_attributions(small_resnet(), **{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ["resblock7"]}, "'resblock7'; .*allowed: input, act1"),
        ({"protocol": "exact"}, "'exact'; .*published, corrected"),
        ({"protocol": "corrected", "rule": "right"}, "'right'; .*left, midpoint, gauss-legendre"),
        ({"memory_bytes": 1000}, r"memory_bytes: 1,000 bytes are too few: one image takes \d"),
    ],
)
def test_choices_that_are_not_there_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        node_attributions(small_resnet(), text_rows(), small_images(), 0, **change)


def test_the_bound_that_an_error_names_is_enough() -> None:
    visual, images = small_resnet(), small_images()
    needed = needed_for_nodes(visual, images)
    node_attributions(visual, text_rows(), images, 0, 2, memory_bytes=needed)
    with pytest.raises(UserError):
        node_attributions(visual, text_rows(), images, 0, 2, memory_bytes=needed - 2)


def test_activations_that_are_not_finite_are_named() -> None:
    visual = small_resnet()
    visual.layer2[0].conv2.weight.data[0, 0, 1, 1] = math.nan
    with pytest.raises(UserError, match="activations of resblock2 are not finite"):
        node_attributions(visual, text_rows(), small_images(), 0)


def test_gradients_that_are_not_finite_are_named() -> None:
    tower = Tower(
        (
            Submodule(INPUT, lambda value: value, 1),
            Submodule("root", lambda value: value.abs().sqrt(), 1),
        ),
        lambda value: value.flatten(1)[:, :2] + 1,
    )
    with pytest.raises(UserError, match="gradients of input are not finite"):
        node_attributions(tower, RAY_TEXT, ray_images((0, 1, 1)), 0)


def test_a_tower_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="training mode"):
        node_attributions(small_resnet().train(), text_rows(), small_images(), 0)
