"""Zero-shot classification: the published prompts, and numbers that follow from them by hand."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from clip_mixtures.corpora.captions import DOMAIN_TERMS
from clip_mixtures.evaluation.accuracy import accuracy_table
from clip_mixtures.evaluation.zero_shot import (
    DOMAIN_TEMPLATES,
    encode_prompts,
    fill,
    predict,
    prompt_templates,
    published_templates,
    rank,
    text_classifier,
)
from clip_mixtures.training.models import create_clip


def test_the_added_templates_know_their_articles() -> None:
    assert DOMAIN_TEMPLATES == (
        "a clipart of the {}.",
        "a clipart of a {}.",
        "an infograph of the {}.",
        "an infograph of a {}.",
        "a quickdraw of the {}.",
        "a quickdraw of a {}.",
    )


def test_the_templates_are_the_published_ones(shared_file: Callable[[str], Path]) -> None:
    oracle = json.loads(shared_file("oracle/numerics/zeroshot_templates.json").read_text())
    texts = [fill(template, "{}") for template in published_templates()]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert len(texts) == oracle["n_templates"] == 86
    assert digest == oracle["sha256_of_newline_joined"]


def test_the_published_filter_keeps_what_it_should_leave_out(
    shared_file: Callable[[str], Path],
) -> None:
    oracle = json.loads(shared_file("oracle/numerics/zeroshot_templates.json").read_text())
    texts = [fill(template, "{}") for template in prompt_templates("domain_invariant", "published")]
    assert texts == oracle["domain_invariant_true_keeps"]


def test_domain_invariant_prompts_name_no_domain() -> None:
    kept = [fill(template, "{}") for template in prompt_templates("domain_invariant")]
    dropped = [fill(t, "{}") for t in prompt_templates("domain_invariant", "published")]
    assert (len(kept), len(dropped)) == (70, 10)
    drawn = {domain: words for domain, words in DOMAIN_TERMS.items() if domain != "real"}
    named = {word for domain, words in drawn.items() for word in (domain, *words)}
    assert not any(word in text.strip(".").split() for text in kept for word in named)
    # The words themselves, not what contains them.
    assert "a cartoon {}." in kept
    assert "a clipart of a {}." in dropped
    assert "a photo of the {}." in kept
    assert len(prompt_templates("all")) == 86
    with pytest.raises(ValueError, match="allowed: all, domain_invariant"):
        prompt_templates("some")


@pytest.mark.parametrize("architecture", ["sample-RN", "ViT-S-32"])
def test_what_lies_behind_the_end_of_a_prompt_has_no_part_in_it(architecture: str) -> None:
    torch.manual_seed(0)
    model = create_clip(architecture)
    model.network.eval()
    texts = ["a cat", "a drawing of a very small and rather old grey cat that sleeps", "", "dog"]
    tokens = model.tokenizer(texts)
    with torch.inference_mode():
        whole = model.network.encode_text(tokens)  # type: ignore[operator]
    cut = encode_prompts(model.network, tokens)
    assert torch.allclose(normalize(cut, dim=-1), normalize(whole, dim=-1), atol=1e-5)


class _TableModel:
    """A text encoder that looks the features of class i under template t up in a table."""

    def __init__(self, base: torch.Tensor, noise: torch.Tensor) -> None:
        self.base, self.noise = base, noise

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return 3 * (self.base[tokens[:, 0]] + self.noise[tokens[:, 1]])


def _read_table_prompts(texts: list[str]) -> torch.Tensor:
    found = [re.fullmatch(r"template (\d+) class (\d+)", text) for text in texts]
    return torch.tensor([[int(m.group(2)), int(m.group(1))] for m in found if m])


def test_features_are_normalised_before_and_after_the_mean() -> None:
    base = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    noise = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    weights = text_classifier(
        _TableModel(base, noise), _read_table_prompts, ["class 0", "class 1"],
        ["template 0 {}", lambda name: f"template 1 {name}"],
    )  # fmt: skip
    # Class 0: (1, 0) and (1, 1)/sqrt(2), whose mean points at half of 45 degrees.
    angle = np.deg2rad(22.5)
    expected = torch.tensor([[np.cos(angle), np.sin(angle)], [0.0, 1.0]], dtype=torch.float32)
    assert torch.allclose(weights, expected, atol=1e-6)


def test_no_class_or_no_template_is_refused() -> None:
    model = _TableModel(torch.eye(2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="0 templates"):
        text_classifier(model, _read_table_prompts, ["class 0"], [])


@pytest.mark.parametrize("domain", ["clipart", "painting"])
def test_predictions_and_accuracies_are_the_published_ones(
    shared_file: Callable[[str], Path], domain: str
) -> None:
    arrays = np.load(shared_file("oracle/numerics/zeroshot_accuracy.npz"))
    oracle = json.loads(shared_file("oracle/numerics/zeroshot_accuracy.json").read_text())
    facts = shared_file("class_facts.csv").read_text().splitlines()[1:]
    held_out = [int(line.split(",")[0]) for line in facts if line.split(",")[2] == "1"]
    model = _TableModel(torch.from_numpy(arrays["base_dn"]), torch.from_numpy(arrays["noise_t"]))
    weights = text_classifier(
        model,
        _read_table_prompts,
        [f"class {number}" for number in range(345)],
        [f"template {number} {{}}" for number in range(86)],
    )
    features = normalize(torch.from_numpy(arrays[f"{domain}/feat_half"]).float(), dim=-1)
    predictions = (features @ weights.T).argmax(dim=1).numpy()
    assert (predictions == arrays[f"{domain}/domain_pred"]).all()

    names = np.array(["clipart", "infograph", "painting", "quickdraw", "real", "sketch"])
    domains = names[arrays[f"{domain}/domain_ids"]]
    table = accuracy_table(arrays[f"{domain}/labels"], predictions, domains, held_out)
    table = table.set_index(["domain", "group"])
    published = oracle[domain]["domainnet-val"]["accuracy"]
    for name in (domain, "real"):
        for group, key in (("held_out", "ood"), ("seen", "id")):
            row = table.loc[[(name, group)]].iloc[0]
            assert row["micro"] == pytest.approx(published[f"{name}-lso-{key}"], abs=1e-12)
            unweighted = published[f"{name}-lso-unweighted-{key}"]
            assert row["balanced"] == pytest.approx(unweighted, abs=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_no_answers(value: float) -> None:
    model = create_clip("sample-RN")
    images = np.zeros((140, 64, 64, 3), dtype=np.uint8)

    def scores(pixels: torch.Tensor) -> torch.Tensor:
        found = torch.eye(9)[: len(pixels) % 9].repeat(len(pixels), 1)[: len(pixels)]
        # In the second batch, in one column.
        if len(pixels) < 128:
            found[1, 7] = value
        return found

    with pytest.raises(FloatingPointError, match="1 of 140 images have scores that are not finite"):
        rank(scores, model, images, 5)
    assert len(rank(scores, model, images[:128], 5)) == 128


def test_an_image_goes_to_the_class_whose_text_is_nearest() -> None:
    torch.manual_seed(0)
    model = create_clip("sample-RN")
    model.network.eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.mean, model.std))
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        features = normalize(model.network.encode_image((pixels - mean) / std), dim=-1)  # type: ignore[operator]
    # A classifier whose rows are the images' own features in reverse: image i is class 4 - i.
    assert predict(model, images, features.flip(0)).tolist() == [4, 3, 2, 1, 0]
