"""Zero-shot classification with a prompt ensemble (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from torch.nn.functional import normalize

from clip_mixtures.corpora.captions import DOMAIN_ORDER, DOMAIN_TERMS
from clip_mixtures.evaluation.config import PROMPTS
from clip_mixtures.evaluation.prompts import encode, prompts_of
from clip_mixtures.mixtures.spec import NATURAL_DOMAIN
from clip_mixtures.training.models import ClipModel, normalise, to_pixels

Template = str | Callable[[str], str]

# The published prompts are open_clip's 80 and these: the domains that the 80 do not know.
DOMAIN_TEMPLATES = tuple(
    f"{domain} of {article} {{}}."
    for domain in ("a clipart", "an infograph", "a quickdraw")
    for article in ("the", "a")
)
# Images a batch. Larger ones fall out of a processor's caches.
IMAGE_BATCH = 512
CPU_IMAGE_BATCH = 128


def published_templates() -> list[Template]:
    """Return the 86 published prompt templates in published order."""
    return [*open_clip.OPENAI_IMAGENET_TEMPLATES, *DOMAIN_TEMPLATES]


def prompt_templates(prompts: str, protocol: str = "corrected") -> list[Template]:
    """Return the templates of a set of prompts.

    Args:
        prompts: one of :data:`PROMPTS`. "all" are the 86; "domain_invariant" leaves out the 16 that
            name a domain other than natural images with one of the words that captions have for it.
        protocol: "published" takes for "domain_invariant" exactly the 10 that have a domain's own
            name, as the published filter does, which is inverted and knows no other words.

    Raises:
        ValueError: for an unknown set of prompts.
    """
    templates = published_templates()
    if prompts == "all":
        return templates
    if prompts != "domain_invariant":
        raise ValueError(f"prompts is {prompts!r}; allowed: {', '.join(PROMPTS)}")
    drawn = [domain for domain in DOMAIN_ORDER if domain != NATURAL_DOMAIN]
    if protocol == "published":
        return [template for template in templates if _names_one_of(drawn, template)]
    words = [word for domain in drawn for word in (domain, *DOMAIN_TERMS[domain])]
    return [template for template in templates if not _names_one_of(words, template)]


def _names_one_of(words: Sequence[str], template: Template) -> bool:
    return re.search(rf"\b({'|'.join(words)})\b", fill(template, "")) is not None


def fill(template: Template, class_name: str) -> str:
    """Put a class name into a template."""
    return template.format(class_name) if isinstance(template, str) else template(class_name)


@torch.inference_mode()
def text_classifier(
    model: Any,
    tokenizer: Callable[[list[str]], torch.Tensor],
    class_names: Sequence[str],
    templates: Sequence[Template],
) -> torch.Tensor:
    """Average the normalised text features of all prompts of a class, and normalise again.

    Args:
        model: with ``encode_text``: (B, context length) int64 to (B, D).
        tokenizer: texts to (B, context length) int64.
        class_names: C names.
        templates: T templates; "{}" or the argument stands for the name.

    Returns:
        (C, D) unit rows, in the model's dtype and on its device.

    Raises:
        ValueError: without a class or a template.
    """
    features = encode_prompts(model, tokenizer(filled(templates, class_names)))
    return average_prompts(features, len(class_names))


def filled(templates: Sequence[Template], class_names: Sequence[str]) -> list[str]:
    """Return the prompts of all classes, one class after the other.

    Raises:
        ValueError: without a class or a template.
    """
    if not class_names or not templates:
        raise ValueError(f"{len(class_names)} classes and {len(templates)} templates: need both")
    return [fill(template, name) for name in class_names for template in templates]


def average_prompts(features: torch.Tensor, classes: int) -> torch.Tensor:
    """Average the normalised features (C T, D) of all prompts of a class, and normalise again.

    Returns:
        (C, D) unit rows.
    """
    per_class = normalize(features, dim=-1).view(classes, -1, features.shape[1])
    return normalize(per_class.mean(dim=1), dim=-1)


def encode_prompts(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Encode texts, and what they have in common only once; see :mod:`prompts`.

    Args:
        model: with ``encode_text``.
        tokens: (N, context length) int64.

    Returns:
        (N, D), in the model's dtype and on its device.
    """
    return encode(model, prompts_of(model, tokens))


@torch.inference_mode()
def predict(
    model: ClipModel, images: npt.NDArray[np.uint8], classifier: torch.Tensor
) -> npt.NDArray[np.int64]:
    """Return the class whose text is nearest in angle to each image.

    Args:
        model: in evaluation mode.
        images: (N, S, S, 3) uint8, packed at the model's size.
        classifier: (C, D) unit rows.

    Returns:
        (N,) int64 in 0..C-1.

    Raises:
        FloatingPointError: see :func:`rank`.
    """
    return rank(lambda pixels: clip_logits(model, pixels, classifier), model, images, 1)[:, 0]


def clip_logits(model: ClipModel, pixels: torch.Tensor, classifier: torch.Tensor) -> torch.Tensor:
    """Return the cosine of each image with each class, (B, C) float32.

    Args:
        model: in evaluation mode.
        pixels: (B, 3, S, S), normalised.
        classifier: (C, D) unit rows.
    """
    features = model.network.encode_image(pixels).float()  # type: ignore[operator]
    # Rounded to half precision, one cosine in fifty would tie with the best.
    with torch.autocast(pixels.device.type, enabled=False):
        return normalize(features, dim=-1) @ classifier.float().T


@torch.inference_mode()
def rank(
    logits: Callable[[torch.Tensor], torch.Tensor],
    model: ClipModel,
    images: npt.NDArray[np.uint8],
    count: int,
) -> npt.NDArray[np.int64]:
    """Return the classes that suit each image best.

    Args:
        logits: (B, 3, S, S) normalised pixels to (B, C).
        model: whose input is prepared.
        images: (N, S, S, 3) uint8, packed at the model's size.
        count: how many classes, at most C of them.

    Returns:
        (N, min(count, C)) int64, best first; of equal ones the first.

    Raises:
        FloatingPointError: for scores that are not finite; NaN would sort as the best.
    """
    device = _device(model.network)
    best, usable = [], []
    size = IMAGE_BATCH if device.type == "cuda" else CPU_IMAGE_BATCH
    for start in range(0, len(images), size):
        batch = torch.from_numpy(np.array(images[start : start + size])).to(device)
        scores = logits(normalise(to_pixels(batch), model))
        order = scores.sort(dim=1, descending=True, stable=True).indices
        best.append(order[:, :count])
        usable.append(scores.isfinite().all(dim=1))
    # Brought over once: a GPU is waited for each time.
    _check_finite(torch.cat(usable).cpu().numpy())
    return torch.cat(best).cpu().numpy()


def _check_finite(usable: npt.NDArray[np.bool_]) -> None:
    if not usable.all():
        wrong = int((~usable).sum())
        raise FloatingPointError(
            f"{wrong:,} of {len(usable):,} images have scores that are not finite"
        )


def _device(model: Any) -> torch.device:
    parameter = next(model.parameters(), None) if hasattr(model, "parameters") else None
    return parameter.device if parameter is not None else torch.device("cpu")
