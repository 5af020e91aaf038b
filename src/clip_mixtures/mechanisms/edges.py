"""How much upstream neurons matter to downstream neurons of the next submodule.

While all neurons of a submodule go from their value c to zero and the next submodule is computed
from (1 - a) c, a downstream neuron n departs from its own value d. Integrated gradients attribute
its mean squared error over images and positions to the upstream neurons:

    edge[n, k] = mean over positions and images of  2 (y_n - d_n) J_nk,  an average over the path
                 of J the Jacobian at (1 - a) c, times (0 - c_k)

A positive edge means that removing neuron k adds to the error of n. Only the submodule between the
two takes part, at the path's points of :mod:`integration`; the score of the class plays no role but
to select the neurons, those with the largest effects (:mod:`attribution`).

The published values are divided by the number of images once more, so images that are repeated
r times divide them by r; ``protocol="published"`` repeats that. ``"corrected"`` does not, and its
edges from all upstream neurons sum to the mean squared error that is left when all are removed.

The submodules of a ResNet differentiate themselves by forward mode (:mod:`forward_mode`,
:mod:`residual_edges`). Any other submodule takes a backward pass for every downstream neuron, which
all images and points of the path share.

Source: the study, section 6 (circuits).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from clip_mixtures.mechanisms.attribution import (
    as_tower,
    check_finite,
    class_direction,
    node_attributions,
    top_units,
)
from clip_mixtures.mechanisms.folding import (
    AttentionPool,
    ConvolutionReLU,
    ResidualBlock,
    folded,
)
from clip_mixtures.mechanisms.forward_mode import (
    Neighbours,
    attention_edges,
    pool_edges,
    stem_edges,
)
from clip_mixtures.mechanisms.graph_memory import MEMORY_BYTES, row_memory, rows_within
from clip_mixtures.mechanisms.integration import integration_path
from clip_mixtures.mechanisms.residual_edges import residual_edges
from clip_mixtures.mechanisms.towers import INPUT, Submodule, Tower

Pair = tuple[str, str]

_BY_KIND: dict[type, Callable[[Any, Neighbours], torch.Tensor]] = {
    ConvolutionReLU: stem_edges,
    torch.nn.AvgPool2d: pool_edges,
    ResidualBlock: residual_edges,
    AttentionPool: attention_edges,
}


def edge_attributions(
    tower: Tower | torch.nn.Module,
    text_features: torch.Tensor,
    images: torch.Tensor,
    label: int,
    steps: int = 10,
    protocol: str = "published",
    *,
    rule: str | None = None,
    units: Mapping[str, torch.Tensor] | None = None,
    pairs: Iterable[Pair] | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[Pair, torch.Tensor]:
    """Attribute the errors of downstream neurons to upstream neurons; see the module.

    Args:
        tower: a visual tower in evaluation mode, or its chain.
        text_features: embeddings of the classes in rows, normalised, (classes, D).
        images: of one class, normalised pixels, (B, 3, H, W).
        label: row of the class.
        steps: points of the path.
        protocol: see :func:`integration.integration_path`.
        rule: see there.
        units: submodule to indices of its neurons; for None the top 10 % by absolute effect, from
            :func:`attribution.node_attributions` with the same arguments.
        pairs: neighbours (upstream, downstream); for None all whose upstream is not the input.
        memory_bytes: bound on what is held beside the tower, a folded copy of it and the
            arguments. Work is taken in parts that fit; the result does not depend on it.

    Returns:
        (upstream, downstream) to (downstream neurons, upstream neurons) in the order of the units
        and the precision of the images, in the order of the pairs.

    Raises:
        UserError: the tower has no such layer, an activation or edge is not finite, the bound on
            memory is too small, or for an unknown protocol or rule.
        ValueError: arguments do not fit together.
    """
    path = integration_path(steps, protocol, rule)
    class_direction(text_features, images, label)
    chain = folded(as_tower(tower))
    wanted = _neighbours(chain, pairs)
    names = list(dict.fromkeys(itertools.chain.from_iterable(wanted)))
    if units is None:
        effects = node_attributions(
            chain, text_features, images, label, steps, protocol,
            rule=rule, layers=names, memory_bytes=memory_bytes,
        )  # fmt: skip
        units = top_units(effects)
    images = images.detach().contiguous(memory_format=torch.channels_last)
    totals: dict[Pair, torch.Tensor] = {}
    for batch in images.split(_images_at_a_time(chain, images, names, memory_bytes)):
        with torch.no_grad():
            values = chain.values(batch, names)
        for name in names:
            check_finite(values[name], "activations", name)
        for up, down in wanted:
            pair = Neighbours(
                upstream=values[up],
                downstream=values[down],
                sources=_indices(chain[up], values[up], units),
                targets=_indices(chain[down], values[down], units),
                path=path,
                memory_bytes=memory_bytes,
            )
            totals[up, down] = totals.get((up, down), 0) + _sums(chain, up, down, pair).double()
    for (up, down), total in totals.items():
        check_finite(total, "edges", f"{up} to {down}")
    # The published code takes a mean over images in the error and another one over its gradients.
    count = len(images) ** (2 if protocol == "published" else 1)
    return {pair: (-total / count).to(images.dtype) for pair, total in totals.items()}


def _neighbours(chain: Tower, pairs: Iterable[Pair] | None) -> list[Pair]:
    if pairs is None:
        names = [name for name in chain.names if name != INPUT]
        return list(itertools.pairwise(names))
    wanted = list(dict.fromkeys(pairs))
    for up, down in wanted:
        if chain.index(down) != chain.index(up) + 1:
            raise ValueError(f"{down} does not come right after {up}; edges join neighbours")
    return wanted


def _images_at_a_time(
    chain: Tower, images: torch.Tensor, names: Iterable[str], memory_bytes: int
) -> int:
    """Return how many images' values take half of the bound."""
    with torch.no_grad():
        values = chain.values(images[:1], chain.names)
    kept = sum(values[name].nbytes for name in names)
    largest = max(value.nbytes for value in values.values())
    return rows_within(memory_bytes, 2 * (kept + 4 * largest), "one image", len(images))


def _indices(
    submodule: Submodule, value: torch.Tensor, units: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    name, channels = submodule.name, value.shape[submodule.channel_axis]
    if name not in units:
        raise ValueError(f"units has no neurons of {name}; give some for every end of a pair")
    indices = torch.as_tensor(units[name], dtype=torch.int64, device=value.device)
    if indices.ndim != 1 or not len(indices):
        raise ValueError(f"units of {name} have shape {tuple(indices.shape)}; give (n,), n > 0")
    if indices.min() < 0 or indices.max() >= channels:
        raise ValueError(
            f"units of {name} go from {int(indices.min())} to {int(indices.max())}, but its "
            f"neurons from 0 to {channels - 1}"
        )
    return indices


def _sums(chain: Tower, up: str, down: str, pair: Neighbours) -> torch.Tensor:
    """Return the edges (N, K) summed over images, with the opposite sign."""
    function = chain[down].function
    by_kind = _BY_KIND.get(type(function))
    if by_kind is None:
        return _by_backward_passes(chain[up], chain[down], pair)
    with torch.no_grad():
        return by_kind(function, pair)


def _by_backward_passes(up: Submodule, down: Submodule, pair: Neighbours) -> torch.Tensor:
    """Do it for any submodule, with a backward pass for every downstream neuron."""
    memory = row_memory([down.function], pair.upstream[:1])
    path, images = pair.path, len(pair.upstream)
    found = pair.upstream.new_zeros(len(pair.targets), len(pair.sources))
    # Where nothing is taken away there is no error.
    steps = [s for s in zip(path.scales, path.weights, strict=True) if s[0] != 1]
    if not steps:
        return found
    points = pair.upstream.new_tensor(steps).view(-1, 2)
    needed = 2 * memory.after(0)
    rows = rows_within(pair.memory_bytes, needed, f"one step to {down.name}", len(points) * images)
    aims = down.neurons(pair.downstream)[..., pair.targets]
    for part in torch.arange(len(points) * images, device=found.device).split(rows):
        clean = pair.upstream[part % images]
        scales, weights = points[part // images].unbind(1)
        with torch.enable_grad():
            scaled = scales.view(-1, *[1] * (clean.ndim - 1)) * clean
            reached = down.neurons(down.function(scaled.requires_grad_()))[..., pair.targets]
        errors = reached.detach() - aims[part % images]
        errors *= 2 * weights.view(-1, 1, 1) / aims.shape[1]
        channels = up.neurons(clean)[..., pair.sources]
        for place in range(len(pair.targets)):
            (gradient,) = torch.autograd.grad(
                reached[..., place], scaled, errors[..., place], retain_graph=True
            )
            found[place] += (up.neurons(gradient)[..., pair.sources] * channels).sum(dim=(0, 1))
    return found
