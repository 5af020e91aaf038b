"""Edges of a residual block by forward mode and summation by parts.

An edge from neuron k to neuron n is a sum over the points t of the path (:mod:`forward_mode`):

    sum_t <residuals of n at t, J_t c e_k>

The block takes c e_k through a 1 x 1 convolution W1, a mask M_t, a 3 x 3 convolution W2, another
mask, pooling and a 1 x 1 convolution of which only the wanted outputs count. W2 is nearly all of
the work, and one application for every point and neuron would be the plain way. But neither the
tangents X = W1 c e_k, outer products of a column of W1 and a channel of c, nor W2 depend on the
point; only masks and residuals do. Let A_t be what the second mask, the last convolution and the
residuals make of the output of W2 at t, and B_t = A_t + A_{t+1} + ... Then

    sum_t <A_t, W2 M_t X> = <B_1, W2 M_1 X> + sum_{t>1} <B_t, W2 (M_t - M_{t-1}) X>

The input of the first rectifier is linear along the path, so its mask changes at most once in every
place, and the differences are nearly empty: one convolution, and rows of W2 where something
changes, take the place of a convolution for every point. Where a mask changes so much that this
does not pay, the sum so far is convolved and begun anew. The convolution runs over upstream or over
downstream neurons, whichever are fewer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.folding import ResidualBlock
from clip_mixtures.mechanisms.forward_mode import Neighbours, residuals

# Costs on a processor core in products of a dense convolution, fitted to measured times: a small
# matrix product, the patch that it reads (in rows of W2), and a product within it.
_CALL = 0.9e6
_PATCH = 9
_GATHERED = 2.0

_ALIGNED = 8  # neurons; matrix products of such a width are a third faster
_PLANES = 8  # inner values that are alive at a point of the path


def residual_edges(part: ResidualBlock, pair: Neighbours) -> torch.Tensor:
    """Return the edges (N, K) of a residual block; see the module.

    Raises:
        UserError: when the bound on memory is too small.
    """
    inner, height, width = len(part.reduce.bias), *pair.upstream.shape[2:]
    channel = inner * pair.upstream.element_size()
    plane = channel * height * width
    # Sums behind W2 are held twice while they are convolved, or added to by a GPU; tangents before
    # it and after.
    sums = 2 * _ALIGNED * channel * (height + 2) * (width + 2)
    needed = 2 * (sums + (_PLANES + 3) * plane)
    if pair.memory_bytes < needed:
        raise UserError(
            f"memory_bytes: {pair.memory_bytes:,} bytes are too few: the edges of a residual "
            f"block of {inner} x {height} x {width} take {needed:,}"
        )
    each = (pair.memory_bytes - needed) // 4
    targets = _ALIGNED * (1 + each // sums)
    tangents = 1 + each // (3 * plane)
    return torch.cat(
        [
            _edges(part, dataclasses.replace(pair, targets=some), tangents)
            for some in pair.targets.split(targets)
        ]
    )


def _edges(part: ResidualBlock, pair: Neighbours, tangents: int) -> torch.Tensor:
    chosen = _choose(part, pair, tangents)
    aims = pair.downstream[:, pair.targets]
    found = pair.upstream.new_zeros(len(pair.sources), len(pair.targets))
    for image, aim in zip(pair.upstream.split(1), aims.split(1), strict=True):
        found += _image_edges(chosen, image, aim, pair)
    return found.T


@dataclasses.dataclass(frozen=True, eq=False)
class _Chosen:
    """A residual block with the neurons that are wanted.

    Attributes:
        block: whose last convolutions give the downstream neurons alone.
        enter: weights of the first convolution from the upstream neurons, (K, inner).
        leave: weights of the last one to the downstream neurons, (inner, N), and zeros up to a
            width that is aligned.
        skip: weights of the shortcut, (K, N).
        rows: W2 by input neuron, each row as a patch of its output lies, (3, inner, 3 * inner).
        tangents: how many to hold at a time.
    """

    block: ResidualBlock
    enter: torch.Tensor
    leave: torch.Tensor
    skip: torch.Tensor
    rows: torch.Tensor
    tangents: int


def _choose(part: ResidualBlock, pair: Neighbours, tangents: int) -> _Chosen:
    expand = part.expand.only(pair.targets)
    shortcut = part.shortcut.only(pair.targets) if part.shortcut else None
    if shortcut:
        skip = shortcut.weight[:, pair.sources, 0, 0].T
    else:
        skip = (pair.sources[:, None] == pair.targets).to(expand.weight.dtype)
    return _Chosen(
        block=dataclasses.replace(part, expand=expand, shortcut=shortcut),
        enter=part.reduce.weight[:, pair.sources, 0, 0].T.contiguous(),
        leave=_aligned(expand.weight[:, :, 0, 0].T),
        skip=skip,
        rows=part.mix.weight.flip(2, 3).permute(2, 1, 3, 0).flatten(2).contiguous(),
        tangents=tangents,
    )


def _image_edges(
    chosen: _Chosen, image: torch.Tensor, aim: torch.Tensor, pair: Neighbours
) -> torch.Tensor:
    """Return the edges of one image, (K, N)."""
    block, scales = chosen.block, pair.path.scales
    linear = block.reduce.linear(image)
    pooled = block.pooled(image)
    skipped = block.shortcut.linear(pooled) if block.shortcut else pooled[:, pair.targets]
    skip_bias = block.shortcut.bias[:, None, None] if block.shortcut else 0
    channels = image[0, pair.sources]

    def first(point: int) -> torch.Tensor:
        return functional.relu_(scales[point] * linear + block.reduce.bias[:, None, None])

    height, width = linear.shape[2:]
    behind = linear.new_zeros(height + 2, width + 2, *chosen.leave.shape)
    summed = torch.zeros_like(aim)
    found = linear.new_zeros(len(pair.sources), chosen.leave.shape[1])
    value = first(len(scales) - 1)
    for point in reversed(range(len(scales))):
        second = functional.relu_(block.mix(value))
        reached = block.expand(block.pooled(second)) + (scales[point] * skipped + skip_bias)
        weight = pair.path.weights[point]
        error = residuals(functional.relu_(reached), aim, weight, rectified=True)
        summed += error
        _accumulate(behind, second[0] > 0, error[0], chosen)
        before = first(point - 1) if point else torch.zeros_like(value)
        change = (value[0] > 0).to(linear.dtype) - (before[0] > 0).to(linear.dtype)
        if _gathering_pays(change, chosen):
            found += _gathered(behind, change, channels, chosen)
        else:
            found += _convolved(behind, value[0] > 0, channels, chosen)
            behind.zero_()
        value = before
    direct = pooled[0, pair.sources].flatten(1) @ summed[0].flatten(1).T
    return direct * chosen.skip + found[:, : len(pair.targets)]


def _accumulate(
    behind: torch.Tensor, mask: torch.Tensor, error: torch.Tensor, chosen: _Chosen
) -> None:
    """Add A_t to the sum behind W2.

    Args:
        behind: (H + 2, W + 2, inner, aligned N), with a border of zeros.
        mask: of the second rectifier, (inner, H, W).
        error: residuals, (N, H / pool, W / pool).
        chosen: the block.
    """
    pool = chosen.block.pool
    spread = _aligned((error / pool**2).permute(1, 2, 0))
    masks = mask.permute(1, 2, 0).to(behind.dtype)
    if behind.device.type != "cpu":
        # All at once: a GPU takes longer to be told of a row than to do it.
        errors = spread.repeat_interleave(pool, dim=0).repeat_interleave(pool, dim=1).unsqueeze(2)
        height, width = errors.shape[:2]
        masked = masks[:height, :width].unsqueeze(-1) * chosen.leave
        behind[1 : height + 1, 1 : width + 1].addcmul_(masked, errors)
        return
    # Row by row, so that the product with the mask stays in the cache.
    for row in range(len(spread) * pool):
        errors = spread[row // pool].repeat_interleave(pool, dim=0).unsqueeze(1)
        masked = masks[row, : len(errors)].unsqueeze(-1) * chosen.leave
        behind[row + 1, 1 : len(errors) + 1].addcmul_(masked, errors)


def _gathering_pays(change: torch.Tensor, chosen: _Chosen) -> bool:
    """Tell whether rows of W2 where a mask changes cost less than a convolution."""
    changes = int(change.count_nonzero())
    if change.device.type != "cpu":
        # Thousands of small products take longer to launch than a convolution to run.
        return changes == 0
    (upstream, inner), downstream = chosen.enter.shape, chosen.leave.shape[1]
    places = int(change.any(dim=0).count_nonzero())
    row = 9 * inner * downstream
    gathering = places * (_CALL + _PATCH * row) + _GATHERED * changes * row
    per_place = min(upstream, downstream) * 9 * inner**2 + upstream * downstream * inner
    return gathering < change[0].numel() * per_place


def _gathered(
    behind: torch.Tensor, change: torch.Tensor, channels: torch.Tensor, chosen: _Chosen
) -> torch.Tensor:
    """Return <B_t, W2 (M_t - M_{t-1}) X>, (K, aligned N), from the places that change.

    Args:
        behind: B_t, see :func:`_accumulate`.
        change: M_t - M_{t-1}, (inner, H, W).
        channels: of the upstream neurons, (K, H, W).
        chosen: the block.
    """
    _, width, inner, downstream = behind.shape
    found = behind.new_zeros(len(chosen.enter), downstream)
    if not change.any():
        return found
    enter = chosen.enter.T.contiguous()
    for row, changes in enumerate(change.permute(1, 2, 0)):
        places, units = changes.nonzero(as_tuple=True)
        tangents = enter[units] * channels[:, row].T[places] * changes[places, units].unsqueeze(1)
        back = behind.new_empty(len(units), downstream)
        patches = behind[row : row + 3].as_strided(
            (len(changes), 3, 3 * inner, downstream),
            (inner * downstream, width * inner * downstream, downstream, 1),
        )
        counts = torch.bincount(places, minlength=len(changes)).tolist()
        for count, patch, some, out in zip(
            counts, patches.unbind(), units.split(counts), back.split(counts), strict=True
        ):
            if count:
                torch.sum(torch.bmm(chosen.rows.index_select(1, some), patch), dim=0, out=out)
        found.addmm_(tangents.T, back)
    return found


def _convolved(
    behind: torch.Tensor, mask: torch.Tensor, channels: torch.Tensor, chosen: _Chosen
) -> torch.Tensor:
    """Return <B_t, W2 M_t X>, (K, aligned N), by convolutions over the fewer neurons.

    Arguments as in :func:`_gathered`; the mask M_t is (inner, H, W).
    """
    inside = behind[1:-1, 1:-1]
    masks = mask.permute(1, 2, 0).to(behind.dtype)
    mix = chosen.block.mix

    def tangents() -> Iterator[torch.Tensor]:
        size = chosen.tangents
        for some, weights in zip(channels.split(size), chosen.enter.split(size), strict=True):
            yield (some.unsqueeze(-1) * weights[:, None, None]).mul_(masks)

    if len(chosen.enter) <= behind.shape[-1]:
        sums = inside.flatten(0, 2)
        mixed = (_channels_last(mix.linear, some).flatten(1) for some in tangents())
        return torch.cat([some @ sums for some in mixed])
    back = dataclasses.replace(mix, weight=mix.weight.transpose(0, 1).flip(2, 3))
    columns = []
    for some in inside.split(chosen.tangents, dim=-1):
        unmixed = _channels_last(back.linear, some.permute(3, 0, 1, 2)).flatten(1).T
        columns.append(torch.cat([tangent.flatten(1) @ unmixed for tangent in tangents()]))
    return torch.cat(columns, dim=1)


def _channels_last(
    function: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor
) -> torch.Tensor:
    """Apply a function of (B, C, H, W) to a value (B, H, W, C)."""
    return function(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _aligned(value: torch.Tensor) -> torch.Tensor:
    """Add zeros to the last axis up to an aligned length."""
    return functional.pad(value, (0, -value.shape[-1] % _ALIGNED))
