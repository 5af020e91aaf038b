"""How checkpoints are evaluated, as a value."""

from __future__ import annotations

import dataclasses

# Which prompts make a class: all of them, or those that name no domain.
PROMPTS = ("all", "domain_invariant")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How checkpoints are evaluated.

    Attributes:
        prompts: one of :data:`PROMPTS`.
        protocol: "published" or "corrected".
        precision: one of :data:`clip_mixtures.training.config.PRECISIONS`.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    prompts: str
    protocol: str
    precision: str
    resamples: int
    seed: int
