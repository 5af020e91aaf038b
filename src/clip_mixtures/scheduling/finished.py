"""Scratch folders of finished work: they go when DVC has the result on record, and not before.

A stage that has written its output may be killed before DVC has hashed and recorded it; DVC then
removes the output and runs the stage again. So finished work stays in scratch, and is only
published again. What is on record is read from DVC's lock files and from its cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_mixtures.files import read_yaml
from clip_mixtures.scratch import forget

_FINGERPRINT = "[0-9a-f]" * 16
_DIRECTORY = ".dir"


def forget_recorded(
    scratch: Path, outs: Path, facts: str, locks: Iterable[Path], cache: Path
) -> list[str]:
    """Remove the scratch folders whose results DVC has.

    Args:
        scratch: folder of scratch folders, each called after a run, with a fingerprint behind it.
        outs: folder of the results, an output of DVC's for each run, relative as in the lock files.
        facts: name of the file that finished work ends with, in scratch as in the result.
        locks: DVC's lock files.
        cache: DVC's cache.

    Returns:
        The names of the runs whose folders are gone. A folder that a process holds stays, and so
        does one without facts, or with others than those on record.
    """
    finished = [
        folder for folder in scratch.glob(f"*-{_FINGERPRINT}") if (folder / facts).is_file()
    ]
    if not finished:
        return []
    recorded = dict(_outputs(locks))
    gone = []
    for folder in finished:
        run = folder.name.rpartition("-")[0]
        name = recorded.get((outs / run).as_posix(), "")
        wanted = _listed(cache, name).get(facts)
        found = hashlib.md5((folder / facts).read_bytes(), usedforsecurity=False).hexdigest()
        if found == wanted:
            forget(folder)
            gone.append(run)
    return gone


def _outputs(locks: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Return the path and hash of every output on record."""
    for lock in locks:
        stages: Mapping[str, Any] = read_yaml(lock).get("stages") or {}
        for stage in stages.values():
            for out in stage.get("outs", ()):
                yield out["path"], str(out.get("md5", ""))


def _listed(cache: Path, name: str) -> dict[str, str]:
    """Return relative path to hash of the files of a folder in the cache; none where it is not."""
    path = cache / "files" / "md5" / name[:2] / name[2:]
    if not name.endswith(_DIRECTORY) or not path.is_file():
        return {}
    return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_text("utf-8"))}
