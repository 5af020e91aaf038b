"""Ablation: hand answers on a linear chain, identities on real towers, tables, bad input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transformer import VisionTransformer

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.ablation import (
    ALL_LAYERS,
    MODES,
    ablate,
    ablation_effects,
    mean_activations,
)
from clip_mixtures.mechanisms.ablation_table import MEASURES, ablation_table
from clip_mixtures.mechanisms.class_bootstrap import bootstrap_over_classes
from clip_mixtures.mechanisms.towers import Submodule, Tower, tower_of
from clip_mixtures.training.models import create_clip

WEIGHTS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])


def chain() -> Tower:
    """A chain that can be worked out by hand: doubled pixels, their sums over space, a map."""
    return Tower(
        (
            Submodule("input", lambda value: value, 1),
            Submodule("double", lambda value: 2 * value, 1),
            Submodule("sum", lambda value: value.sum(dim=(2, 3)), 1),
            Submodule("map", lambda value: value @ WEIGHTS.T.to(value), 1),
        ),
        lambda value: value,
    )


def pixels(*channels: float) -> torch.Tensor:
    """One image of 2 by 2 pixels, each channel of one value."""
    return torch.tensor(channels).view(1, 3, 1, 1).expand(1, 3, 2, 2).contiguous()


@pytest.fixture(scope="module")
def resnet() -> Tower:
    torch.manual_seed(0)
    model = create_clip("sample-RN")
    generator = torch.Generator().manual_seed(0)
    for module in model.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # The last norm of a fresh block is zero, which would leave only the shortcut.
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
    model.network.eval().requires_grad_(False)
    return tower_of(model.network.get_submodule("visual"))


@pytest.fixture(scope="module")
def transformer() -> Tower:
    torch.manual_seed(0)
    visual = VisionTransformer(
        image_size=32, patch_size=16, width=32, layers=2, heads=2, mlp_ratio=2, output_dim=16
    )
    return tower_of(visual.eval().requires_grad_(False))


@pytest.fixture(params=["resnet", "transformer"])
def tower(request: pytest.FixtureRequest) -> Tower:
    found: Tower = request.getfixturevalue(request.param)
    return found


def images_for(tower: Tower, count: int = 3, seed: int = 0) -> torch.Tensor:
    side = 64 if "attnpool" in tower.names else 32
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def widths(tower: Tower) -> dict[str, int]:
    values = tower.values(images_for(tower, 1), tower.names)
    return {name: values[name].shape[tower[name].channel_axis] for name in tower.names}


def tenth(tower: Tower, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(width, generator=generator)[: math.ceil(width / 10)]
        for name, width in widths(tower).items()
        if name != "input"
    }


def row(table: pd.DataFrame, **where: Any) -> dict[Any, Any]:
    for column, value in where.items():
        table = table[table[column] == value]
    (found,) = table.to_dict("records")
    return found


# By hand


def test_ablation_by_hand() -> None:
    image = pixels(1.0, 2.0, 3.0)  # doubled and summed over four pixels: 8, 16, 24
    assert ablate(chain(), image, {}).tolist() == [[32, 32, 48, 24]]
    assert ablate(chain(), image, {"double": [1]}).tolist() == [[32, 0, 32, 24]]
    assert ablate(chain(), image, {"sum": [0, 2]}).tolist() == [[0, 32, 16, 0]]
    assert ablate(chain(), image, {"map": [3], "sum": [1]}).tolist() == [[32, 0, 32, 0]]
    assert ablate(chain(), image, {"input": [0]}).tolist() == [[24, 32, 40, 24]]
    assert ablate(chain(), image, {"sum": [1]}, mode="keep").tolist() == [[0, 32, 16, 0]]
    # Values per position: only the first of four pixels of channel 0 is 5, the others stay zero.
    values = torch.zeros(3, 2, 2)
    values[0, 0, 0] = 5
    found = ablate(chain(), image, {"double": [0]}, {"double": values})
    assert found.tolist() == [[5 + 24, 32, 5 + 16 + 24, 24]]


def test_effects_by_hand() -> None:
    texts = torch.eye(4)
    image = {"real": pixels(1.0, 0.0, 0.0)}  # 8, 0, 0 and then 8, 0, 8, 0
    units = {"real": {"input": [2], "sum": [0]}}
    table = ablation_effects(chain(), texts, image, units, 0, draws=0)
    assert len(table) == 2
    root = math.sqrt(0.5)
    both: dict[str, Any] = {"intact_cosine": root, "intact_margin": root / 2}
    both |= {"intact_correct": 0.5}
    both |= {"class_id": 0, "source": "real", "target": "real", "layer": "all", "image": 0}
    both |= {"nothing_margin": 0.0, "kind": "circuit", "draw": 0, "in_sample": False}
    ablated: dict[str, Any] = {"mode": "ablate", "cosine": 0.0, "margin": 0.0, "correct": 0.25}
    kept: dict[str, Any] = {"mode": "keep", "cosine": root, "margin": root / 2, "correct": 0.5}
    for found, expected in zip(table.to_dict("records"), (ablated, kept), strict=True):
        assert found == pytest.approx({**both, **expected})


def test_a_circuit_that_does_all_is_faithful_and_complete() -> None:
    # Of the sums only the second matters for class 1; its circuit is that.
    texts = torch.eye(4)
    image = {"real": pixels(0.5, 3.0, 0.5), "sketch": pixels(0.1, 2.0, 0.1)}
    units = {"real": {"sum": [1]}, "wrong": {"sum": [0]}}
    effects = ablation_effects(chain(), texts, image, units, 1, draws=20)
    table = ablation_table(effects)
    for target in image:
        circuit: dict[str, Any] = {"target": target, "kind": "circuit", "measure": "recovered"}
        circuit["group"] = "all"

        def recovered(source: str, mode: str, of: Any = circuit) -> float:
            return float(row(table, source=source, mode=mode, **of)["estimate"])

        assert recovered("real", "ablate") <= 0  # completeness
        assert recovered("real", "keep") >= 1  # faithfulness
        assert recovered("wrong", "ablate") > 0.9
        assert recovered("wrong", "keep") <= 0
        ablated = {"source": "real", "target": target, "mode": "ablate", "group": "all"}
        drop = row(table, **ablated, kind="circuit", measure="accuracy_drop")
        assert drop["estimate"] == 1
        more = row(table, **ablated, kind="difference", measure="margin_drop")
        assert more["estimate"] > 0.3
        # A third of the random sets is the circuit itself.
        drop = row(table, **ablated, kind="random", measure="accuracy_drop")
        assert 0 < drop["estimate"] < 0.7


# Identities


def test_without_units_nothing_changes_in_a_single_bit(tower: Tower) -> None:
    images = images_for(tower)
    intact = tower.run(images)
    none = dict.fromkeys(tower.names, torch.zeros(0, dtype=torch.int64))
    every = {name: torch.arange(width) for name, width in widths(tower).items()}
    for found in (
        ablate(tower, images, {}),
        ablate(tower, images, none),
        ablate(tower, images, every, mode="keep"),
    ):
        assert torch.equal(found, intact)


def test_a_layer_without_units_is_a_layer_of_zeros(tower: Tower) -> None:
    images = images_for(tower)
    for name in (tower.names[1], tower.names[3], tower.names[-1]):
        value = tower.run(images, end=name)
        expected = tower.run(torch.zeros_like(value), start=name)
        every = torch.arange(value.shape[tower[name].channel_axis])
        for found in (
            ablate(tower, images, {name: every}),
            ablate(tower, images, {name: every[:0]}, mode="keep"),
        ):
            assert found == pytest.approx(expected, abs=1e-5)
            # Nothing of the image is left.
            assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_one_layer_is_replaced_channel_by_channel(tower: Tower) -> None:
    images = images_for(tower)
    name = tower.names[3]
    value = tower.run(images, end=name)
    neurons = tower[name].neurons(value).clone()
    neurons[..., [0, 5]] = 0
    expected = tower.run(tower[name].like(neurons, value), start=name)
    assert ablate(tower, images, {name: [5, 0]}) == pytest.approx(expected, abs=1e-5)


def test_keeping_a_circuit_is_ablating_the_rest(tower: Tower) -> None:
    images, circuit = images_for(tower), tenth(tower)
    sizes = widths(tower)
    rest = {name: sorted(set(range(sizes[name])) - set(circuit[name].tolist())) for name in circuit}
    kept = ablate(tower, images, circuit, mode="keep")
    assert torch.equal(kept, ablate(tower, images, {k: np.array(v) for k, v in rest.items()}))


def test_the_mean_of_an_image_alone_is_that_image(tower: Tower) -> None:
    image = images_for(tower, 1)
    values = mean_activations(tower, [image])
    assert list(values) == list(tower.names[1:])
    for mode in MODES:
        found = ablate(tower, image, tenth(tower), values, mode=mode)
        assert found == pytest.approx(tower.run(image), abs=1e-5)


def test_replacing_all_by_the_mean_of_others_gives_that_of_the_mean(tower: Tower) -> None:
    reference, images = images_for(tower, 5, seed=1), images_for(tower)
    last = tower.names[-1]
    values = mean_activations(tower, reference.split(2))
    assert values[last] == pytest.approx(tower.run(reference, end=last).mean(dim=0), abs=1e-6)
    every = torch.arange(widths(tower)[last])
    expected = tower.head(values[last][None])
    found = ablate(tower, images, {last: every}, values)
    assert found == pytest.approx(expected.expand_as(found), abs=1e-5)


def test_means_do_not_depend_on_batches(tower: Tower) -> None:
    reference = images_for(tower, 5)
    names = [tower.names[2], tower.names[1]]
    first, second = (mean_activations(tower, reference.split(n), names) for n in (1, 5))
    assert list(first) == sorted(names, key=tower.index)
    for name in names:
        assert first[name].dtype == reference.dtype
        assert first[name] == pytest.approx(second[name], abs=1e-5)


def test_batches_do_not_matter(tower: Tower) -> None:
    images, circuit = images_for(tower, 5), tenth(tower)
    values = mean_activations(tower, [images])
    found = [ablate(tower, images, circuit, values, batch_size=size) for size in (1, 2, 64)]
    for one in found[:2]:
        assert one == pytest.approx(found[2], abs=1e-5)


def test_the_tower_is_left_as_it_was(resnet: Tower) -> None:
    images = images_for(resnet)
    before, copy = resnet.run(images), images.clone()
    ablate(resnet, images, {**tenth(resnet), "input": torch.tensor([0])})
    assert torch.equal(resnet.run(images), before)
    assert torch.equal(images, copy)


@given(st.sets(st.integers(0, 2)), st.sampled_from(["input", "double", "sum"]))
@settings(max_examples=20, deadline=None)
def test_effects_add_up_in_a_linear_chain(channels: set[int], layer: str) -> None:
    image = pixels(1.0, 2.0, 3.0)
    intact = ablate(chain(), image, {})
    alone = [intact - ablate(chain(), image, {layer: [one]}) for one in sorted(channels)]
    together = intact - ablate(chain(), image, {layer: sorted(channels)})
    assert torch.equal(together, sum(alone, torch.zeros(1, 4)))


# Effects


def effects_of(tower: Tower, label: int = 1, **options: Any) -> pd.DataFrame:
    texts = torch.nn.functional.normalize(
        torch.randn(4, 128, generator=torch.Generator().manual_seed(0)), dim=1
    )
    images = {"real": images_for(tower, 3), "sketch": images_for(tower, 2, seed=1)}
    units = {"real": tenth(tower), "sketch": tenth(tower, seed=1)}
    return ablation_effects(tower, texts, images, units, label, **options)


def test_effects_tell_images_that_a_circuit_was_found_on(resnet: Tower) -> None:
    """Two of three real images are those of the circuit of `real`, in another order."""
    found_on = {"real": images_for(resnet, 3)[[2, 0]]}
    table = effects_of(resnet, draws=2, found_on=found_on)
    known = table[table["in_sample"]]
    assert set(known["source"]) == set(known["target"]) == {"real"}
    assert set(known["image"]) == {0, 2}
    # Random units stand beside the circuit, image by image.
    assert set(known["kind"]) == {"circuit", "random"}
    assert len(known) == 2 * len(MODES) * (1 + 2)
    assert not effects_of(resnet, draws=0)["in_sample"].any()


def test_effects_are_those_of_each_ablation(resnet: Tower) -> None:
    values = mean_activations(resnet, [images_for(resnet, 4, seed=2)])
    table = effects_of(resnet, each_layer=True, draws=1, values=values, batch_size=2)
    layers = [ALL_LAYERS, *resnet.names[1:]]
    assert len(table) == 2 * (3 + 2) * len(layers) * 2 * (1 + 1)
    texts = torch.nn.functional.normalize(
        torch.randn(4, 128, generator=torch.Generator().manual_seed(0)), dim=1
    )
    images = images_for(resnet, 2, seed=1)
    circuit = tenth(resnet)
    for layer in (ALL_LAYERS, "act2", "attnpool"):
        for mode in MODES:
            units = circuit if layer == ALL_LAYERS else {layer: circuit[layer]}
            features = ablate(resnet, images, units, values, mode=mode, batch_size=2)
            cosines = torch.nn.functional.normalize(features, dim=1) @ texts.T
            keys = {"source": "real", "target": "sketch", "layer": layer, "mode": mode}
            rows = table[(table[list(keys)] == pd.Series(keys)).all(axis=1)]
            found = rows[rows["kind"] == "circuit"]
            assert found["image"].tolist() == [0, 1]
            assert found["cosine"].tolist() == pytest.approx(cosines[:, 1].tolist(), abs=1e-6)
            margins = cosines[:, 1] - cosines.mean(dim=1)
            assert found["margin"].tolist() == pytest.approx(margins.tolist(), abs=1e-6)
            assert found["correct"].tolist() == (cosines.argmax(dim=1) == 1).double().tolist()
            assert (rows["kind"] == "random").sum() == 2
            last = "attnpool" if layer == ALL_LAYERS else layer
            nothing = ablate(resnet, images[:1], {last: []}, values, mode="keep")
            left = (torch.nn.functional.normalize(nothing, dim=1) @ texts.T)[0]
            expected = float(left[1] - left.mean())
            assert found["nothing_margin"].tolist() == pytest.approx([expected] * 2, abs=1e-6)


def test_random_units_are_the_same_for_circuits_of_one_size(resnet: Tower) -> None:
    table = effects_of(resnet, draws=3)
    random = table[table["kind"] == "random"]
    first, second = (
        random[random["source"] == source].drop(columns="source").reset_index(drop=True)
        for source in ("real", "sketch")
    )
    pd.testing.assert_frame_equal(first, second)
    assert random.groupby("draw")["cosine"].mean().nunique() == 3
    circuits = table[table["kind"] == "circuit"]
    assert set(circuits["draw"]) == {0}
    pd.testing.assert_frame_equal(table, effects_of(resnet, draws=3))
    other = effects_of(resnet, draws=3, seed=1)
    same = table["kind"] == "circuit"
    pd.testing.assert_frame_equal(table[same], other[same])
    assert not other[~same]["cosine"].equals(table[~same]["cosine"])
    # A class has draws of its own.
    another = effects_of(resnet, label=2, draws=1)
    assert len(another) == len(effects_of(resnet, draws=1))


def test_random_units_are_of_the_same_number() -> None:
    zeros: list[int] = []

    def spy(value: torch.Tensor) -> torch.Tensor:
        zeros.append(int((value[0] == 0).sum()))
        return value

    watched = Tower((*chain().submodules[:3], Submodule("map", spy, 1)), lambda value: value)
    images, units = {"real": pixels(1.0, 2.0, 3.0)}, {"real": {"sum": [0, 1]}}
    for mode, expected in (("ablate", 2), ("keep", 1)):
        ablation_effects(watched, torch.eye(3), images, units, 0, draws=8, modes=[mode])
        # With nothing left three are zero; intact and for the shapes, none. Of the eight draws and
        # the circuit only different sets are run.
        assert zeros.count(3) == 1
        assert zeros.count(0) == 2
        assert zeros.count(expected) == len(zeros) - 3 <= 3
        zeros.clear()


def test_features_of_zero_are_right_by_chance() -> None:
    # They have no nearest text; argmax would call class 0 right.
    images, units = {"real": pixels(1.0, 1.0, 1.0)}, {"x": {"map": [0, 1, 2, 3]}}
    for label in (0, 2):
        table = ablation_effects(
            chain(), torch.eye(4), images, units, label, draws=0, modes=["ablate"]
        )
        assert table["correct"].tolist() == [0.25]
        assert table["margin"].tolist() == [0]


# Tables


def made_up(classes: Mapping[int, int], seed: int = 0) -> pd.DataFrame:
    """Effects of one intervention on so many images of each class, with three random draws."""
    generator = np.random.default_rng(seed)
    rows = []
    for label, count in classes.items():
        for image in range(count):
            intact = {"intact_cosine": 0.5, "intact_margin": 0.4 + 0.01 * image}
            for kind, draw in (("circuit", 0), ("random", 0), ("random", 1), ("random", 2)):
                rows.append(
                    {"class_id": label, "source": "real", "target": "sketch", "layer": "all"}
                    | {"mode": "ablate", "kind": kind, "draw": draw, "image": image}
                    | {"in_sample": image == 0}
                    | {name: float(generator.random()) for name in ("cosine", "margin", "correct")}
                    | {**intact, "intact_correct": 1.0, "nothing_margin": 0.1}
                )
    return pd.DataFrame(rows)


def test_table_by_hand() -> None:
    effects = made_up({0: 1, 1: 2})
    table = ablation_table(effects)
    per_image = effects.groupby(["class_id", "image", "kind"]).mean(numeric_only=True)

    def mean(kind: str, column: str) -> float:
        """Images within classes first, then classes."""
        values = per_image[column]
        return float((values[0, 0, kind] + (values[1, 0, kind] + values[1, 1, kind]) / 2) / 2)

    def estimate(kind: str, measure: str) -> float:
        return float(row(table, group="all", kind=kind, measure=measure)["estimate"])

    for kind in ("circuit", "random"):
        for measure, column in (
            ("cosine_drop", "cosine"), ("margin_drop", "margin"), ("accuracy_drop", "correct"),
        ):  # fmt: skip
            expected = mean(kind, f"intact_{column}") - mean(kind, column)
            assert estimate(kind, measure) == pytest.approx(expected)
        ratio = (mean(kind, "margin") - 0.1) / (mean(kind, "intact_margin") - 0.1)
        assert estimate(kind, "recovered") == pytest.approx(ratio)
    for measure in MEASURES:
        circuit, random = (estimate(kind, measure) for kind in ("circuit", "random"))
        assert estimate("difference", measure) == pytest.approx(circuit - random)
    assert (table["classes"] == 2).all()
    assert (table["images"] == 3).all()
    assert (table["in_sample"] == 2).all()  # the first image of each class


def test_intervals_are_over_classes_or_the_images_of_one() -> None:
    effects = made_up(dict.fromkeys(range(8), 3))
    table = ablation_table(effects, held_out=[2], seed=5, resamples=300)
    circuit = effects[effects["kind"] == "circuit"]
    of_class = circuit.groupby("class_id")["cosine"].mean().to_numpy()
    of_image = circuit[circuit["class_id"] == 2]["cosine"].to_numpy()
    for group, values, classes in (("all", of_class, 8), ("held_out", of_image, 1)):
        expected = bootstrap_over_classes(
            0.5 - values, np.arange(len(values)), seed=5, resamples=300
        )
        rows = table[(table["group"] == group) & (table["measure"] == "cosine_drop")]
        found = rows[rows["kind"] == "circuit"].iloc[0]
        assert (found["estimate"], found["low"], found["high"]) == pytest.approx(
            (expected.estimate, expected.low, expected.high)
        )
        assert found["classes"] == classes
    assert (table["low"] <= table["estimate"]).all()
    assert (table["estimate"] <= table["high"]).all()
    assert set(table["group"]) == {"all", "held_out", "seen"}


def test_interval_of_the_ratio_covers_the_ratio_of_means() -> None:
    # Numerator and denominator vary together: the ratio of the classes is always one half.
    effects = made_up(dict.fromkeys(range(6), 1))
    margins = 0.3 + 0.1 * effects["class_id"]
    effects = effects.assign(intact_margin=margins, margin=(margins + 0.1) / 2)
    table = ablation_table(effects)
    found = row(table, group="all", kind="circuit", measure="recovered")
    assert (found["estimate"], found["low"], found["high"]) == pytest.approx((0.5, 0.5, 0.5))


def test_what_cannot_be_known_is_nan() -> None:
    alone = ablation_table(made_up({0: 1}))
    assert alone["estimate"].notna().all()
    assert alone[["low", "high"]].isna().all(axis=None)
    table = ablation_table(made_up({0: 2, 1: 2}).assign(nothing_margin=0.9))
    recovered = table[table["measure"] == "recovered"]
    assert recovered[["estimate", "low", "high"]].isna().all(axis=None)
    assert table[table["measure"] == "margin_drop"]["estimate"].notna().all()
    # In some resamples only the class with nothing to recover is drawn.
    mixed = made_up({0: 1, 1: 1})
    mixed.loc[mixed["class_id"] == 1, "nothing_margin"] = 0.45
    found = row(ablation_table(mixed), group="all", kind="circuit", measure="recovered")
    assert not math.isnan(found["estimate"])
    assert math.isnan(found["low"])


def test_without_draws_there_is_no_difference() -> None:
    effects = made_up({0: 2, 1: 2})
    table = ablation_table(effects[effects["kind"] == "circuit"])
    assert set(table["kind"]) == {"circuit"}
    assert len(table) == 2 * len(MEASURES)


# Bad input


def test_what_does_not_fit_is_named(resnet: Tower) -> None:
    images, texts = images_for(resnet, 1), torch.eye(4, 128)
    with pytest.raises(UserError, match="unknown layer 'resblock9'"):
        ablate(resnet, images, {"resblock9": [0]})
    with pytest.raises(UserError, match="unknown mode 'remove'"):
        ablate(resnet, images, {"act1": [0]}, mode="remove")
    with pytest.raises(ValueError, match=r"units \[8\] of 'act1': name each once, from 0 to 7"):
        ablate(resnet, images, {"act1": [8]})
    with pytest.raises(ValueError, match=r"units \[1, 1\] of 'act1'"):
        ablate(resnet, images, {"act1": [1, 1]})
    with pytest.raises(ValueError, match=r"value of 'act1' has shape None; expected \(8, 32, 32\)"):
        ablate(resnet, images, {"act1": [1]}, {})
    with pytest.raises(ValueError, match=r"value of 'act1' has shape \(8,\)"):
        ablate(resnet, images, {"act1": [1]}, {"act1": torch.zeros(8)})
    with pytest.raises(ValueError, match=r"images have shape \(0, 3, 64, 64\)"):
        ablate(resnet, images[:0], {"act1": [1]})
    with pytest.raises(ValueError, match="batch_size is 0"):
        ablate(resnet, images, {"act1": [1]}, batch_size=0)
    units = {"real": {"act1": [0]}}
    with pytest.raises(ValueError, match="0 domains of images, 1 circuits and 2 modes"):
        ablation_effects(resnet, texts, {}, units, 0)
    with pytest.raises(ValueError, match="draws is -1"):
        ablation_effects(resnet, texts, {"real": images}, units, 0, draws=-1)
    with pytest.raises(ValueError, match="label is 4; there are texts of 4 classes"):
        ablation_effects(resnet, texts, {"real": images}, units, 4)
    with pytest.raises(ValueError, match="circuit of 'real' has no layers beside 'input'"):
        ablation_effects(resnet, texts, {"real": images}, {"real": {"input": [0]}}, 0)


def test_means_of_nothing_are_refused(resnet: Tower) -> None:
    with pytest.raises(ValueError, match="no images to average over"):
        mean_activations(resnet, [])
    with pytest.raises(ValueError, match=r"a batch of shape \(3, 64, 64\); give \(B, 3, H, W\)"):
        mean_activations(resnet, images_for(resnet))


def test_an_intervention_counts_once() -> None:
    effects = made_up({0: 2})
    with pytest.raises(ValueError, match="has an intervention twice"):
        ablation_table(pd.concat([effects, effects]))
    with pytest.raises(ValueError, match="a table of 0 effects"):
        ablation_table(effects.iloc[:0])
