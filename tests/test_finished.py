"""Finished work leaves scratch when DVC has it, and not before."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from clip_mixtures.scheduling.finished import forget_recorded
from clip_mixtures.scratch import exclusive

RUN, FOLDER = "cg-low-m-s0", "cg-low-m-s0-0123456789abcdef"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A run that is finished, and on record in a lock file and the cache."""
    facts = b'{"loss": 1}'
    scratch = tmp_path / "scratch" / FOLDER
    scratch.mkdir(parents=True)
    (scratch / "facts.json").write_bytes(facts)
    listed = [
        {"md5": "0" * 32, "relpath": "checkpoints/one"},
        {"md5": hashlib.md5(facts, usedforsecurity=False).hexdigest(), "relpath": "facts.json"},
    ]
    objects = tmp_path / "cache" / "files" / "md5" / "ab"
    objects.mkdir(parents=True)
    (objects / "cdef.dir").write_text(json.dumps(listed))
    (tmp_path / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  train@cg-low-m-0:\n    cmd: x\n    outs:\n"
        f"    - path: build/runs/{RUN}\n      md5: abcdef.dir\n"
    )
    return tmp_path


def forget(project: Path) -> list[str]:
    return forget_recorded(
        project / "scratch",
        Path("build/runs"),
        "facts.json",
        [project / "dvc.lock"],
        project / "cache",
    )


def test_what_is_on_record_goes(project: Path) -> None:
    assert forget(project) == [RUN]
    assert list((project / "scratch").iterdir()) == []
    assert forget(project) == []


@pytest.mark.parametrize(
    "harm",
    [
        lambda project: (project / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n"),
        lambda project: (project / "cache/files/md5/ab/cdef.dir").unlink(),
        lambda project: (project / "cache/files/md5/ab/cdef.dir").write_text("[]"),
        lambda project: (project / "scratch" / FOLDER / "facts.json").write_text("other"),
        lambda project: (project / "scratch" / FOLDER / "facts.json").unlink(),
        lambda project: (project / "scratch" / FOLDER).rename(project / "scratch" / RUN),
    ],
    ids=["no stage", "no listing", "not listed", "other facts", "not finished", "no fingerprint"],
)
def test_anything_else_stays(project: Path, harm: object) -> None:
    assert callable(harm)
    harm(project)
    assert forget(project) == []
    assert len(list((project / "scratch").iterdir())) == 1


def test_what_a_process_holds_stays(project: Path) -> None:
    with exclusive(project / "scratch" / FOLDER):
        forget(project)
        assert (project / "scratch" / FOLDER / "facts.json").is_file()
