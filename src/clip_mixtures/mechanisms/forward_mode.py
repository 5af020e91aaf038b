"""What single upstream neurons do to single downstream neurons of a ResNet, by forward mode.

Between two neighbouring submodules with the values c and d, an edge from neuron k to neuron n is

    sum over the path, images and positions of  weight * residual_n * (J [c e_k])_n

where J is the Jacobian at the point of the path, c e_k the value with all channels but k at zero,
and residual_n = 2 (y_n - d_n) / positions for the downstream value y at that point. One product of
J with c e_k serves all n. Each kind of submodule gets such sums from its own structure:

- a step of the stem is a linear map and a mask, so the residuals are summed over the path first;
- a pooling connects equal channels only;
- attention is differentiated by hand, its keys and values being linear in the place on the path;
- a residual block has a file of its own, :mod:`residual_edges`.
"""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from clip_mixtures.mechanisms.folding import AttentionPool, ConvolutionReLU
from clip_mixtures.mechanisms.integration import Path


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """Two neighbouring submodules and the neurons between which edges are wanted.

    Attributes:
        upstream: c of some images, (B, C, H, W).
        downstream: d of the same images, (B, C', H', W') or (B, C').
        sources: indices of the upstream neurons, (K,) int64.
        targets: indices of the downstream neurons, (N,) int64.
        path: points of the path and their weights.
        memory_bytes: bound on what is held at a time; half of it is for the values themselves.
    """

    upstream: torch.Tensor
    downstream: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor
    path: Path
    memory_bytes: int


def stem_edges(part: ConvolutionReLU, pair: Neighbours) -> torch.Tensor:
    """Return the edges (N, K) of a step of the stem; see the module.

    Its sum over positions is the gradient of the weights, with residuals in place of a gradient.
    """
    chosen = part.convolution.only(pair.targets)
    linear = chosen.linear(pair.upstream)
    aim = pair.downstream[:, pair.targets]
    total = torch.zeros_like(linear)
    for scale, weight in zip(pair.path.scales, pair.path.weights, strict=True):
        reached = functional.relu(scale * linear + chosen.bias[:, None, None])
        total += residuals(reached, aim, weight, rectified=True)
    weights = chosen.weight[:, pair.sources]
    channels = pair.upstream[:, pair.sources]
    gradient: torch.Tensor = conv2d_weight(
        channels, weights.shape, total, chosen.stride, chosen.padding
    )
    return (weights * gradient).sum(dim=(2, 3))


def pool_edges(part: torch.nn.AvgPool2d, pair: Neighbours) -> torch.Tensor:
    """Return the edges (N, K) of an average pooling; see the module."""
    linear = part(pair.upstream[:, pair.targets])
    aim = pair.downstream[:, pair.targets]
    own = torch.zeros(len(pair.targets), dtype=linear.dtype, device=linear.device)
    for scale, weight in zip(pair.path.scales, pair.path.weights, strict=True):
        own += (residuals(scale * linear, aim, weight, rectified=False) * linear).sum(dim=(0, 2, 3))
    return own[:, None] * (pair.targets[:, None] == pair.sources)


def attention_edges(part: AttentionPool, pair: Neighbours) -> torch.Tensor:
    """Return the edges (N, K) of the attention pool; see the module."""
    chosen = dataclasses.replace(
        part, output=part.output[pair.targets], output_bias=part.output_bias[pair.targets]
    )
    direct = torch.einsum("nhd,hdk->nhk", chosen.output, part.value[..., pair.sources])
    found = torch.zeros_like(direct[:, 0])
    fixed = _attended(chosen, part.position, pair.sources)
    aims = pair.downstream[:, pair.targets]
    for tokens, aim in zip(part.tokens(pair.upstream), aims, strict=True):
        moving = _attended(chosen, tokens, pair.sources)
        tangents = tokens[:, pair.sources]
        for scale, weight in zip(pair.path.scales, pair.path.weights, strict=True):
            there = [scale * m + f for m, f in zip(moving, fixed, strict=True)]
            keys, values, meeting = there
            query = chosen.queries((scale * tokens + part.position)[None])[0]
            attention = torch.einsum("hd,jhd->hj", query, keys).softmax(dim=-1)
            reached = torch.einsum("nhj,hj->n", values, attention) + _constant(chosen)
            # The query moves with the mean token, keys and values with every token.
            logits = meeting * tangents[0] + tangents * torch.einsum(
                "hd,hdk->hk", query, part.key[..., pair.sources]
            ).unsqueeze(1)
            mean = torch.einsum("hj,hjk->hk", attention, logits).unsqueeze(1)
            moved = attention.unsqueeze(-1) * (logits - mean)
            product = values.flatten(1) @ moved.flatten(0, 1)
            product += torch.einsum("nhk,hk->nk", direct, attention @ tangents)
            found += 2 * weight * (reached - aim).unsqueeze(1) * product
    return found


def residuals(
    reached: torch.Tensor, aim: torch.Tensor, weight: float, rectified: bool
) -> torch.Tensor:
    """Return the weighted gradient of the squared error, a mean over positions, (B, N, H, W).

    Args:
        reached: downstream values at a point of the path, (B, N, H, W).
        aim: those of the network's own pass.
        weight: of the point.
        rectified: whether ``reached`` comes out of a rectifier, which the gradient passes.
    """
    positions = aim[0, 0].numel()
    error = (reached - aim).mul_(2 * weight / positions)
    return error.mul_(reached > 0) if rectified else error


def _attended(
    part: AttentionPool, tokens: torch.Tensor, sources: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what is linear in tokens (J, C).

    Returns:
        Keys (J, heads, d), values brought to the outputs (N, heads, J), and the scaled products of
        keys with the query weights of the upstream neurons (heads, J, K).
    """
    keys = torch.einsum("hdc,jc->jhd", part.key, tokens)
    values = torch.einsum("hdc,jc->jhd", part.value, tokens)
    return (
        keys,
        torch.einsum("nhd,jhd->nhj", part.output, values),
        torch.einsum("jhd,hdk->hjk", keys, part.query[..., sources]) * part.scale,
    )


def _constant(part: AttentionPool) -> torch.Tensor:
    """Return the part of the outputs (N,) that does not depend on the tokens."""
    return torch.einsum("nhd,hd->n", part.output, part.value_bias) + part.output_bias
