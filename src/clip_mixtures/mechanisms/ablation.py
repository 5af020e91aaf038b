"""What happens when the units of a circuit are taken away: the causal check of attributions.

An attribution is an estimate from gradients of what a unit does. Whether a circuit matters is seen
when its units are ablated, that is replaced by zero or by their mean over reference images; and
whether it matters more than others, beside random units of the same number in every layer. A
circuit found on the images of one domain can be ablated on those of another, so that a circuit said
to be shared is tested and not only drawn. The published work has no such check.

A unit is a channel and is replaced at all positions. What an image has left is its *margin*: the
cosine with the text of its class less the mean cosine with the texts of all classes. The cosine by
itself also has what the network holds against all texts alike, such as the gap between images and
texts, and may well rise when everything is replaced. With m the mean margin, M the whole network,
C the circuit and 0 the network with all units replaced,

- mode ``ablate`` replaces the circuit: M without C;
- mode ``keep`` replaces all other units of the same layers: C alone;
- what is recovered is (m(after) - m(0)) / (m(M) - m(0)). After ``keep`` it is the *faithfulness* of
  the circuit: 1 if it does all by itself. After ``ablate`` it is its *completeness*: 0 if nothing
  that matters is outside of it. Neither is bound to [0, 1].

As every submodule is a function of the one before it, replacing all units of a layer leaves a
constant, and m(0) is the same for all images of a class.

Zero is what the attributions compare with; but no image makes all units zero, and the network after
it may be one it never was. The mean leaves what all images have in common. The two can differ in
what they find, so both belong into a report. And a circuit kept by itself may answer its class for
whatever image: images of other classes, as one more domain, show whether it does.

Sources:
    Marks, S., Rager, C., Michaud, E., Belinkov, Y., Bau, D. and Mueller, A. (2025). Sparse feature
        circuits. ICLR. (faithfulness and completeness as above)
    Wang, K., Variengien, A., Conmy, A., Shlegeris, B. and Steinhardt, J. (2023). Interpretability
        in the wild. ICLR. (mean ablation of a circuit and of what is outside of it)
    Liang, W., Zhang, Y., Kwon, Y., Yeung, S. and Zou, J. (2022). Mind the gap. NeurIPS. (all images
        lie apart from all texts)
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn.functional import normalize

from clip_mixtures.errors import unknown
from clip_mixtures.mechanisms.graphs import Units
from clip_mixtures.mechanisms.towers import INPUT, Tower

MODES = ("ablate", "keep")
ALL_LAYERS = "all"

Fills: TypeAlias = Mapping[str, torch.Tensor]
FloatArray: TypeAlias = npt.NDArray[np.float64]
# Layers with the channels of a set of units, in network order; equal sets are equal keys.
Chosen: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
Key: TypeAlias = tuple[str, Chosen]

# Columns of a table of effects: what was done, and what came out.
CELL = ["source", "target", "layer", "mode"]
_INTACT: Key = ("ablate", ())
JUDGED = ("cosine", "margin", "correct")
FOUND = [*JUDGED, *(f"intact_{name}" for name in JUDGED), "nothing_margin"]
IN_SAMPLE = "in_sample"


@torch.inference_mode()
def ablate(
    tower: Tower,
    images: torch.Tensor,
    units: Units,
    values: Fills | None = None,
    *,
    mode: str = "ablate",
    batch_size: int = 64,
) -> torch.Tensor:
    """Run a tower with units replaced.

    Args:
        tower: the visual tower; nothing in it is changed.
        images: normalised pixels, (N, 3, H, W), where the tower is.
        units: submodule to its units, channel numbers (n,) in any order.
        values: what to put in their place: submodule to a value without the batch, as of
            :func:`mean_activations`. None for zero.
        mode: "ablate" replaces the units, "keep" all other units of the submodules named.
        batch_size: images that go through the tower at a time.

    Returns:
        Features (N, D), not normalised; without units, those of the tower.

    Raises:
        UserError: an unknown mode or submodule.
        ValueError: no images, channels that a submodule does not have, or values that do not fit.
    """
    _check_images(images, batch_size)
    shapes = _shapes(tower, images[:1])
    plan = _plan(tower, (mode, _chosen(tower, units, shapes)), values, shapes)
    return torch.cat([_follow(tower, part, 0, plan) for part in images.split(batch_size)])


@torch.inference_mode()
def mean_activations(
    tower: Tower, batches: Iterable[torch.Tensor], submodules: Iterable[str] | None = None
) -> dict[str, torch.Tensor]:
    """Average values over reference images, position by position.

    Positions are kept apart: at the edge of an image a convolution sees padding, and the class
    token of a transformer is no patch.

    Args:
        tower: the visual tower.
        batches: normalised pixels, (B, 3, H, W) each, as of ``images.split(64)``.
        submodules: whose values; None for all but the input.

    Returns:
        Submodule, in network order, to its mean value, without the batch and in its dtype; sums are
        made in float64.

    Raises:
        UserError: an unknown submodule.
        ValueError: no images, or something else than batches of images.
    """
    named = [name for name in tower.names if name != INPUT] if submodules is None else submodules
    names = list(named)
    sums: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    count = 0
    for batch in batches:
        if batch.ndim != 4:
            raise ValueError(
                f"a batch of shape {tuple(batch.shape)}; give (B, 3, H, W), as images.split(64)"
            )
        count += len(batch)
        for name, value in tower.values(batch, names).items():
            total = value.sum(dim=0, dtype=torch.float64)
            sums[name] = sums[name] + total if name in sums else total
            dtypes[name] = value.dtype
    if count == 0:
        raise ValueError("there are no images to average over; give at least one batch")
    return {name: (total / count).to(dtypes[name]) for name, total in sums.items()}


@torch.inference_mode()
def ablation_effects(
    tower: Tower,
    text_features: torch.Tensor,
    images: Mapping[str, torch.Tensor],
    units: Mapping[str, Units],
    label: int,
    *,
    found_on: Mapping[str, Iterable[torch.Tensor]] | None = None,
    values: Fills | None = None,
    modes: Sequence[str] = MODES,
    each_layer: bool = False,
    draws: int = 5,
    seed: int = 0,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Ablate the circuits of a class, and random units, on its images of several domains.

    The tables of several classes, one below the other, are what ``ablation_table`` takes.

    Args:
        tower: the visual tower.
        text_features: a unit row a class, (classes, D).
        images: domain to normalised pixels of the class, (N, 3, H, W), where the tower is.
        units: where a circuit comes from to submodule to its units. That is a domain, or any other
            name, such as one for the units that all domains have. ``input`` is left alone, as in
            the graph of a circuit.
        label: of the class, a row of ``text_features``.
        found_on: where a circuit comes from to the images that it was found on, (3, H, W) each, as
            rows of (N, 3, H, W). What is not named there was found on none of ``images``.
        values: see :func:`ablate`.
        modes: among :data:`MODES`.
        each_layer: ablate each layer by itself as well as all at once.
        draws: random sets of units, of the same number in every layer, out of all its channels. A
            draw is the same for all domains and all circuits of equal size.
        seed: of the draws, together with the label.
        batch_size: images that go through the tower at a time.

    Returns:
        A row an intervention and image: ``class_id``, ``source``, ``target``, ``layer``
        (:data:`ALL_LAYERS` for all at once), ``mode``, ``kind`` ("circuit" or "random"), ``draw``
        (0 for circuits), ``image`` (its place) and ``in_sample``, whether its very pixels are among
        those that the circuit of this source was found on; ``cosine``, ``margin`` and ``correct``
        after it, the same with the network ``intact_``, and ``nothing_margin`` with all units of
        these layers replaced. An image is correct if no text is nearer than that of its class, and
        in part if others are as near.

    Raises:
        UserError: an unknown mode or submodule.
        ValueError: no images, circuits, layers or modes, a negative number of draws, a label out of
            range, or see :func:`ablate`.
    """
    if not images or not units or not modes:
        raise ValueError(
            f"{len(images)} domains of images, {len(units)} circuits and {len(modes)} modes: need "
            "one of each at least"
        )
    if draws < 0:
        raise ValueError(f"draws is {draws}; allowed: 0 or more (5 is a good start)")
    if not 0 <= label < len(text_features):
        raise ValueError(f"label is {label}; there are texts of {len(text_features)} classes")
    for pixels in images.values():
        _check_images(pixels, batch_size)
    example = next(iter(images.values()))[:1]
    shapes = _shapes(tower, example)
    circuits = {source: _chosen(tower, found, shapes) for source, found in units.items()}
    trials = list(_trials(circuits, shapes, modes, draws, each_layer, (seed, label)))
    plans = {trial.key: _plan(tower, trial.key, values, shapes) for trial in trials}
    floors = {}
    for key in dict.fromkeys(trial.nothing for trial in trials):
        left = _follow(tower, example, 0, _plan(tower, key, values, shapes))
        floors[key] = float(_judged(left, text_features, label)["margin"][0])
    facts = pd.DataFrame([trial.facts for trial in trials]).assign(
        class_id=label, nothing_margin=[floors[trial.nothing] for trial in trials]
    )
    known = {source: set(map(_digest, found)) for source, found in (found_on or {}).items()}
    frames = []
    for target, pixels in images.items():
        features = _all_features(tower, pixels.split(batch_size), plans)
        judged = {key: _judged(found, text_features, label) for key, found in features.items()}
        rows = facts.loc[np.repeat(facts.index, len(pixels))].assign(target=target)
        rows["image"] = np.tile(np.arange(len(pixels)), len(trials))
        digests = [_digest(one) for one in pixels]
        rows[IN_SAMPLE] = [
            digest in known.get(trial.facts["source"], ()) for trial in trials for digest in digests
        ]
        for name in JUDGED:
            rows[name] = np.concatenate([judged[trial.key][name] for trial in trials])
            rows[f"intact_{name}"] = np.tile(judged[_INTACT][name], len(trials))
        frames.append(rows)
    columns = ["class_id", *CELL, "kind", "draw", "image", IN_SAMPLE, *FOUND]
    return pd.concat(frames, ignore_index=True)[columns]


@dataclasses.dataclass(frozen=True)
class _Trial:
    """An intervention, and whose it is.

    Attributes:
        facts: source, layer, mode, kind and draw.
        key: the mode and the units that it replaces or keeps.
    """

    facts: Mapping[str, Any]
    key: Key

    @property
    def nothing(self) -> Key:
        """The intervention that replaces all units of the same layers: it keeps none."""
        return "keep", tuple((layer, ()) for layer, _ in self.key[1])


@dataclasses.dataclass(frozen=True)
class _Shape:
    """Shape of a submodule's value without the batch, and its channels.

    Attributes:
        value: the shape.
        channel_axis: of the value without the batch.
    """

    value: tuple[int, ...]
    channel_axis: int

    @property
    def channels(self) -> int:
        """How many units the submodule has."""
        return self.value[self.channel_axis]


@dataclasses.dataclass(frozen=True)
class _Replacement:
    """What is put where in a submodule's value.

    Attributes:
        channels: int64, (n,).
        value: for these channels at all positions, channels last; or zero.
    """

    channels: torch.Tensor
    value: torch.Tensor | float


Plan: TypeAlias = Mapping[int, _Replacement]


def _trials(
    circuits: Mapping[str, Chosen],
    shapes: Mapping[str, _Shape],
    modes: Sequence[str],
    draws: int,
    each_layer: bool,
    seeds: tuple[int, int],
) -> Iterator[_Trial]:
    places = {layer: place for place, layer in enumerate(shapes)}
    for source, circuit in circuits.items():
        inner = tuple((layer, found) for layer, found in circuit if layer != INPUT)
        if not inner:
            raise ValueError(f"the circuit of {source!r} has no layers beside {INPUT!r}")
        sets = [("circuit", 0, inner)]
        for draw in range(draws):
            # The first so many of one order: circuits of equal size get the same units.
            orders = {
                layer: np.random.default_rng([*seeds, draw, places[layer]])
                .permutation(shapes[layer].channels)
                .tolist()
                for layer, _ in inner
            }
            drawn = tuple(
                (layer, tuple(sorted(orders[layer][: len(found)]))) for layer, found in inner
            )
            sets.append(("random", draw, drawn))
        for kind, draw, chosen in sets:
            spans = [(ALL_LAYERS, chosen)]
            if each_layer:
                spans += [(one[0], (one,)) for one in chosen]
            for (layer, span), mode in ((span, mode) for span in spans for mode in modes):
                facts = {"source": source, "layer": layer, "mode": mode, "kind": kind, "draw": draw}
                yield _Trial(facts, (mode, span))


def _shapes(tower: Tower, example: torch.Tensor) -> dict[str, _Shape]:
    """Find the shapes of all values from one image."""
    axes = {one.name: one.channel_axis for one in tower.submodules}
    return {
        name: _Shape(tuple(value.shape[1:]), axes[name] - 1 if axes[name] > 0 else axes[name])
        for name, value in tower.values(example, tower.names).items()
    }


def _chosen(tower: Tower, units: Units, shapes: Mapping[str, _Shape]) -> Chosen:
    """Check units and put them in network order."""
    found = []
    for layer in sorted(units, key=tower.index):
        channels = np.asarray(units[layer], dtype=np.int64).tolist()
        beyond = [one for one in channels if not 0 <= one < shapes[layer].channels]
        if beyond or len(set(channels)) < len(channels):
            raise ValueError(
                f"units {beyond or channels} of {layer!r}: name each once, from 0 to "
                f"{shapes[layer].channels - 1}"
            )
        found.append((layer, tuple(sorted(channels))))
    return tuple(found)


def _plan(tower: Tower, key: Key, values: Fills | None, shapes: Mapping[str, _Shape]) -> Plan:
    """Say what is replaced at which place of the chain; places without a change are left out."""
    mode, chosen = key
    if mode not in MODES:
        raise unknown("mode", mode, MODES, "ablation")
    plan = {}
    for layer, channels in chosen:
        shape = shapes[layer]
        outside = sorted(set(range(shape.channels)) - set(channels))
        replaced = torch.tensor(outside if mode == "keep" else channels, dtype=torch.int64)
        if len(replaced):
            fill = 0.0 if values is None else _fill(values, layer, shape, replaced)
            plan[tower.index(layer)] = _Replacement(replaced, fill)
    return plan


def _fill(values: Fills, layer: str, shape: _Shape, channels: torch.Tensor) -> torch.Tensor:
    found = tuple(values[layer].shape) if layer in values else None
    if found != shape.value:
        raise ValueError(
            f"value of {layer!r} has shape {found}; expected {shape.value}, as mean_activations "
            "returns it"
        )
    channels_last = values[layer].movedim(shape.channel_axis, -1)
    return channels_last[..., channels.to(channels_last.device)]


def _follow(tower: Tower, value: torch.Tensor, start: int, plan: Plan) -> torch.Tensor:
    """Follow the chain to the features from the value at place ``start``, replacing on the way."""
    for place in range(start, len(tower.submodules)):
        submodule = tower.submodules[place]
        if place > start:
            value = submodule.function(value)
        if place in plan:
            # A copy with the same order in memory, so that nothing but the channels differs.
            value = value.clone()
            channels = plan[place].channels.to(value.device)
            fill = plan[place].value
            replaced = fill.to(value) if isinstance(fill, torch.Tensor) else fill
            value.movedim(submodule.channel_axis, -1)[..., channels] = replaced
    return tower.head(value)


def _all_features(
    tower: Tower, batches: Iterable[torch.Tensor], plans: Mapping[Key, Plan]
) -> dict[Key, torch.Tensor]:
    """Run all plans, each from the first place at which it differs from the intact network."""
    found: dict[Key, list[torch.Tensor]] = {key: [] for key in (_INTACT, *plans)}
    last = len(tower.submodules) - 1
    for batch in batches:
        value = batch
        for place, submodule in enumerate(tower.submodules):
            value = submodule.function(value)
            for key, plan in plans.items():
                if min(plan, default=last) == place:
                    found[key].append(_follow(tower, value, place, plan))
        found[_INTACT].append(tower.head(value))
    return {key: torch.cat(parts) for key, parts in found.items()}


def _judged(
    features: torch.Tensor, text_features: torch.Tensor, label: int
) -> dict[str, FloatArray]:
    """Return cosine, margin and whether the class is right, (N,) each."""
    cosines = normalize(features, dim=-1) @ text_features.to(features).T
    nearest = cosines == cosines.max(dim=1, keepdim=True).values
    own = cosines[:, label].double()
    found = {
        "cosine": own,
        "margin": own - cosines.double().mean(dim=1),
        # Features of zero are equally near to all texts; argmax would always take the first class.
        "correct": nearest[:, label].double() / nearest.sum(dim=1),
    }
    return {name: values.cpu().numpy() for name, values in found.items()}


def _digest(image: torch.Tensor) -> bytes:
    """Return what tells an image from others, for a set to hold in place of its pixels."""
    return hashlib.sha256(image.detach().cpu().contiguous().numpy().tobytes()).digest()


def _check_images(images: torch.Tensor, batch_size: int) -> None:
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images have shape {tuple(images.shape)}; give (N, 3, H, W), N above 0")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; allowed: 1 or more")
