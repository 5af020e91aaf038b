"""Refuse results that DVC would record under code or parameters that did not make them.

DVC hashes the code of a stage (`build/code/`, see code_versions.py) before a command that may wait
for hours behind others, and reads its parameters when the stage has ended. Edited in between, the
new values, or the old code, would stand in dvc.lock beside results of the others, and nothing would
ever run again.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clip_mixtures.errors import UserError
from clip_mixtures.files import read_yaml
from code_versions import CODE, code_lines
from experiment import PARAMS, running_stage

_PIPELINE = "dvc.yaml"
_ITEM = re.compile(r"\$\{item\.(\w+)\}")


def steady(main: Callable[[], None]) -> Callable[[], None]:
    """Let a stage's ``main`` fail if its code has changed before, or its parameters meanwhile.

    Only where DVC runs it: by hand, nothing is recorded.

    Raises:
        UserError: naming them.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        address = running_stage()
        if not address:
            main()
            return
        pipeline, _, name = address.rpartition(":")
        stage = name.partition("@")[0]
        _refuse_other_code(stage)
        keys = recorded_keys(Path(pipeline or _PIPELINE), stage, sys.argv[1:])
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


def _refuse_other_code(stage: str) -> None:
    noted = CODE / f"{stage}.txt"
    found, wanted = code_lines(stage), noted.read_text(encoding="utf-8").splitlines()
    if found != wanted:
        first = sorted(set(found) ^ set(wanted))[0].split()[-1]
        raise UserError(
            f"{first}: edited since `dvc repro` noted the code of stage {stage}; run `dvc repro` "
            "again, which begins with that"
        )


def recorded_keys(pipeline: Path, stage: str, arguments: Sequence[str]) -> list[str]:
    """Return the dotted keys that DVC records of a stage.

    Args:
        pipeline: its file.
        stage: its name, without what makes it one of many.
        arguments: of its command line, which say what that is.
    """
    parser = argparse.ArgumentParser(add_help=False)
    for name in ("mixture", "model", "seed"):
        parser.add_argument(f"--{name}", default="")
    given = vars(parser.parse_known_args(arguments)[0])
    keys = read_yaml(pipeline)["stages"][stage].get("params", ())
    return [_ITEM.sub(lambda found: given[found[1]], key) for key in keys]


def _values(keys: Sequence[str]) -> dict[str, Any]:
    params = read_yaml(PARAMS) if keys else {}
    return {key: _value(params, key) for key in keys}


def _value(params: Any, key: str) -> Any:
    for name in key.split("."):
        params = params.get(name) if isinstance(params, dict) else None
    return params
