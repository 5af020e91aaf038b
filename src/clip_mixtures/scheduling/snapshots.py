"""Workspaces apart: exactly what is in a DVC repository now, for a task that runs later, elsewhere.

DVC keeps account of who reads and writes what in a workspace by process numbers, which mean
nothing on another machine. So a task gets a clone of its own: of a commit that holds HEAD and the
changes of tracked files, made without touching workspace, index or branches. The clone shares the
cache, so its inputs are links, and what it computes is found by every other workspace. Nothing is
hashed again: DVC knows what it links, while `data` by another way would be read in full first.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc.config import Config

from clip_mixtures.errors import UserError
from clip_mixtures.files import read_yaml

# The name of the commit in the store that tasks clone from.
BRANCH = "snapshot"
PIPELINE = "dvc.yaml"
# Wherever code or a pipeline lies, a file that git does not know would be missing in the clone.
CODE = ("src", "stages")
_LOCK = "dvc.lock"
_PIPELINE_FILES = (PIPELINE, "params.yaml")
_TEMPLATE = re.compile(r"\$\{[^}]*\}")
_MOST_NAMED = 8
_SELF = ("-c", "user.name=clip-mixtures", "-c", "user.email=clip-mixtures@localhost")


def take_snapshot(repository: Path, store: Path) -> str:
    """Store HEAD and the changes of tracked files as one commit, in a bare repository.

    Args:
        repository: top folder of a git and DVC repository; nothing in it changes.
        store: folder to make; whoever can read it can clone the snapshot, whatever becomes of the
            repository.

    Returns:
        The commit.

    Raises:
        UserError: when git fails, a merge is unfinished, or a file is not tracked that the pipeline
            names or that is code.
    """
    check_tracked(repository)
    with tempfile.TemporaryDirectory() as folder:
        # An index of its own, so that what the user has staged stays as it is.
        index = Path(folder) / "index"
        current = Path(_git(repository, "rev-parse", "--git-path", "index").strip())
        if (repository / current).is_file():
            shutil.copyfile(repository / current, index)
        alone = {"GIT_INDEX_FILE": str(index)}
        _git(repository, "add", "--update", "--", ":/", environment=alone)
        # DVC's own records may be new: it made them.
        records = [name for name in _untracked(repository) if posixpath.basename(name) == _LOCK]
        if records:
            _git(repository, "add", "--", *records, environment=alone)
        tree = _git(repository, "write-tree", environment=alone).strip()
    message = "What was there when it was submitted"
    commit = _git(
        repository, *_SELF, "commit-tree", tree, "-p", "HEAD", "-m", message, "--no-gpg-sign"
    ).strip()
    store.parent.mkdir(parents=True, exist_ok=True)
    _git(store.parent, "init", "--quiet", "--bare", str(store))
    _git(store, "config", "receive.shallowUpdate", "true")
    # Without the user's hooks: DVC's own would push data to a remote.
    _git(
        repository,
        *("push", "--quiet", "--no-verify", str(store.resolve())),
        f"{commit}:refs/heads/{BRANCH}",
    )
    _git(store, "symbolic-ref", "HEAD", f"refs/heads/{BRANCH}")
    return commit


def check_tracked(repository: Path) -> None:
    """Refuse what a clone would lack, or could not be made from.

    Args:
        repository: top folder of a git repository.

    Raises:
        UserError: when it is none or has no commit, a merge is unfinished, or a file is not tracked
            that the pipeline names or that is code.
    """
    top = Path(_git(repository, "rev-parse", "--show-toplevel").strip())
    if top != repository.resolve():
        raise UserError(f"{repository}: is not the top of its git repository, which is {top}")
    _git(repository, "rev-parse", "--verify", "--quiet", "HEAD", fails="has no commit; make one")
    if unmerged := _names(_git(repository, "diff", "--name-only", "--diff-filter=U", "-z")):
        raise UserError(
            f"{repository}: {_listed(unmerged)}: unmerged; finish the merge, or git merge --abort"
        )
    untracked = _untracked(repository)
    if not untracked:
        return
    tracked = _names(_git(repository, "ls-files", "-z"))
    pipelines = [name for name in (*tracked, *untracked) if posixpath.basename(name) == PIPELINE]
    named = [pattern for name in pipelines for pattern in _named_in(repository, name)]
    lacking = [
        name
        for name in untracked
        if name.startswith(tuple(f"{folder}/" for folder in CODE))
        or posixpath.basename(name) in _PIPELINE_FILES
        or name.endswith(".dvc")
        or any(pattern.fullmatch(name) for pattern in named)
    ]
    if lacking:
        raise UserError(
            f"{_listed(lacking)}: not tracked by git, so the tasks would not have it; "
            f"git add {' '.join(lacking[:_MOST_NAMED])} (and commit it or not), or remove it"
        )


def _named_in(repository: Path, pipeline: str) -> Iterator[re.Pattern[str]]:
    """Yield patterns of the files, and of what lies in the folders, that a pipeline file names."""
    if not (repository / pipeline).is_file():
        return
    stages = read_yaml(repository / pipeline).get("stages") or {}
    for entry in stages.values():
        stage = entry.get("do", entry) if isinstance(entry, Mapping) else {}
        wdir = posixpath.join(posixpath.dirname(pipeline), str(stage.get("wdir", ".")))
        files = [*_paths(stage.get("deps")), *_files_of(stage.get("params"))]
        commands = stage.get("cmd") or []
        for command in [commands] if isinstance(commands, str) else commands:
            # A word with a placeholder is a setting more often than a file.
            files += [word for word in str(command).split() if not _TEMPLATE.search(word)]
        for name in files:
            path = posixpath.normpath(posixpath.join(wdir, name))
            parts = [re.escape(part) for part in _TEMPLATE.split(path)]
            if any(parts):
                yield re.compile("[^/]*".join(parts) + "(/.*)?")


def _paths(deps: Any) -> list[str]:
    """Return the paths of a list whose entries are paths, or mappings of a path to its options."""
    return [
        str(name)
        for entry in deps or []
        for name in (entry if isinstance(entry, dict) else [entry])
    ]


def _files_of(params: Any) -> list[str]:
    """Return the parameter files that a stage names beside params.yaml."""
    return [str(name) for entry in params or [] if isinstance(entry, dict) for name in entry]


def write_config(repository: Path, target: Path, cache: Path | None = None) -> None:
    """Write DVC's settings of a repository for clones of it, with paths that hold anywhere.

    Args:
        repository: whose settings, those of `.dvc/config.local` included.
        target: file to write, for the owner alone: it may hold a remote's credentials.
        cache: folder of the cache, in place of the repository's.
    """
    source = Config(str(repository / ".dvc"))
    merged: dict[str, dict[str, Any]] = {}
    for level in ("repo", "local"):
        # Paths that are relative to the file come out absolute; JSON makes them plain strings.
        for section, values in json.loads(json.dumps(source.load_one(level))).items():
            for key, value in values.items():
                known = merged.setdefault(section, {}).get(key)
                if isinstance(known, dict) and isinstance(value, dict):
                    value = {**known, **value}
                merged[section][key] = value
    merged.setdefault("cache", {})["dir"] = str(cache or cache_folder(repository))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        with Config(folder).edit("local") as written:
            written.update(merged)
        target.touch(0o600)
        shutil.copyfile(Path(folder) / "config.local", target)


def cache_folder(repository: Path) -> Path:
    """Return the folder of a repository's DVC cache, absolute.

    Raises:
        UserError: when DVC cannot say.
    """
    return Path(run_dvc(repository, "cache", "dir").strip())


def clone_snapshot(store: Path, config: Path, clone: Path) -> None:
    """Make a workspace of a snapshot; what was in its place is removed first.

    Args:
        store: as `take_snapshot` made it.
        config: file with DVC's settings, as `write_config` wrote it.
        clone: folder to make.

    Raises:
        UserError: when git fails.
    """
    shutil.rmtree(clone, ignore_errors=True)
    clone.parent.mkdir(parents=True, exist_ok=True)
    # Its objects stay in the store: a clone costs no more than its files.
    _git(store.parent, "clone", "--quiet", "--shared", str(store), str(clone))
    target = clone / ".dvc" / "config.local"
    shutil.copyfile(config, target)
    target.chmod(0o600)


def fill(clone: Path, inputs: Sequence[str], stages: Sequence[str], remote: str | None) -> None:
    """Link inputs, and outputs that are there already, from the cache into a clone.

    Args:
        clone: workspace.
        inputs: DVC's names (`data.dvc`, a stage) of what must be there.
        stages: whose outputs are taken if they are recorded and in the cache; DVC computes the
            others.
        remote: name of a remote to fetch from what the cache lacks; None to fetch nothing.

    Raises:
        UserError: when an input is not in the cache.
    """
    how = ["pull", "--remote", remote] if remote else ["checkout"]
    if inputs:
        run_dvc(clone, *how, "--force", *inputs)
    if stages:
        run_dvc(clone, *how, "--force", "--allow-missing", *stages)


def run_dvc(repository: Path, *arguments: str) -> str:
    """Run DVC in a repository and return what it prints.

    Raises:
        UserError: with DVC's last words when it fails.
    """
    command = [sys.executable, "-m", "dvc", "--cd", str(repository), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        said = [line for line in found.stderr.splitlines() if line.startswith("ERROR: ")]
        last = said or found.stderr.strip().splitlines() or [f"status {found.returncode}"]
        raise UserError(f"{repository}: dvc {arguments[0]}: {last[0].removeprefix('ERROR: ')}")
    return found.stdout


def _git(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, fails: str = ""
) -> str:
    # Called from a hook, git would work on the hook's repository instead.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        found = subprocess.run(
            command,
            env={**inherited, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise UserError("git: no such program on PATH; install it") from error
    if found.returncode:
        last = found.stderr.strip().splitlines() or [f"status {found.returncode}"]
        raise UserError(f"{folder}: {fails or f'git {arguments[0]}: {last[-1]}'}")
    return found.stdout


def _untracked(repository: Path) -> list[str]:
    return _names(_git(repository, "ls-files", "--others", "--exclude-standard", "-z"))


def _names(listed: str) -> list[str]:
    return [name for name in listed.split("\0") if name]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
