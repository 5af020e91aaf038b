"""Encode many prompts, and what they have in common only once.

The text tower looks only backwards, and a prompt's feature is read at its last token. So the
padding behind that has no part in it; prompts that begin alike are alike as far as they do; what
enters the first block is known by a token and its place alone; and in the last block only the last
token counts. The prompts of a template differ from the class name on: as a tree of their
beginnings, CLIP's have half as many tokens as without their padding, and a twentieth as with it.

The features are those of ``encode_text`` but for the last digits, as sums are made in another
order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch.nn import functional

# Prompts a tree: more share more, but fall out of a processor's caches.
_TREE = 2048
# Texts a batch for towers that need them whole: on a CPU 256 at a time go twice as fast as 4096.
_BATCH = 256


class _Level(NamedTuple):
    """Nodes of one depth p.

    Attributes:
        nodes: (m,) int64 numbers.
        paths: (m, p + 1) int64 the nodes from the first token to each, itself included.
    """

    nodes: torch.Tensor
    paths: torch.Tensor


class _Tree(NamedTuple):
    """Prompts as a tree of their beginnings; a node is a token after all that goes before it.

    Attributes:
        tokens: (k,) int64 tokens that occur at a place, each such pair once.
        places: (k,) int64 the places.
        pairs: (n,) int64 the pair of each node.
        levels: all nodes, by depth; their numbers rise.
        ends: the nodes that prompts end at, by depth.
        order: (N,) int64 where the prompts' ends are among all ends.
    """

    tokens: torch.Tensor
    places: torch.Tensor
    pairs: torch.Tensor
    levels: tuple[_Level, ...]
    ends: tuple[_Level, ...]
    order: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts, made ready for every checkpoint of an architecture.

    Attributes:
        tokens: (N, context length) int64.
        trees: of some prompts each, together all of them; none for a tower that needs whole texts.
        order: (N,) int64 where the prompts are in the trees, one tree after the other.
    """

    tokens: torch.Tensor
    trees: tuple[_Tree, ...]
    order: torch.Tensor


def prompts_of(model: Any, tokens: torch.Tensor) -> Prompts:
    """Make prompts ready for a model.

    Args:
        model: with ``encode_text``; its weights do not matter.
        tokens: (N, context length) int64, N at least 1.
    """
    if not _is_plain(model):
        return Prompts(tokens, (), torch.arange(len(tokens)))
    lengths = tokens.argmax(dim=1) + 1
    order = torch.arange(len(tokens))
    # As in a dictionary, those that begin alike become neighbours.
    for place in reversed(range(int(lengths.max()))):
        order = order[tokens[order, place].argsort(stable=True)]
    trees = tuple(_tree(tokens[rows], lengths[rows]) for rows in order.split(_TREE))
    return Prompts(tokens, trees, order.argsort())


def _is_plain(model: Any) -> bool:
    """Whether the text tower looks backwards, has plain blocks, and is read at the largest token.

    The largest token of CLIP's vocabulary ends a text.
    """
    return (
        isinstance(model, open_clip.CLIP)
        and model.attn_mask is not None
        and model.text_pool_type == "argmax"
        and isinstance(model.transformer, Transformer)
        and all(type(block) is ResidualAttentionBlock for block in model.transformer.resblocks)
    )


def _tree(tokens: torch.Tensor, lengths: torch.Tensor) -> _Tree:
    base = int(tokens.max()) + 1
    levels: list[_Level] = []
    ends: list[_Level] = []
    ended: list[torch.Tensor] = []
    token_of: list[torch.Tensor] = []
    # Where each prompt has got to. Above the first tokens is one node without a path.
    at = torch.zeros(len(tokens), dtype=torch.int64)
    above = _Level(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64))
    first = 0
    for place in range(int(lengths.max())):
        going_on = (lengths > place).nonzero()[:, 0]
        keys, found = torch.unique(
            at[going_on] * base + tokens[going_on, place], return_inverse=True
        )
        nodes = torch.arange(first, first + len(keys))
        paths = above.paths[keys // base - above.nodes[0]]
        above = _Level(nodes, torch.cat([paths, nodes[:, None]], dim=1))
        levels.append(above)
        token_of.append(keys % base)
        at[going_on] = nodes[found]
        ends_here = lengths[going_on] == place + 1
        if ends_here.any():
            ended.append(going_on[ends_here])
            ends.append(_Level(*(part[found[ends_here]] for part in above)))
        first += len(nodes)
    depths = [torch.full_like(nodes, depth) for depth, (nodes, _) in enumerate(levels)]
    keys = torch.cat(token_of) * len(levels) + torch.cat(depths)
    pairs, pair_of = torch.unique(keys, return_inverse=True)
    return _Tree(
        tokens=pairs // len(levels),
        places=pairs % len(levels),
        pairs=pair_of,
        levels=tuple(levels),
        ends=tuple(ends),
        order=torch.cat(ended).argsort(),
    )


@torch.inference_mode()
def encode(model: Any, prompts: Prompts) -> torch.Tensor:
    """Return the features (N, D) of prompts, in the model's dtype and on its device.

    Args:
        model: of the architecture that the prompts were made ready for.
        prompts: by :func:`prompts_of`.
    """
    device = _device(model)
    if not prompts.trees:
        parts = prompts.tokens.split(_BATCH)
        return torch.cat([model.encode_text(part.to(device)) for part in parts])
    features = torch.cat([_encode_tree(model, tree, device) for tree in prompts.trees])
    return features[prompts.order.to(device)]


def _device(model: Any) -> torch.device:
    parameter = next(model.parameters(), None) if hasattr(model, "parameters") else None
    return parameter.device if parameter is not None else torch.device("cpu")


def _encode_tree(model: Any, tree: _Tree, device: torch.device) -> torch.Tensor:
    places = model.positional_embedding[tree.places.to(device)]
    states = model.token_embedding(tree.tokens.to(device)) + places
    levels, ends = (_moved(each, device) for each in (tree.levels, tree.ends))
    # Nodes with the same token and place are the same before the first block, and not behind it.
    pairs: torch.Tensor | None = tree.pairs.to(device)
    *blocks, last = model.transformer.resblocks
    for block in blocks:
        states, pairs = _block(block, states, pairs, levels), None
    features: torch.Tensor = model.ln_final(_block(last, states, pairs, ends))
    features = features[tree.order.to(device)]
    projection = model.text_projection
    if isinstance(projection, torch.nn.Module):
        features = projection(features)
    elif projection is not None:
        features = features @ projection
    return features


def _moved(levels: Sequence[_Level], device: torch.device) -> list[_Level]:
    return [_Level(*(part.to(device) for part in level)) for level in levels]


def _block(
    block: Any, states: torch.Tensor, pairs: torch.Tensor | None, levels: Sequence[_Level]
) -> torch.Tensor:
    """Return what a block makes of some nodes.

    Args:
        block: of the text tower.
        states: (k, D) what enters it.
        pairs: (n,) int64 the state of each node; None where every node has its own.
        levels: the nodes.

    Returns:
        (m, D) of the nodes, one level after the other.
    """
    attention = block.attn
    width, heads = attention.embed_dim, (attention.num_heads, attention.head_dim)
    projected = functional.linear(
        block.ln_1(states), attention.in_proj_weight, attention.in_proj_bias
    )
    # Keys and values are fetched for every node of a path, so they lie side by side.
    queries, seen_as = projected[:, :width], projected[:, width:].contiguous()
    rows_of, attended = [], []
    for nodes, paths in levels:
        rows, seen = (nodes, paths) if pairs is None else (pairs[nodes], pairs[paths])
        query = queries.index_select(0, rows).unflatten(1, heads).unsqueeze(2)
        fetched = seen_as.index_select(0, seen.flatten()).view(*seen.shape, 2, *heads)
        key, value = fetched.transpose(1, 3).unbind(2)
        # (m, heads, 1 or p + 1, D / heads): each node looks at its path, and no mask is needed.
        looked_at = functional.scaled_dot_product_attention(query, key, value)
        rows_of.append(rows)
        attended.append(looked_at.flatten(1))
    after = states[torch.cat(rows_of)] + block.ls_1(attention.out_proj(torch.cat(attended)))
    made: torch.Tensor = after + block.ls_2(block.mlp(block.ln_2(after)))
    return made
