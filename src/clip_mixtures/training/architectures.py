"""Names of the architectures that can be trained, found without loading torch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from clip_mixtures.errors import unknown

OWN_CONFIGS = Path(__file__).parent / "model_configs/"


def own_architectures() -> list[str]:
    """Return the names of the models that this project adds to open_clip's."""
    return sorted(path.stem for path in OWN_CONFIGS.glob("*.json"))


def known_architectures() -> list[str]:
    """Return this project's architectures, then those of open_clip that are plain CLIP models."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("open_clip is not installed; run `make setup`")
    configs = (Path(package.origin).parent / "model_configs").glob("*.json")
    return [*own_architectures(), *sorted(path.stem for path in configs if _is_plain_clip(path))]


def _is_plain_clip(config: Path) -> bool:
    """Whether a model has two towers trained by the contrastive loss, with the tokenizer at hand.

    CoCa, SigLIP and models with Hugging Face towers or tokenizers need another loss or a download.
    """
    values = json.loads(config.read_text(encoding="utf-8"))
    text = values.get("text_cfg", {})
    return not (
        {"multimodal_cfg", "init_logit_bias"} & values.keys()
        or {"hf_model_name", "hf_tokenizer_name"} & text.keys()
    )


def check_architecture(name: str, where: str) -> str:
    """Return ``name`` if it is an architecture.

    Raises:
        UserError: naming ``where`` it was asked for and what there is.
    """
    known = known_architectures()
    if name not in known:
        raise unknown("architecture", name, known, where)
    return name
