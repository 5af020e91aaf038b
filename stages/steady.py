"""Refuse results whose parameters were edited while they were made.

DVC records the parameters of a stage when the stage has ended. Edited in between, the new values
would stand in dvc.lock beside results of the old ones, and nothing would ever run again.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_mixtures.errors import UserError
from clip_mixtures.files import read_yaml
from experiment import PARAMS

_PIPELINES = ("dvc.yaml", "pipeline/*/dvc.yaml")
_ITEM = re.compile(r"\$\{item\.(\w+)\}")


def steady(main: Callable[[], None]) -> Callable[[], None]:
    """Let a stage's ``main`` fail at its end if the parameters that DVC records have changed.

    Which these are is read from the pipeline: those of the stage that runs this script.

    Raises:
        UserError: naming them.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        keys = list(recorded_keys(Path(sys.argv[0]).name, sys.argv[1:]))
        before = _values(keys)
        main()
        after = _values(keys)
        changed = [key for key in keys if before[key] != after[key]]
        if changed:
            raise UserError(
                f"{PARAMS}: {', '.join(changed)} changed while this ran, so DVC would record the "
                "result under values that it was not made with. `dvc repro` runs it with the new "
                "values; put the old ones back first, and a training that is finished is not "
                "trained again"
            )

    return wrapped


def recorded_keys(script: str, arguments: Sequence[str]) -> Iterator[str]:
    """Return the dotted keys that DVC records of the stage that runs a script.

    Args:
        script: name of its file.
        arguments: of its command line, which say what `item` is.
    """
    given = dict(zip(arguments[::2], arguments[1::2], strict=False))
    for pattern in _PIPELINES:
        for path in sorted(Path().glob(pattern)):
            for stage in read_yaml(path).get("stages", {}).values():
                if f"stages/{script}" in str(stage.get("cmd")):
                    for key in stage.get("params", ()):
                        yield _ITEM.sub(lambda found: given.get(f"--{found[1]}", ""), key)


def _values(keys: Sequence[str]) -> dict[str, Any]:
    params = read_yaml(PARAMS) if keys else {}
    return {key: _value(params, key) for key in keys}


def _value(params: Any, key: str) -> Any:
    for name in key.split("."):
        params = params.get(name) if isinstance(params, dict) else None
    return params
