"""Prompts encoded as a tree of their beginnings: the features of the whole texts."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transformer import CustomResidualAttentionBlock
from torch.nn.functional import normalize

from clip_mixtures.evaluation import prompts as prompts_module
from clip_mixtures.evaluation.prompts import encode, prompts_of
from clip_mixtures.training.precision import autocast

LENGTH, WORDS, END = 8, 12, 11
VISION = {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8}
TEXT = {"context_length": LENGTH, "vocab_size": WORDS, "width": 16, "heads": 2, "layers": 2}


def make(**text: Any) -> Any:
    """Make a tiny CLIP whose text tower is as told."""
    torch.manual_seed(0)
    model = open_clip.CLIP(8, VISION, {**TEXT, **text})
    for parameter in model.parameters():
        # Zeros, as biases begin, would hide that they are left out.
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tokens_of(*texts: list[int]) -> torch.Tensor:
    """End texts and fill them up with zeros, as a tokenizer does."""
    rows = [[*text, END] + [0] * (LENGTH - 1 - len(text)) for text in texts]
    return torch.tensor(rows)


TEXTS = tokens_of(
    [1, 2, 3], [1, 2], [1, 2, 3], [2, 2, 3, 4, 5, 6, 7], [], [1, 3, 3], [9], [1, 2, 4]
)


def whole(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        features: torch.Tensor = model.encode_text(tokens)
    return features


def check(model: Any, tokens: torch.Tensor) -> None:
    prompts = prompts_of(model, tokens)
    assert prompts.trees
    assert torch.allclose(encode(model, prompts), whole(model, tokens), atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [{}, {"layers": 1}, {"layers": 3}, {"ls_init_value": 0.5}, {"proj_bias": True}, {"heads": 1}],
    ids=str,
)
def test_features_are_those_of_the_whole_texts(text: dict[str, Any]) -> None:
    check(make(**text), TEXTS)


def test_a_tower_without_a_projection_is_read_as_it_is() -> None:
    model = make()
    model.text_projection = None
    check(model, TEXTS)


@pytest.mark.parametrize("prompts_a_tree", [1, 2, 3, 100])
def test_several_trees_give_the_features_in_order(
    monkeypatch: pytest.MonkeyPatch, prompts_a_tree: int
) -> None:
    monkeypatch.setattr(prompts_module, "_TREE", prompts_a_tree)
    model = make()
    assert len(prompts_of(model, TEXTS).trees) == -(-len(TEXTS) // prompts_a_tree)
    check(model, TEXTS)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=LENGTH - 1), min_size=1, max_size=12))
def test_any_texts_give_their_features(texts: list[list[int]]) -> None:
    check(make(), tokens_of(*texts))


def test_what_texts_have_in_common_is_there_once() -> None:
    (tree,) = prompts_of(make(), TEXTS).trees
    # Beginnings: 1 12 123 123E 12E 124 124E 13 133 133E, 2 to 2234567E (8), E, 9 9E.
    assert len(tree.pairs) == 10 + 8 + 1 + 2
    # At the first place there are 1, 2, 9 and the end, at the second 2, 3 and the end.
    places = tree.places.tolist()
    assert (places.count(0), places.count(1)) == (4, 3)
    # All texts end somewhere, two of them at the same node.
    assert sum(len(level.nodes) for level in tree.ends) == len(TEXTS)
    assert len(torch.cat([level.nodes for level in tree.ends]).unique()) == len(TEXTS) - 1


def test_a_text_that_fills_the_context_is_read_at_its_end() -> None:
    full = tokens_of([1, 2, 3, 4, 5, 6, 7])
    assert int(full[0, -1]) == END
    check(make(), full)


def test_prompts_serve_every_checkpoint_of_an_architecture() -> None:
    first, second = make(), make()
    for parameter in second.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    prompts = prompts_of(first, TEXTS)
    assert torch.allclose(encode(second, prompts), whole(second, TEXTS), atol=1e-5)


def test_mixed_precision_reaches_every_block() -> None:
    model = make()
    prompts = prompts_of(model, TEXTS)
    with autocast("amp_bf16", torch.device("cpu")):
        found = encode(model, prompts)
        wanted = whole(model, TEXTS)
    assert found.dtype == wanted.dtype == torch.bfloat16
    assert not torch.equal(found.float(), encode(model, prompts))
    similarity = (normalize(found.float(), dim=1) * normalize(wanted.float(), dim=1)).sum(dim=1)
    assert similarity.min() > 0.99


class _Texts(torch.nn.Module):
    """A tower that sums up what it is given, padding and all."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.sizes: list[int] = []

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(tokens))
        return tokens.sum(dim=1, keepdim=True) * self.weight


def test_another_tower_is_given_whole_texts_a_batch_at_a_time() -> None:
    model = _Texts()
    many = TEXTS.repeat(100, 1)
    prompts = prompts_of(model, many)
    assert prompts.trees == ()
    assert torch.equal(encode(model, prompts), many.sum(dim=1, keepdim=True).float())
    assert model.sizes == [256, 256, 256, 32]


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"pool_type": "last"}], ids=str)
def test_a_tower_that_looks_ahead_or_is_read_elsewhere_is_given_whole_texts(
    text: dict[str, Any],
) -> None:
    model = make(**text)
    prompts = prompts_of(model, TEXTS)
    assert prompts.trees == ()
    assert torch.equal(encode(model, prompts), whole(model, TEXTS))


def test_blocks_of_another_kind_are_given_whole_texts() -> None:
    model = make()
    blocks = [CustomResidualAttentionBlock(16, 2, qk_norm=True) for _ in range(2)]
    model.transformer.resblocks = torch.nn.ModuleList(blocks)
    model.eval()
    assert prompts_of(model, TEXTS).trees == ()
    assert torch.equal(encode(model, prompts_of(model, TEXTS)), whole(model, TEXTS))
