"""Names for units: the word of a vocabulary whose text feature lies nearest to a unit's direction.

CLIP's texts and images share one space, so a direction in it can be compared with any text (Rao, S.
et al. (2024). Discover-then-Name: Task-Agnostic Concept Bottlenecks via Automated Concept
Discovery. ECCV). A name is a guess: the cosine says how near it is, and every unit gets one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import normalize

from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.zero_shot import encode_prompts
from clip_mixtures.files import read_text
from clip_mixtures.training.models import ClipModel


def read_vocabulary(path: Path) -> list[str]:
    """Read the words of a vocabulary, one a line; white space around them is left out.

    Raises:
        UserError: when the file is absent or empty, or a line is blank or repeats a word, whose
            place in the features of the texts would be in doubt.
    """
    words = [line.strip() for line in read_text(path).splitlines()]
    if not words:
        raise UserError(f"{path}: empty; give one word a line")
    seen: dict[str, int] = {}
    for number, word in enumerate(words, start=1):
        if not word:
            raise UserError(f"{path}:{number}: blank; delete the line")
        if word in seen:
            raise UserError(f"{path}:{number}: {word!r} is on line {seen[word]} too; delete one")
        seen[word] = number
    return words


def encode_words(model: ClipModel, words: Sequence[str]) -> torch.Tensor:
    """Encode words as they are, without a template.

    Args:
        model: in evaluation mode.
        words: (V,).

    Returns:
        (V, D) float32, normalised, on the CPU.
    """
    features = encode_prompts(model.network, model.tokenizer(list(words)))
    return normalize(features.float(), dim=1).cpu()


def name_units(
    dictionary: torch.Tensor, text_features: torch.Tensor, words: Sequence[str]
) -> pd.DataFrame:
    """Name each unit by the text feature with the largest cosine; the first of equal ones.

    Args:
        dictionary: directions of the units in rows, (m, n), of any length above zero.
        text_features: of the words, (V, n), of any length above zero.
        words: (V,).

    Returns:
        One row a unit: ``unit`` (0 to m - 1), ``name`` and ``cosine`` in [-1, 1].

    Raises:
        ValueError: shapes that do not match, or a number that is not finite.
    """
    if dictionary.ndim != 2 or text_features.shape != (len(words), dictionary.shape[1]):
        raise ValueError(
            f"dictionary {tuple(dictionary.shape)} and text features {tuple(text_features.shape)} "
            f"of {len(words)} words do not match; use the text tower of the same model"
        )
    if not len(words):
        raise ValueError("no words; give a vocabulary")
    directions = normalize(dictionary.detach().float(), dim=1)
    cosines = directions @ normalize(text_features.detach().float(), dim=1).T
    if not torch.isfinite(cosines).all():
        raise ValueError("dictionary or text features hold a number that is not finite")
    best = cosines.max(dim=1)
    return pd.DataFrame(
        {
            "unit": range(len(dictionary)),
            "name": [words[place] for place in best.indices.tolist()],
            "cosine": best.values.numpy(),
        }
    )
