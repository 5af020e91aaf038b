"""How much each neuron matters to the score of a class: integrated gradients, layer by layer.

The score of an image is the cosine between its feature and the embedding of its class. For a
submodule with the value c, everything from its neurons on is computed again from (1 - a) c, while a
goes from 0 to 1, and the gradient of the score is averaged on the way. The effect of a neuron is

    effect = mean over images of the sum over positions of  average gradient * (0 - c)

so it is positive where removing the neuron *raises* the score. Both protocols keep this sign, that
of an indirect effect, and both sum over positions and average over images.

The protocol says where on the way gradients are taken (:mod:`integration`). The exact integral
obeys completeness: the effects of a submodule sum to the score with the submodule at zero less the
score as it is. How far a sum is from that is the error of the quadrature, and it is reported with
every result.

The last submodule is an exception. A cosine does not change along a ray, so the effects of the
feature's own entries sum to zero; it jumps where the ray ends. No rule can see that jump.

What makes it fast: a submodule needs only what comes after it; at a = 0 the value is the
network's own, so one pass serves all submodules; a pooling after a submodule is linear in each
channel and hands its effects back unchanged; there are no gradients of parameters; and
:mod:`folding` makes the submodules themselves cheaper.

Sources:
    The study, section 6 (circuits).
    Sundararajan, M., Taly, A. and Yan, Q. (2017). Axiomatic attribution for deep networks. ICML.
        (integrated gradients, completeness)
    Marks, S. et al. (2025). Sparse feature circuits. ICLR. (indirect effects on a path to zero)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import torch
from torch.nn import functional

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.folding import folded
from clip_mixtures.mechanisms.graph_memory import (
    MEMORY_BYTES,
    row_memory,
    rows_within,
)
from clip_mixtures.mechanisms.integration import Path, integration_path
from clip_mixtures.mechanisms.towers import Tower, tower_of

_LENGTH_TOLERANCE = 1e-2  # embeddings may have been normalised in half precision


@dataclasses.dataclass(frozen=True)
class NodeAttributions:
    """Effects of neurons, and how well they add up.

    Attributes:
        values: submodule to the effect of each of its neurons, (channels,).
        changes: submodule to the change of the score when all of its neurons are removed, a mean
            over images. The exact integral's effects sum to it.
    """

    values: dict[str, torch.Tensor]
    changes: dict[str, float]

    @property
    def errors(self) -> dict[str, float]:
        """Error of completeness: by what share of the change the sum of effects misses it."""
        return {
            name: abs(float(self.values[name].double().sum()) - change) / abs(change)
            if change
            else math.inf
            for name, change in self.changes.items()
        }


def node_attributions(
    tower: Tower | torch.nn.Module,
    text_features: torch.Tensor,
    images: torch.Tensor,
    label: int,
    steps: int = 10,
    protocol: str = "published",
    *,
    rule: str | None = None,
    layers: Iterable[str] | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str, torch.Tensor]:
    """Return the effect of every neuron; :func:`attribute_nodes` without the report.

    Returns:
        Submodule to (channels,), in the order of the chain.

    Raises:
        UserError: see :func:`attribute_nodes`.
        ValueError: see there.
    """
    return attribute_nodes(
        tower,
        text_features,
        images,
        label,
        protocol=protocol,
        steps=steps,
        rule=rule,
        layers=layers,
        memory_bytes=memory_bytes,
    ).values


@torch.enable_grad()
def attribute_nodes(
    tower: Tower | torch.nn.Module,
    text_features: torch.Tensor,
    images: torch.Tensor,
    label: int,
    *,
    protocol: str,
    steps: int = 10,
    rule: str | None = None,
    layers: Iterable[str] | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> NodeAttributions:
    """Attribute the score of a class to the neurons of every submodule; see the module.

    Args:
        tower: a visual tower in evaluation mode, or its chain.
        text_features: embeddings of the classes in rows, normalised, (classes, D).
        images: of one class, normalised pixels, (B, 3, H, W).
        label: row of the class.
        protocol: see :func:`integration.integration_path`.
        steps: gradients on the path.
        rule: see there.
        layers: submodules to attribute to; all of them for None.
        memory_bytes: bound on what is held beside the tower, a folded copy of it and the
            arguments. Images and steps are taken in parts that fit; the result does not depend on
            it.

    Returns:
        Effects in the precision of the images, in the order of the chain, with the changes of the
        score that they should sum to.

    Raises:
        UserError: the tower has no such layer, an activation or gradient is not finite, the bound
            on memory is too small, or see :func:`integration.integration_path`.
        ValueError: arguments do not fit together, or see there.
    """
    path = integration_path(steps, protocol, rule)
    direction = class_direction(text_features, images, label)
    chain = folded(as_tower(tower))
    wanted = _ordered(chain, layers)
    sources = {place: _source(chain, place) for place in wanted}
    images = images.detach().contiguous(memory_format=torch.channels_last)
    memory = row_memory(
        [*(submodule.function for submodule in chain.submodules[1:]), chain.head], images[:1]
    )
    # Half for an image's own pass and its values, half for the steps that start from them.
    needed = 2 * (memory.after(0) + 2 * sum(memory.values))
    size = rows_within(memory_bytes, needed, "one image", len(images))
    totals: dict[int, torch.Tensor] = {}
    without: dict[int, float] = {}
    score = 0.0
    for batch in images.split(size):
        clean = _clean_pass(chain, batch, direction, set(sources.values()), path)
        score += float(clean.scores.double().sum()) / len(images)
        for place, value in clean.values.items():
            rows = rows_within(
                memory_bytes, 2 * memory.after(place), "one step", len(batch) * len(path.scales)
            )
            effects = clean.effects[place] + _effects(chain, place, value, path, direction, rows)
            totals[place] = totals.get(place, 0) + effects / len(images)
            if place not in without:
                without[place] = _score_without(chain, place, value, direction)
    for place, total in totals.items():
        check_finite(total, "gradients", chain.names[place])
    return NodeAttributions(
        {chain.names[place]: totals[source].to(images.dtype) for place, source in sources.items()},
        {chain.names[place]: without[source] - score for place, source in sources.items()},
    )


def top_units(
    attributions: Mapping[str, torch.Tensor], share: float = 0.1
) -> dict[str, torch.Tensor]:
    """Select the neurons with the largest effects, whatever their sign.

    Args:
        attributions: submodule to effects, (channels,).
        share: of a submodule's neurons to select, above 0 and at most 1; rounded up.

    Returns:
        Submodule to indices, int64, by falling absolute effect, in the order of ``torch.topk``
        where effects are equal.

    Raises:
        ValueError: the share is outside, or a submodule has no neurons.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; give one above 0 and at most 1")
    units = {}
    for name, effects in attributions.items():
        count = math.ceil(share * len(effects))
        if not count:
            raise ValueError(f"{name} has no neurons to select from")
        units[name] = effects.abs().topk(count).indices
    return units


def as_tower(tower: Tower | torch.nn.Module) -> Tower:
    """Return the chain of a visual tower, or the chain that is given.

    Raises:
        UserError: for a tower of an unknown kind.
        ValueError: for one in training mode.
    """
    return tower if isinstance(tower, Tower) else tower_of(tower)


def class_direction(text_features: torch.Tensor, images: torch.Tensor, label: int) -> torch.Tensor:
    """Check the arguments of an attribution and return the embedding of the class, (D,).

    Raises:
        ValueError: wrong shapes, no images, a label outside, an embedding that is not normalised.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images have shape {tuple(images.shape)}; give (B, 3, H, W), B > 0")
    if text_features.ndim != 2:
        raise ValueError(
            f"text features have shape {tuple(text_features.shape)}; give (classes, D)"
        )
    if not 0 <= label < len(text_features):
        raise ValueError(f"label is {label}, outside 0 to {len(text_features) - 1}")
    direction = text_features[label].detach().to(images)
    length = float(direction.norm())
    if not abs(length - 1) < _LENGTH_TOLERANCE:
        raise ValueError(
            f"the text feature of label {label} has length {length:.4g}; normalise text features"
        )
    return direction


@dataclasses.dataclass(frozen=True)
class _Clean:
    """The network's own pass: values by place, scores (B,), and effects of a step at a = 0."""

    values: dict[int, torch.Tensor]
    scores: torch.Tensor
    effects: dict[int, torch.Tensor]


def _clean_pass(
    chain: Tower, images: torch.Tensor, direction: torch.Tensor, places: Iterable[int], path: Path
) -> _Clean:
    weight = sum(w for scale, w in zip(path.scales, path.weights, strict=True) if scale == 1)
    kept: dict[int, torch.Tensor] = {}
    with torch.set_grad_enabled(weight > 0):
        value = images.detach().requires_grad_(weight > 0)
        for place, submodule in enumerate(chain.submodules):
            value = submodule.function(value)
            check_finite(value, "activations", submodule.name)
            if place in places:
                kept[place] = value
        scores = _scores(chain.head(value), direction)
    gradients = torch.autograd.grad(scores.sum(), list(kept.values())) if weight else None
    values = {place: value.detach() for place, value in kept.items()}
    effects = {
        place: weight * _removal(chain, place, gradients[i], values[place])
        if gradients
        else torch.zeros((), dtype=torch.float64, device=images.device)
        for i, place in enumerate(values)
    }
    return _Clean(values, scores.detach(), effects)


def _effects(
    chain: Tower, place: int, value: torch.Tensor, path: Path, direction: torch.Tensor, rows: int
) -> torch.Tensor:
    """Sum the effects of the steps away from a = 0 over images, (channels,) float64."""
    steps = [step for step in zip(path.scales, path.weights, strict=True) if step[0] != 1]
    found = torch.zeros((), dtype=torch.float64, device=value.device)
    if not steps:
        return found
    each = value.new_tensor(steps).repeat_interleave(len(value), dim=0)
    for part in torch.arange(len(each), device=value.device).split(rows):
        clean = value[part % len(value)]
        scales, weights = each[part].view(len(part), 2, *[1] * (value.ndim - 1)).unbind(1)
        inserted = (scales * clean).requires_grad_()
        scores = _scores(chain.run(inserted, chain.names[place]), direction)
        (gradient,) = torch.autograd.grad(scores.sum(), inserted)
        found = found + _removal(chain, place, gradient.mul_(weights), clean)
    return found


def _removal(chain: Tower, place: int, gradient: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return gradient * (0 - value), summed over images and positions, (channels,) float64."""
    effect = chain.submodules[place].neurons(gradient * value)
    return -effect.sum(dim=1).double().sum(dim=0)


@torch.no_grad()
def _score_without(chain: Tower, place: int, value: torch.Tensor, direction: torch.Tensor) -> float:
    """Return the score with a submodule at zero, which is the same for all images."""
    features = chain.run(torch.zeros_like(value[:1]), chain.names[place])
    return float(_scores(features, direction))


def _scores(features: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    return functional.normalize(features, dim=-1) @ direction


def _ordered(chain: Tower, layers: Iterable[str] | None) -> list[int]:
    """Return the places of layers in the order of the chain."""
    return sorted({chain.index(name) for name in (chain.names if layers is None else layers)})


def _source(chain: Tower, place: int) -> int:
    """Return where the effects of a submodule are computed: behind a pooling that follows it.

    A pooling that is linear in each channel passes the path on as it is, and a channel's gradient
    times its value has the same sum over positions before the pooling and after it.
    """
    after = chain.submodules[place + 1 : place + 2]
    return place + 1 if after and isinstance(after[0].function, torch.nn.AvgPool2d) else place


def check_finite(values: torch.Tensor, what: str, name: str) -> None:
    """Stop at numbers that are not finite.

    Raises:
        UserError: naming what they are and the submodule.
    """
    if not torch.isfinite(values).all():
        raise UserError(
            f"{what} of {name} are not finite; look at the checkpoint and at the precision"
        )
