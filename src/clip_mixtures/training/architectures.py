"""Names of the architectures that can be trained, found without loading torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from clip_mixtures.errors import unknown

OWN_CONFIGS = Path(__file__).parent / "model_configs"


def own_architectures() -> list[str]:
    """Return the names of the models that this project adds to open_clip's."""
    return sorted(path.stem for path in OWN_CONFIGS.glob("*.json"))


def known_architectures() -> list[str]:
    """Return this project's architectures, then open_clip's."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("open_clip is not installed; run `make setup`")
    configs = (Path(package.origin).parent / "model_configs").glob("*.json")
    return [*own_architectures(), *sorted(path.stem for path in configs)]


def check_architecture(name: str, where: str) -> str:
    """Return ``name`` if it is an architecture.

    Raises:
        UserError: naming ``where`` it was asked for and what there is.
    """
    known = known_architectures()
    if name not in known:
        raise unknown("architecture", name, known, where)
    return name
