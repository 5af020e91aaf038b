"""A visual tower as a chain of submodules, each a function of the value before it.

Activations are read, and circuits are traced, at the same places: in a ResNet after the activations
and the pooling of the stem, every residual block and the attention pool; in a transformer after the
patch embedding, every block and the final norm. A chain can be entered and left anywhere, which is
what makes analyses cheap: an edge between two neighbours needs the one submodule between them, not
the network. No hooks are set and nothing in the network is changed.

Channels are the neurons of a value; everything else is its positions. See the study, section 6
(circuits), whose ResNet-50 has the 22 submodules ``input``, ``act1`` to ``act3``, ``avgpool``,
``resblock1`` to ``resblock16`` and ``attnpool``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.swin_transformer import SwinTransformer

from clip_mixtures.errors import UserError, unknown

INPUT = "input"

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Submodule:
    """A step of the chain.

    Attributes:
        name: of the step and of its value.
        function: from the value of the step before it to its own.
        channel_axis: of its value; 1 for (B, C, H, W) and (B, C), -1 for (B, S, C), (B, H, W, C).
    """

    name: str
    function: Function
    channel_axis: int

    def neurons(self, value: torch.Tensor) -> torch.Tensor:
        """Arrange a value as (B, S, C): positions in the order of rows, and channels.

        Args:
            value: (B, C), (B, C, H, W), (B, S, C) or (B, H, W, C), as the channel axis says.

        Returns:
            (B, S, C) of the same dtype, with S = 1 for a value without positions.
        """
        return value.movedim(self.channel_axis, -1).reshape(
            len(value), -1, value.shape[self.channel_axis]
        )

    def like(self, neurons: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Undo :meth:`neurons`: arrange (B, S, C) as a value, whose batch may be another one."""
        channels_last = value.movedim(self.channel_axis, -1).shape
        return neurons.reshape(len(neurons), *channels_last[1:]).movedim(-1, self.channel_axis)


@dataclasses.dataclass(frozen=True)
class Tower:
    """A visual tower in evaluation mode.

    Attributes:
        submodules: the chain; the first is ``input``, the normalised pixels themselves.
        head: from the last submodule's value to features (B, D) as ``encode_image`` gives them,
            not normalised.
    """

    submodules: tuple[Submodule, ...]
    head: Function

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the submodules, in order."""
        return tuple(submodule.name for submodule in self.submodules)

    def index(self, name: str) -> int:
        """Return the place of a submodule.

        Raises:
            UserError: when the tower has none of this name; the message lists those it has.
        """
        if name not in self.names:
            raise unknown("layer", name, self.names, "layers of the visual tower")
        return self.names.index(name)

    def __getitem__(self, name: str) -> Submodule:
        """Return a submodule; see :meth:`index`."""
        return self.submodules[self.index(name)]

    def run(self, value: torch.Tensor, start: str = INPUT, end: str | None = None) -> torch.Tensor:
        """Follow the chain from a submodule's value to a later one's.

        Args:
            value: of ``start``.
            start: whose value is given; it is not computed again.
            end: whose value is wanted; None for the features (B, D).

        Raises:
            UserError: for a name that the tower does not have.
            ValueError: when ``end`` comes before ``start``.
        """
        first = self.index(start)
        last = len(self.submodules) - 1 if end is None else self.index(end)
        if last < first:
            raise ValueError(f"{end} comes before {start}; a chain is followed forwards")
        for submodule in self.submodules[first + 1 : last + 1]:
            value = submodule.function(value)
        return self.head(value) if end is None else value

    def trace(self, pixels: torch.Tensor) -> Iterator[tuple[Submodule, torch.Tensor]]:
        """Follow the whole chain and yield every submodule with its value, ``input`` first.

        Args:
            pixels: normalised, (B, 3, H, W).
        """
        value = pixels
        for submodule in self.submodules:
            value = submodule.function(value)
            yield submodule, value

    def values(self, pixels: torch.Tensor, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the values of several submodules from one pass, in the order of the chain.

        Args:
            pixels: normalised, (B, 3, H, W).
            names: whose values to keep.

        Raises:
            UserError: for a name that the tower does not have.
        """
        wanted = {self.names[self.index(name)] for name in names}
        return {
            submodule.name: value
            for submodule, value in self.trace(pixels)
            if submodule.name in wanted
        }


def tower_of(visual: torch.nn.Module) -> Tower:
    """Take a visual tower apart.

    Args:
        visual: a ResNet or vision transformer of open_clip, or a Swin transformer of timm in
            open_clip's wrapper; it must be in evaluation mode, for a chain shares its parameters
            and would update the statistics of batch normalisation.

    Raises:
        UserError: for a tower of another kind.
        ValueError: for a tower in training mode.
    """
    if visual.training:
        raise ValueError("the tower is in training mode; call eval() first")
    if isinstance(visual, ModifiedResNet):
        return _resnet(visual)
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        return _transformer(visual)
    if isinstance(visual, TimmModel) and isinstance(visual.trunk, SwinTransformer):
        return _swin(visual)
    kind = type(visual.trunk if isinstance(visual, TimmModel) else visual).__name__
    raise UserError(
        f"visual tower {kind}: its submodules are not known; the analyses of representations take "
        "open_clip's ModifiedResNet and VisionTransformer and timm's SwinTransformer"
    )


def _identity(value: torch.Tensor) -> torch.Tensor:
    return value


def _after(*parts: torch.nn.Module) -> Function:
    """Apply modules one after the other."""
    return torch.nn.Sequential(*parts).eval()


def _numbered(name: str, functions: Sequence[Function], channel_axis: int) -> list[Submodule]:
    return [
        Submodule(f"{name}{number}", function, channel_axis)
        for number, function in enumerate(functions, start=1)
    ]


def _resnet(visual: ModifiedResNet) -> Tower:
    stem = [
        Submodule("act1", _after(visual.conv1, visual.bn1, visual.act1), 1),
        Submodule("act2", _after(visual.conv2, visual.bn2, visual.act2), 1),
        Submodule("act3", _after(visual.conv3, visual.bn3, visual.act3), 1),
        Submodule("avgpool", visual.avgpool, 1),
    ]
    layers = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
    blocks = list(itertools.chain.from_iterable(layers))
    return Tower(
        (
            Submodule(INPUT, _identity, 1),
            *stem,
            *_numbered("resblock", blocks, 1),
            Submodule("attnpool", visual.attnpool, 1),
        ),
        _identity,
    )


def _transformer(visual: VisionTransformer) -> Tower:
    def embed(pixels: torch.Tensor) -> torch.Tensor:
        patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
        token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        placed = torch.cat([token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        normed: torch.Tensor = visual.ln_pre(visual.patch_dropout(placed))
        return normed

    def pooled(tokens: torch.Tensor) -> torch.Tensor:
        if visual.pool_type == "tok":
            return tokens[:, 0]
        return tokens[:, 1:].mean(dim=1) if visual.pool_type == "avg" else tokens

    def project(feature: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = feature if visual.proj is None else feature @ visual.proj
        return projected

    norm: Function = visual.ln_post
    if visual.final_ln_after_pool:
        last = Submodule("norm", lambda tokens: norm(pooled(tokens)), -1)
        head: Function = project
    else:
        last = Submodule("norm", norm, -1)
        head = _composed(pooled, project)
    blocks = [_block(block, visual.transformer.batch_first) for block in _blocks(visual)]
    return Tower(
        (
            Submodule(INPUT, _identity, 1),
            Submodule("patch_embedding", embed, -1),
            *_numbered("block", blocks, -1),
            last,
        ),
        head,
    )


def _blocks(visual: VisionTransformer) -> Iterable[torch.nn.Module]:
    return list(visual.transformer.resblocks)


def _block(block: torch.nn.Module, batch_first: bool) -> Function:
    if batch_first:
        return block

    def run(tokens: torch.Tensor) -> torch.Tensor:
        turned: torch.Tensor = block(tokens.transpose(0, 1))
        return turned.transpose(0, 1)

    return run


def _composed(first: Function, second: Function) -> Function:
    return lambda value: second(first(value))


def _swin(visual: TimmModel) -> Tower:
    trunk = visual.trunk
    blocks: list[Function] = []
    for stage in trunk.layers:
        for place, block in enumerate(stage.blocks):
            # Patches are merged on the way into the first block of a stage.
            blocks.append(_after(stage.downsample, block) if place == 0 else block)

    def head(tokens: torch.Tensor) -> torch.Tensor:
        feature: torch.Tensor = visual.head(trunk.forward_head(tokens))
        return feature

    return Tower(
        (
            Submodule(INPUT, _identity, 1),
            Submodule("patch_embedding", trunk.patch_embed, -1),
            *_numbered("block", blocks, -1),
            Submodule("norm", trunk.norm, -1),
        ),
        head,
    )
