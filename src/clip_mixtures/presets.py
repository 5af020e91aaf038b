"""Presets: partial parameter files that are written into a params.yaml, keeping its comments."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from clip_mixtures.errors import UserError, unknown
from clip_mixtures.files import atomic_write_text, read_text

# Taken over as a whole: a corpus of one preset is none of another's.
_WHOLE = ("corpus.bases",)


def apply_preset(preset: Path, params: Path) -> list[str]:
    """Write the values of a preset into a parameter file.

    Args:
        preset: YAML with any of the keys of ``params``.
        params: the file to change, replaced atomically.

    Returns:
        The dotted keys that changed.

    Raises:
        UserError: when a file is absent or no YAML, or the preset has a key that ``params`` lacks.
    """
    if not preset.is_file():
        names = sorted(path.stem for path in preset.parent.glob("*.yaml"))
        raise unknown("preset", preset.stem, names, str(preset.parent))
    yaml = YAML()
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    wanted, current = _load(yaml, preset), _load(yaml, params)
    changed = _merge(wanted, current, str(preset), prefix="")
    if changed:
        text = io.StringIO()
        yaml.dump(current, text)
        atomic_write_text(params, text.getvalue())
    return changed


@contextlib.contextmanager
def laid_over(preset: Path | None, params: Path) -> Iterator[Path]:
    """Give a parameter file with a preset's values, a copy that goes when the context ends.

    Args:
        preset: see :func:`apply_preset`; None for the file itself.
        params: the file, which stays as it is.

    Raises:
        UserError: see :func:`apply_preset`.
    """
    if preset is None:
        yield params
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(params, folder))
        apply_preset(preset, copy)
        yield copy


def _load(yaml: YAML, path: Path) -> MutableMapping[str, Any]:
    try:
        value = yaml.load(read_text(path))
    # The YAML reader answers an impossible date with a plain ValueError.
    except (YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(value, MutableMapping):
        raise UserError(f"{path}: holds no keys")
    return value


def _merge(
    wanted: Mapping[str, Any], current: MutableMapping[str, Any], where: str, prefix: str
) -> list[str]:
    changed = []
    for key, value in wanted.items():
        name = f"{prefix}{key}"
        # New mixtures and models may come with a preset; anything else must be known.
        if key not in current and prefix not in ("mixtures.", "models."):
            raise unknown("key", name, [f"{prefix}{known}" for known in current], where)
        if name in _WHOLE and isinstance(value, Mapping):
            if current[key] != value:
                current[key] = value
                changed.append(name)
        elif isinstance(value, Mapping) and isinstance(current.get(key), MutableMapping):
            changed += _merge(value, current[key], where, f"{name}.")
        elif isinstance(current.get(key), Mapping):
            raise UserError(f"{where}: {name} is {value!r}, not a mapping of keys to values")
        elif current.get(key) != value:
            current[key] = value
            changed.append(name)
    return changed
