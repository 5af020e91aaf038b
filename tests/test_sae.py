"""Sparse autoencoders: published steps, gradients against autograd, initial weights, files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.config import SaeConfig
from clip_mixtures.mechanisms.sae import (
    SparseAutoencoder,
    backward,
    from_published,
    load_sae,
    loss,
    loss_per_item,
    save_sae,
)
from clip_mixtures.mechanisms.sae_training import make_optimizer

L1 = 0.01


def published_weights(answers: Any, prefix: str) -> SparseAutoencoder:
    names = ("tied_bias", "encoder._weight", "encoder._bias", "decoder._weight")
    return from_published({name: torch.from_numpy(answers[prefix + name]) for name in names})


def seeded(inputs: int = 6, expansion: int = 4, **options: Any) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(3)
    model = SparseAutoencoder(inputs, expansion, generator=generator, **options)
    # A bias that is not zero, so that forgetting it shows.
    model.tied_bias.data = torch.linspace(-0.2, 0.3, inputs)
    return model


def rows(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn((count, width), generator=generator), dim=1)


def hand_made() -> SparseAutoencoder:
    """Two inputs, two units: w = (1, 0), (0, 2), c = (0, -1), d = the axes, b = (0.5, 0)."""
    model = SparseAutoencoder(2, 1)
    model.tied_bias.data = torch.tensor([0.5, 0.0])
    model.encoder_weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    model.encoder_bias.data = torch.tensor([0.0, -1.0])
    model.dictionary.data = torch.eye(2)
    return model


def test_codes_reconstruction_and_loss_by_hand() -> None:
    model = hand_made()
    inputs = torch.tensor([[1.5, 1.0], [0.0, 0.5]])
    codes, reconstructions = model(inputs)
    # (1.5 - 0.5, 2 - 1) and (max(-0.5, 0), max(1 - 1, 0)).
    assert codes.tolist() == [[1, 1], [0, 0]]
    assert reconstructions.tolist() == [[1.5, 1], [0.5, 0]]
    # Sums of codes 2 and 0; squared errors 0 and (0.25 + 0.25) / 2.
    found = loss(inputs, codes, reconstructions, l1=0.1)
    assert [float(value.detach()) for value in found] == pytest.approx([1, 0.1, 0.125, 0.225])
    items = loss_per_item(inputs, codes, reconstructions, l1=0.1)
    assert items.tolist() == pytest.approx([0.2, 0.25])


def test_forward_is_the_published_one(shared_file: Callable[[str], Path]) -> None:
    answers = np.load(shared_file("oracle/numerics/sae_steps.npz"))
    model = published_weights(answers, "step0/")
    inputs = torch.from_numpy(answers["batches"][0])
    codes, reconstructions = model(inputs)
    items = loss_per_item(inputs, codes, reconstructions, L1)
    for found, name in ((codes, "learned"), (reconstructions, "recon"), (items, "loss_per_item")):
        expected = torch.from_numpy(answers[f"step0/{name}"]).view_as(found)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_four_steps_are_the_published_ones(shared_file: Callable[[str], Path]) -> None:
    answers = np.load(shared_file("oracle/numerics/sae_steps.npz"))
    facts = json.loads(shared_file("oracle/numerics/sae_steps.json").read_text())
    model = published_weights(answers, "step0/").train()
    config = SaeConfig(epochs=1, batch_size=32, learning_rate=1e-3, l1=L1)
    optimizer = make_optimizer(model, config)
    fired = torch.zeros(model.units, dtype=torch.int64)
    for step, batch in enumerate(torch.from_numpy(answers["batches"])):
        found = backward(model, batch, L1)
        fired += found.fired
        if step == 0:
            check_gradients(model, answers)
        expected = facts["losses"][step]
        assert float(found.losses.total) == pytest.approx(expected["total"], abs=1e-6)
        assert float(found.losses.l1) == pytest.approx(
            expected["loss/learned_activations_l1"][0], rel=1e-6
        )
        optimizer.step()
        model.renormalise()
        after = published_weights(answers, f"step{step + 1}/")
        for name, parameter in model.named_parameters():
            wanted = after.get_parameter(name)
            torch.testing.assert_close(parameter, wanted, atol=1e-6, rtol=0, msg=name)
    assert fired.tolist() == answers["fired_count"][0].tolist()


def check_gradients(model: SparseAutoencoder, answers: Any) -> None:
    names = {
        "tied_bias": "tied_bias",
        "encoder_weight": "encoder._weight",
        "encoder_bias": "encoder._bias",
        "dictionary": "decoder._weight",
    }
    for ours, theirs in names.items():
        expected = torch.from_numpy(answers[f"step0/grad/{theirs}"]).squeeze(0)
        expected = expected.mT if ours == "dictionary" else expected
        gradient = model.get_parameter(ours).grad
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0, msg=ours)


def automatic(model: SparseAutoencoder, inputs: torch.Tensor, l1: float) -> dict[str, torch.Tensor]:
    """Return autograd's gradients, with the direction's own part projected away."""
    codes, reconstructions = model(inputs)
    found = loss(inputs.to(model.tied_bias.dtype), codes, reconstructions, l1)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(found.total, parameters), strict=True))
    directions = model.dictionary.detach()
    along = (gradients["dictionary"] * directions).sum(dim=1, keepdim=True)
    gradients["dictionary"] = gradients["dictionary"] - along * directions
    return {"total": found.total.detach(), **gradients}


@given(
    count=st.integers(1, 70),
    # From nearly every unit active, the dense way, over a few, the sparse one, to none.
    shift=st.sampled_from([1.0, 0.0, -0.4, -0.8, -1.2, -9.0]),
    l1=st.sampled_from([0.0, 0.3]),
    kind=st.sampled_from(["relu", "batch_topk"]),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_gradients_by_hand_are_those_of_autograd(
    count: int, shift: float, l1: float, kind: str, seed: int
) -> None:
    model = seeded(kind=kind, k=2).double()
    model.encoder_bias.data += shift
    inputs = rows(count, seed=seed).double()
    expected = automatic(model, inputs, l1)
    with torch.no_grad():
        fired = (model.encode(inputs) > 0).sum(dim=0)
    found = backward(model, inputs, l1)
    assert float(found.losses.total) == pytest.approx(float(expected["total"]), abs=1e-12)
    assert found.fired.tolist() == fired.tolist()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-12, rtol=0, msg=name)


@pytest.mark.parametrize("shift", [0.0, -0.5])
def test_single_precision_gradients_are_those_of_double(shift: float) -> None:
    # At this precision the encoder runs as a convolution.
    model = seeded(32, 4)
    model.encoder_bias.data += shift
    inputs = rows(96, 32)
    backward(model, inputs, L1)
    exact = seeded(32, 4).double()
    exact.load_state_dict(model.state_dict())
    expected = automatic(exact, inputs.double(), L1)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.grad.double(), expected[name], atol=1e-7, rtol=0, msg=name
        )


def test_a_gradient_has_no_part_along_its_direction() -> None:
    model = seeded()
    backward(model, rows(40), L1)
    assert model.dictionary.grad is not None
    along = (model.dictionary.grad * model.dictionary).sum(dim=1)
    assert model.dictionary.grad.abs().max() > 1e-4
    assert along.detach().abs().max() < 1e-6 * model.dictionary.grad.norm()


def test_directions_have_unit_length_at_first_and_after_renormalising() -> None:
    model = seeded()
    for _ in range(2):
        assert torch.allclose(model.dictionary.norm(dim=1), torch.ones(24))
        model.dictionary.data *= torch.linspace(0.5, 3, 24)[:, None]
        model.renormalise()


def test_published_weights_start_too_small_and_corrected_ones_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    published = SparseAutoencoder(64, 4, protocol="published", generator=generator)
    corrected = SparseAutoencoder(64, 4, generator=generator)
    for model, weight, bias in (
        (published, math.sqrt(6 / (256 * 64)), 1 / math.sqrt(256)),
        (corrected, math.sqrt(6 / 64), 1 / 8),
    ):
        assert 0.98 * weight < float(model.encoder_weight.detach().abs().max()) <= weight
        assert 0.95 * bias < float(model.encoder_bias.detach().abs().max()) <= bias
        assert float(model.encoder_weight.detach().mean()) == pytest.approx(0, abs=0.02 * weight)
        assert not model.tied_bias.detach().any()


def test_published_start_has_the_published_bounds(shared_file: Callable[[str], Path]) -> None:
    facts = json.loads(shared_file("oracle/numerics/sae_steps.json").read_text())["init_stats"]
    generator = torch.Generator().manual_seed(0)
    model = SparseAutoencoder(1024, protocol="published", generator=generator)
    largest = {
        "encoder_weight_absmax_1024x4096": model.encoder_weight,
        "encoder_bias_absmax": model.encoder_bias,
    }
    for name, parameter in largest.items():
        assert float(parameter.detach().abs().max()) == pytest.approx(facts[name], rel=1e-3)


def test_half_precision_features_are_raised() -> None:
    model, inputs = seeded(), rows(5).half()
    assert model.encode(inputs).dtype == torch.float32
    assert torch.equal(model.encode(inputs), model.encode(inputs.float()))


def test_batch_topk_keeps_the_largest_of_the_batch() -> None:
    # Activations: image one 5 and 4, image two 3 and -1; with k = 1 two codes stay, both of the
    # first image; one an image would be 5 and 3.
    model = SparseAutoencoder(2, 1, kind="batch_topk", k=1)
    model.encoder_weight.data, model.encoder_bias.data = torch.eye(2), torch.zeros(2)
    inputs = torch.tensor([[5.0, 4.0], [3.0, -1.0]])
    assert model.encode(inputs).tolist() == [[5, 4], [0, 0]]
    backward(model, inputs, 0.0)
    # The smallest code that was kept is the threshold of evaluation; it must be exceeded.
    assert float(model.threshold) == 4
    model.eval()
    assert model.encode(inputs).tolist() == [[5, 0], [0, 0]]
    assert model.encode(torch.tensor([[4.5, 4.25]])).tolist() == [[4.5, 4.25]]


def test_the_threshold_is_a_mean_over_batches_at_first() -> None:
    model = SparseAutoencoder(2, 1, kind="batch_topk", k=1)
    model.encoder_weight.data, model.encoder_bias.data = torch.eye(2), torch.zeros(2)
    for value in (1.0, 2.0, 6.0):
        backward(model, torch.tensor([[value, 0.5]]), 0.0)
    assert float(model.threshold) == pytest.approx(3)
    # A batch without a positive activation says nothing of the threshold.
    backward(model, torch.tensor([[-1.0, -1.0]]), 0.0)
    assert float(model.threshold) == pytest.approx(3)


@given(threshold=st.floats(0, 3), count=st.integers(1, 30), k=st.integers(1, 24))
@settings(max_examples=50, deadline=None)
def test_the_guess_at_the_threshold_changes_nothing(threshold: float, count: int, k: int) -> None:
    model, inputs = seeded(kind="batch_topk", k=k), rows(count, seed=count)
    plain = model.encode(inputs)
    model.threshold.fill_(threshold)
    assert torch.equal(model.encode(inputs), plain)
    # Never more than k B; fewer only where no more are positive.
    positive = int((seeded(kind="relu").encode(inputs) > 0).sum())
    assert int((plain > 0).sum()) == min(k * count, positive)


def test_codes_in_evaluation_do_not_depend_on_the_batch() -> None:
    model = seeded(kind="batch_topk", k=2)
    for seed in range(3):
        backward(model, rows(30, seed=seed), 0.0)
    model.eval()
    inputs = rows(10, seed=9)
    apart = torch.cat([model.encode(row[None]) for row in inputs])
    assert torch.allclose(model.encode(inputs), apart, atol=1e-6)
    assert 0 < int((apart > 0).sum()) < 240


def test_a_file_keeps_everything_bit_for_bit(tmp_path: Path) -> None:
    model = seeded(kind="batch_topk", k=3)
    backward(model, rows(30), 0.0)
    for name in ("one", "two"):
        save_sae(tmp_path / name, model)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found = load_sae(tmp_path / "one")
    assert not found.training
    assert (found.kind, found.k, found.units) == ("batch_topk", 3, 24)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_absent_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "sae.safetensors"
    with pytest.raises(UserError, match=r"sae\.safetensors: absent; train"):
        load_sae(path)
    save_sae(path, seeded())
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"sae\.safetensors: no sparse autoencoder"):
        load_sae(path)
    path.write_bytes(b"not at all")
    with pytest.raises(UserError, match=r"sae\.safetensors: no sparse autoencoder"):
        load_sae(path)


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no sparse autoencoder"):
        load_sae(tmp_path / "other.safetensors")


def test_published_names_are_understood() -> None:
    model = seeded()
    tensors = {
        "tied_bias": model.tied_bias[None],
        "pre_encoder_bias._bias_reference": model.tied_bias[None],
        "encoder._weight": model.encoder_weight[None],
        "encoder._bias": model.encoder_bias[None],
        "decoder._weight": model.dictionary.T[None],
    }
    found = from_published(tensors)
    inputs = rows(4)
    assert torch.equal(found(inputs)[1], model(inputs)[1])
    del tensors["encoder._bias"]
    with pytest.raises(UserError, match=r"encoder\._bias missing"):
        from_published(tensors)
    tensors["encoder._bias"] = torch.zeros(1, 12)
    with pytest.raises(UserError, match=r"encoder_weight is \(24, 6\), expected \(12, 6\)"):
        from_published(tensors)


def test_features_of_another_width_are_refused() -> None:
    model = seeded()
    for call in (model.encode, lambda inputs: backward(model, inputs, L1)):
        with pytest.raises(ValueError, match=r"\(3, 5\), but the autoencoder takes \(images, 6\)"):
            call(torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "topk"}, "kind is 'topk'; choose one of relu, batch_topk"),
        ({"protocol": "new"}, "protocol is 'new'"),
        ({"expansion": 0}, "expansion is 0"),
        ({"inputs": 0}, "inputs is 0"),
        ({"kind": "batch_topk", "k": 9}, "k is 9, more than the 8 units"),
    ],
)
def test_impossible_autoencoders_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder(**{"inputs": 2, **options})
