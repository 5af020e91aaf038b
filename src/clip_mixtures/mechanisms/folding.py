"""Submodules of a ResNet as functions with fewer operations and constant parameters.

A folded function gives what its submodule gives in evaluation mode, up to rounding, for less:

- batch normalisation is an affine map of each channel, so it goes into the convolution before it;
- the attention pool returns the output of its first token alone, so queries of the others are not
  needed, and the keys and values of single tokens neither: with q the query of a head, its logits
  are t_j . (Wk^T q) plus a constant that the softmax drops, and its output is Wv applied to the
  weighted mean of the tokens. That is 40 times fewer products at 50 tokens.

Folded parameters want no gradient: a backward pass through a folded function is one to its input
alone. Convolutions are copies, channels last, the faster layout on processors. Submodules of other
networks stay as they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from open_clip.modified_resnet import AttentionPool2d, Bottleneck
from torch.nn import functional

from clip_mixtures.mechanisms.towers import Function, Tower


@dataclasses.dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution with the batch normalisation after it.

    Attributes:
        weight: (outputs, inputs, height, width).
        bias: (outputs,).
        stride: along both axes.
        padding: with zeros, on all sides.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    stride: int = 1
    padding: int = 0

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H', W')."""
        return self._convolve(value, self.bias)

    def linear(self, value: torch.Tensor) -> torch.Tensor:
        """Do the same without the bias."""
        return self._convolve(value, None)

    def _convolve(self, value: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return functional.conv2d(value, self.weight, bias, self.stride, self.padding)

    def only(self, outputs: torch.Tensor) -> Convolution:
        """Return the convolution to some of its outputs, given by index."""
        weight = self.weight[outputs].contiguous(memory_format=torch.channels_last)
        return dataclasses.replace(self, weight=weight, bias=self.bias[outputs])


@dataclasses.dataclass(frozen=True, eq=False)
class ConvolutionReLU:
    """A step of the stem: a convolution, batch normalisation and a rectifier."""

    convolution: Convolution

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H', W')."""
        return functional.relu_(self.convolution(value))


@dataclasses.dataclass(frozen=True, eq=False)
class ResidualBlock:
    """A bottleneck: relu(expand(pool(relu(mix(relu(reduce(x)))))) + shortcut(pool(x))).

    Attributes:
        reduce: 1 x 1, to the inner width.
        mix: 3 x 3 at the inner width.
        pool: side of the average pooling, 1 for none.
        expand: 1 x 1, to the outer width.
        shortcut: 1 x 1, or None for the identity; it is pooled alike.
    """

    reduce: Convolution
    mix: Convolution
    pool: int
    expand: Convolution
    shortcut: Convolution | None

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C', H / pool, W / pool)."""
        inner = functional.relu_(self.reduce(value))
        inner = functional.relu_(self.mix(inner))
        outer = self.expand(self.pooled(inner))
        pooled = self.pooled(value)
        return functional.relu_(outer.add_(self.shortcut(pooled) if self.shortcut else pooled))

    def pooled(self, value: torch.Tensor) -> torch.Tensor:
        """Average over squares of ``pool`` positions a side."""
        return value if self.pool == 1 else functional.avg_pool2d(value, self.pool)


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionPool:
    """Attention of the mean token to all tokens, and the projection of what it finds.

    Attributes:
        position: embedding of the places, (J, C), that of the mean first.
        query: (heads, d, C).
        query_bias: (heads, d).
        key: (heads, d, C); its bias does not matter.
        value: (heads, d, C).
        value_bias: (heads, d).
        output: (D, heads, d).
        output_bias: (D,).
    """

    position: torch.Tensor
    query: torch.Tensor
    query_bias: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    value_bias: torch.Tensor
    output: torch.Tensor
    output_bias: torch.Tensor

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, D)."""
        tokens = self.tokens(value) + self.position
        keys = torch.einsum("hdc,bhd->bhc", self.key, self.queries(tokens))
        attention = torch.bmm(keys, tokens.transpose(1, 2)).softmax(dim=-1)
        found = torch.bmm(attention, tokens)
        heads = torch.einsum("hdc,bhc->bhd", self.value, found) + self.value_bias
        return functional.linear(heads.flatten(1), self.output.flatten(1), self.output_bias)

    def tokens(self, value: torch.Tensor) -> torch.Tensor:
        """Arrange (B, C, H, W) as tokens (B, J, C), the mean before them; linear."""
        places = value.flatten(2).transpose(1, 2)
        return torch.cat([places.mean(dim=1, keepdim=True), places], dim=1)

    def queries(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the scaled queries (B, heads, d) of the first of tokens (B, J, C)."""
        queries = torch.einsum("hdc,bc->bhd", self.query, tokens[:, 0]) + self.query_bias
        return queries * self.scale

    @property
    def scale(self) -> float:
        """What queries are multiplied by, 1 / sqrt(d)."""
        return float(self.query.shape[1] ** -0.5)


def folded(tower: Tower) -> Tower:
    """Return the tower with folded functions where there are such, and its own where not."""
    return dataclasses.replace(
        tower,
        submodules=tuple(
            dataclasses.replace(submodule, function=fold(submodule.function))
            for submodule in tower.submodules
        ),
    )


@torch.no_grad()
def fold(function: Function) -> Function:
    """Fold a submodule's function, or return it as it is; see the module."""
    if isinstance(function, Bottleneck):
        return _residual_block(function)
    if isinstance(function, AttentionPool2d):
        return _attention_pool(function)
    if isinstance(function, torch.nn.Sequential) and _kinds(function) == _STEM:
        return ConvolutionReLU(_convolution(function[0], function[1]))
    return function


_STEM = (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.ReLU)


def _kinds(parts: torch.nn.Sequential) -> tuple[type, ...]:
    return tuple(type(part) for part in parts)


def _convolution(convolution: Any, norm: Any) -> Convolution:
    """Fold a Conv2d and a BatchNorm2d, which may be frozen, in double precision."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = convolution.weight.double() * scale[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * scale
    kind = convolution.weight.dtype
    return Convolution(
        weight.to(kind).contiguous(memory_format=torch.channels_last),
        bias.to(kind),
        convolution.stride[0],
        convolution.padding[0],
    )


def _residual_block(block: Bottleneck) -> ResidualBlock:
    shortcut = None
    if block.downsample is not None:
        _, convolution, norm = block.downsample
        shortcut = _convolution(convolution, norm)
    return ResidualBlock(
        _convolution(block.conv1, block.bn1),
        _convolution(block.conv2, block.bn2),
        block.stride,
        _convolution(block.conv3, block.bn3),
        shortcut,
    )


def _attention_pool(pool: AttentionPool2d) -> AttentionPool:
    def heads(parameter: torch.Tensor) -> torch.Tensor:
        return parameter.detach().view(pool.num_heads, -1, *parameter.shape[1:])

    return AttentionPool(
        pool.positional_embedding.detach(),
        heads(pool.q_proj.weight),
        heads(pool.q_proj.bias),
        heads(pool.k_proj.weight),
        heads(pool.v_proj.weight),
        heads(pool.v_proj.bias),
        pool.c_proj.weight.detach().unflatten(1, (pool.num_heads, -1)),
        pool.c_proj.bias.detach(),
    )
