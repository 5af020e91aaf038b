"""Sparse autoencoders on image features: units that each stand for one direction, few at a time.

With inputs x in R^n, m units, encoder rows w_j, dictionary directions d_j of unit length and one
bias b that is taken off before and put back after (paper, appendix C.1):

    f_j = ReLU(w_j . (x - b) + c_j)        x^ = b + sum_j f_j d_j
    loss = l1 * mean_b sum_j f_bj + mean_b mean_i (x_bi - x^_bi)^2

Two kinds: ``relu`` is this; ``batch_topk`` keeps the k B largest codes of a batch of B while it
trains, and codes above a learnt threshold afterwards (Bussmann et al. 2024).

Training writes its gradients by hand (:func:`backward`). Most codes are zero, and everything after
the encoder, forward and backward, touches only those that are not.

Sources:
    Bricken, T. et al. (2023). Towards Monosemanticity. Transformer Circuits Thread. (tied bias,
        unit dictionary, projected gradient)
    Bussmann, B., Leask, P. and Nanda, N. (2024). BatchTopK Sparse Autoencoders. arXiv:2412.06410.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch.nn import functional

from clip_mixtures.errors import UserError
from clip_mixtures.files import replacing
from clip_mixtures.mechanisms.config import SAE_KINDS
from clip_mixtures.mixtures.spec import PROTOCOLS

# The threshold is the mean over the first hundred batches, then a moving one.
_THRESHOLD_DECAY = 0.99
# Above this share of codes that are not zero, matrix products are faster than gathered rows.
_DENSE = 0.12
_PUBLISHED_NAMES = {
    "tied_bias": "tied_bias",
    "encoder._weight": "encoder_weight",
    "encoder._bias": "encoder_bias",
    "decoder._weight": "dictionary",
}


class SparseAutoencoder(torch.nn.Module):
    """A sparse autoencoder with a tied bias and directions of unit length.

    ``protocol="published"`` starts from the published weights, whose encoder is 64 times too small
    at n = 1024: the initialisation took the fan-in of a three-dimensional tensor, so the weights
    are uniform within sqrt(6 / (m n)) and the biases within 1 / sqrt(m). ``"corrected"`` takes the
    fan-in n: sqrt(6 / n) and 1 / sqrt(n). Directions are standard normal, normalised, in both.

    Args:
        inputs: n, the width of the features.
        expansion: units an input, m = expansion * n.
        kind: one of :data:`SAE_KINDS`.
        k: mean number of units that an input may use; ``batch_topk`` only.
        protocol: one of :data:`PROTOCOLS`.
        generator: of the initial weights; torch's own where it is None.

    Attributes:
        tied_bias: b, (n,).
        encoder_weight: w_j in rows, (m, n).
        encoder_bias: c, (m,).
        dictionary: d_j in rows, (m, n); the published decoder transposed.
        threshold: what a code must exceed in evaluation, (); 0 for ``relu``.
        threshold_batches: how many batches it was learnt from, ().

    Raises:
        ValueError: for an unknown kind or protocol, or sizes below 1.
    """

    threshold: torch.Tensor
    threshold_batches: torch.Tensor

    def __init__(
        self,
        inputs: int,
        expansion: int = 4,
        *,
        kind: str = "relu",
        k: int = 32,
        protocol: str = "corrected",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check(inputs, expansion, kind, k, protocol)
        self.inputs, self.expansion, self.units = inputs, expansion, inputs * expansion
        self.kind, self.k, self.protocol = kind, k, protocol
        n, m = self.inputs, self.units
        fan_in = m * n if protocol == "published" else n
        bias_fan_in = m if protocol == "published" else n
        self.tied_bias = torch.nn.Parameter(torch.zeros(n))
        self.encoder_weight = torch.nn.Parameter(_uniform((m, n), math.sqrt(6 / fan_in), generator))
        self.encoder_bias = torch.nn.Parameter(
            _uniform((m,), 1 / math.sqrt(bias_fan_in), generator)
        )
        directions = torch.randn((m, n), generator=generator)
        self.dictionary = torch.nn.Parameter(functional.normalize(directions, dim=1))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("threshold_batches", torch.zeros((), dtype=torch.int64))

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the codes f of inputs.

        Args:
            inputs: (B, n) features; half precision is raised to the weights' precision.

        Returns:
            (B, m), zero or more. In training mode ``batch_topk`` keeps the k B largest of the
            batch; in evaluation mode the codes of an input do not depend on its batch.

        Raises:
            ValueError: when the width is not that of the autoencoder.
        """
        codes = self._activations(self._centred(inputs)[1]).relu()
        if self.kind == "relu":
            return codes
        if not self.training:
            return codes * (codes > self.threshold)
        kept = _largest(codes, self.k * len(codes), float(self.threshold))
        mask = torch.zeros_like(codes).flatten()
        return codes * mask.index_fill_(0, kept, 1).view_as(codes)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the reconstructions x^ (B, n) of codes (B, m)."""
        return torch.addmm(self.tied_bias, codes, self.dictionary)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes (B, m) and reconstructions (B, n) of inputs (B, n)."""
        codes = self.encode(inputs)
        return codes, self.decode(codes)

    @torch.no_grad()
    def renormalise(self) -> None:
        """Bring the directions back to unit length, which must follow every step."""
        self.dictionary.div_(self.dictionary.norm(dim=1, keepdim=True))

    def _centred(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inputs in the weights' precision, and without the bias."""
        if inputs.ndim != 2 or inputs.shape[1] != self.inputs:
            raise ValueError(
                f"features have shape {tuple(inputs.shape)}, but the autoencoder takes "
                f"(images, {self.inputs}); use the one that was trained on features of this model"
            )
        inputs = inputs.to(self.tied_bias.dtype)
        return inputs, inputs - self.tied_bias

    def _activations(self, centred: torch.Tensor) -> torch.Tensor:
        return _linear(centred, self.encoder_weight, self.encoder_bias)

    @torch.no_grad()
    def _learn_threshold(self, smallest: torch.Tensor) -> None:
        self.threshold_batches += 1
        share = max(1 - _THRESHOLD_DECAY, 1 / int(self.threshold_batches))
        self.threshold += share * (smallest - self.threshold)


class Losses(NamedTuple):
    """Means over a batch, tensors of shape (), in the order in which the published code logs them.

    The published ``Loss/val_total`` is the mean of these four numbers, not the total.

    Attributes:
        l1: sum of an input's codes.
        penalty: that times the coefficient.
        reconstruction: squared error, a mean over the n inputs.
        total: penalty + reconstruction, which is minimised.
    """

    l1: torch.Tensor
    penalty: torch.Tensor
    reconstruction: torch.Tensor
    total: torch.Tensor


def loss(
    inputs: torch.Tensor, codes: torch.Tensor, reconstructions: torch.Tensor, l1: float
) -> Losses:
    """Return the loss of a batch: codes are summed over units, squared errors averaged over inputs.

    Args:
        inputs: x, (B, n).
        codes: f, (B, m).
        reconstructions: x^, (B, n).
        l1: coefficient of the codes.
    """
    summed = codes.abs().sum(dim=1).mean()
    error = (inputs - reconstructions).square().mean(dim=1).mean()
    return Losses(summed, l1 * summed, error, l1 * summed + error)


def loss_per_item(
    inputs: torch.Tensor, codes: torch.Tensor, reconstructions: torch.Tensor, l1: float
) -> torch.Tensor:
    """Return the loss of each input, (B,); arguments as in :func:`loss`."""
    error = (inputs - reconstructions).square().mean(dim=1)
    return l1 * codes.abs().sum(dim=1) + error


class Pass(NamedTuple):
    """What a forward and backward pass found.

    Attributes:
        losses: of the batch.
        fired: in how many of the batch's inputs each unit is active, (m,) int64.
    """

    losses: Losses
    fired: torch.Tensor


@torch.no_grad()
def backward(model: SparseAutoencoder, inputs: torch.Tensor, l1: float) -> Pass:
    """Leave the gradients of the total loss of a batch, and learn the threshold of ``batch_topk``.

    The gradients are autograd's, with less work: none is taken by the inputs, whose sum over the
    batch is all that the tied bias needs; and where few codes are active only those are followed.
    As published, the gradient of a direction loses its part along the direction.

    Args:
        model: the autoencoder; its parameters' ``grad`` is overwritten.
        inputs: (B, n).
        l1: coefficient of the codes.

    Raises:
        ValueError: when the width is not that of the autoencoder.
    """
    inputs, centred = model._centred(inputs)
    activations = model._activations(centred)
    if model.kind == "batch_topk":
        active = _largest(activations, model.k * len(inputs), float(model.threshold))
        if len(active):
            model._learn_threshold(activations.flatten()[active].min())
    elif _looks_dense(activations):
        return _dense_backward(model, inputs, centred, activations.relu_(), l1)
    else:
        active = (activations > 0).flatten().nonzero().squeeze(1)
    return _sparse_backward(model, centred, activations, active, l1)


def _dense_backward(
    model: SparseAutoencoder,
    inputs: torch.Tensor,
    centred: torch.Tensor,
    codes: torch.Tensor,
    l1: float,
) -> Pass:
    residuals = model.decode(codes).sub_(inputs)
    losses = _losses(codes.sum(), residuals, l1)
    wanted = residuals.mul_(2 / residuals.numel())
    by_code = _linear(wanted, model.dictionary).add_(l1 / len(inputs))
    inactive = codes == 0
    by_code.masked_fill_(inactive, 0)
    by_direction = codes.T @ wanted
    _leave(
        model,
        by_reconstruction=wanted.sum(dim=0),
        by_bias=by_code.sum(dim=0),
        by_weight=by_code.T @ centred,
        by_direction=by_direction,
        along=torch.linalg.vecdot(by_direction, model.dictionary),
    )
    return Pass(losses, len(inputs) - inactive.sum(dim=0))


def _sparse_backward(
    model: SparseAutoencoder,
    centred: torch.Tensor,
    activations: torch.Tensor,
    active: torch.Tensor,
    l1: float,
) -> Pass:
    """Follow only the codes at flat positions ``active``, in rising order.

    A sum over an input's units, or over a unit's inputs, is a bag of weighted rows. What can be
    done to the active codes is not done to whole matrices: the factor of the residuals, and the
    part of a direction's gradient along the direction, which is a sum over the unit's codes.
    """
    rows, units = active // model.units, active % model.units
    # With the gradient of the weights of a bag, autograd takes the products at active codes alone.
    codes = activations.flatten()[active].requires_grad_()
    used = torch.bincount(rows, minlength=len(centred))
    with torch.enable_grad():
        decoded = _bags(model.dictionary.detach(), units, used, codes)
    # The bias is taken off the inputs already, and not yet put back to what is decoded.
    residuals = decoded.detach() - centred
    losses = _losses(codes.detach().sum(), residuals, l1)
    (products,) = torch.autograd.grad(decoded, codes, residuals)
    factor = 2 / residuals.numel()
    fired = torch.bincount(units, minlength=model.units)
    units, order = units.sort(stable=True)
    rows, codes, products = rows[order], factor * codes.detach()[order], products[order]
    by_code = factor * products + l1 / len(centred)
    nothing = torch.zeros_like(model.encoder_bias)
    _leave(
        model,
        by_reconstruction=factor * residuals.sum(dim=0),
        by_bias=nothing.index_add(0, units, by_code),
        by_weight=_bags(centred, rows, fired, by_code),
        by_direction=_bags(residuals, rows, fired, codes),
        along=nothing.index_add(0, units, codes * products),
    )
    return Pass(losses, fired)


def _losses(summed: torch.Tensor, residuals: torch.Tensor, l1: float) -> Losses:
    mean, error = summed / len(residuals), residuals.square().mean()
    return Losses(mean, l1 * mean, error, l1 * mean + error)


def _leave(
    model: SparseAutoencoder,
    *,
    by_reconstruction: torch.Tensor,
    by_bias: torch.Tensor,
    by_weight: torch.Tensor,
    by_direction: torch.Tensor,
    along: torch.Tensor,
) -> None:
    """Store the gradients.

    Args:
        model: whose.
        by_reconstruction: the loss' gradient by the reconstructions, a sum over the batch, (n,).
        by_bias: by the encoder's bias, (m,).
        by_weight: by the encoder's weight, (m, n).
        by_direction: by the directions, (m, n).
        along: the products of these with the directions, (m,).
    """
    model.tied_bias.grad = by_reconstruction - by_bias @ model.encoder_weight
    model.encoder_bias.grad = by_bias
    model.encoder_weight.grad = by_weight
    model.dictionary.grad = by_direction.addcmul_(model.dictionary, along[:, None], value=-1)


def _largest(activations: torch.Tensor, count: int, threshold: float) -> torch.Tensor:
    """Return the flat positions of the largest positive activations, at most ``count``, rising.

    Almost all activations lie far below the usual threshold, so those near it are tried first; the
    answer is the same.
    """
    flat = activations.detach().flatten()
    near = (flat > 0.8 * threshold).nonzero().squeeze(1)
    if len(near) < count:
        near = (flat > 0).nonzero().squeeze(1)
    if len(near) <= count:
        return near
    places = flat[near].topk(count, sorted=False).indices
    return near[places].sort().values


def _looks_dense(activations: torch.Tensor) -> bool:
    """Judge by every 32nd input; only the speed depends on it.

    A GPU multiplies whole matrices at least as fast as it looks for what is active in them.
    """
    if activations.device.type != "cpu":
        return True
    some = activations[::32] > 0
    return int(some.count_nonzero()) > _DENSE * some.numel()


def _bags(
    table: torch.Tensor, places: torch.Tensor, sizes: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Sum weighted rows of a table, a bag of places at a time; bags follow one another."""
    starts = sizes.cumsum(0) - sizes
    return functional.embedding_bag(places, table, starts, mode="sum", per_sample_weights=weights)


def _linear(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return inputs @ weight.T + bias.

    On the CPU it is written as a convolution with 1 x 1 pixels. That goes to oneDNN, which uses
    the whole width of the processor where the library behind torch's matrix product may not; it is
    1.6 times as fast on an AMD EPYC.
    """
    if inputs.device.type != "cpu" or inputs.dtype != torch.float32:
        return functional.linear(inputs, weight, bias)
    pixels = inputs[None, None].permute(0, 3, 1, 2)
    convolved = functional.conv2d(pixels, weight[:, :, None, None], bias)
    return convolved.permute(0, 2, 3, 1)[0, 0].contiguous()


def _uniform(
    shape: tuple[int, ...], bound: float, generator: torch.Generator | None
) -> torch.Tensor:
    return torch.rand(shape, generator=generator).mul_(2 * bound).sub_(bound)


def _check(inputs: int, expansion: int, kind: str, k: int, protocol: str) -> None:
    if kind not in SAE_KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(SAE_KINDS)}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    for name, value in (("inputs", inputs), ("expansion", expansion), ("k", k)):
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed: 1 or more")
    if kind == "batch_topk" and k > inputs * expansion:
        raise ValueError(f"k is {k}, more than the {inputs * expansion} units; make it smaller")


def save_sae(path: Path, model: SparseAutoencoder) -> None:
    """Write an autoencoder as safetensors, with what is needed to make it again."""
    # One entry, for safetensors writes several in no fixed order.
    facts = {_METADATA: json.dumps({name: getattr(model, name) for name in _FACTS})}
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, str(temporary), metadata=facts)


_METADATA = "sparse_autoencoder"
_FACTS = ("inputs", "expansion", "kind", "k", "protocol")


def load_sae(path: Path) -> SparseAutoencoder:
    """Read an autoencoder, in evaluation mode.

    Raises:
        UserError: when the file is absent, damaged, or something else.
    """
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            facts = json.loads((file.metadata() or {})[_METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = SparseAutoencoder(**facts)
        model.load_state_dict(tensors)
    except FileNotFoundError as error:
        raise UserError(f"{path}: absent; train the sparse autoencoder first") from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: no sparse autoencoder ({reason}); train it again") from error
    return model.eval()


_UNREADABLE = (KeyError, ValueError, TypeError, RuntimeError, OSError, safetensors.SafetensorError)


def from_published(tensors: Mapping[str, torch.Tensor]) -> SparseAutoencoder:
    """Make an autoencoder of a published state dict, in evaluation mode.

    Args:
        tensors: ``tied_bias`` (1, n), ``encoder._weight`` (1, m, n), ``encoder._bias`` (1, m) and
            ``decoder._weight`` (1, n, m). The two ``_bias_reference`` are the tied bias again.

    Raises:
        UserError: when one is missing or the shapes do not belong together.
    """
    missing = [name for name in _PUBLISHED_NAMES if name not in tensors]
    if missing:
        raise UserError(f"published autoencoder: {', '.join(missing)} missing from the state dict")
    ours = {new: tensors[old].squeeze(0).float() for old, new in _PUBLISHED_NAMES.items()}
    ours["dictionary"] = ours["dictionary"].mT
    inputs, units = ours["tied_bias"].numel(), ours["encoder_bias"].numel()
    model = SparseAutoencoder(inputs, max(units // inputs, 1), protocol="published")
    for name, tensor in ours.items():
        parameter = model.get_parameter(name)
        if parameter.shape != tensor.shape:
            raise UserError(
                f"published autoencoder: {name} is {tuple(tensor.shape)}, expected "
                f"{tuple(parameter.shape)} for {inputs} inputs; take all tensors from one file"
            )
        parameter.data.copy_(tensor)
    return model.eval()
