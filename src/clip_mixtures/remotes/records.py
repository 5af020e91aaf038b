"""What the pipeline's lock files and .dvc files record, and the remote that it is kept on.

With :mod:`~clip_mixtures.remotes.store`, all that touches DVC's Python interface.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError

from clip_mixtures.errors import UserError, unknown
from clip_mixtures.remotes.failures import explain
from clip_mixtures.remotes.store import FOLDER_SUFFIX, Store

# The hash of DVC 3; what DVC 2 recorded lies elsewhere on a remote.
_HASH = "md5"
_LOCAL_ONLY = ("access_key_id", "secret_access_key", "session_token", "password", "token")


@dataclasses.dataclass(frozen=True)
class Output:
    """A file or folder that a stage or a .dvc file records.

    Attributes:
        stage: DVC's address of what records it, such as ``train@cg-low-rn-0`` or ``data.dvc``.
        path: from the root of the repository.
        oid: name of the object: an MD5, and ``.dir`` if the object lists a folder.
        within: the part of the folder that was asked for; nothing for all of it.
    """

    stage: str
    path: str
    oid: str
    within: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether the object lists files that are objects of their own."""
        return self.oid.endswith(FOLDER_SUFFIX)

    def files(self, listing: bytes) -> Iterator[tuple[str, str]]:
        """Yield path, from the root of the repository, and object of every file in a folder.

        Args:
            listing: the bytes of the folder's object.
        """
        for entry in json.loads(listing):
            below = str(entry["relpath"])
            if not self.within or below == self.within or below.startswith(f"{self.within}/"):
                yield f"{self.path}/{below}", str(entry[_HASH])


@dataclasses.dataclass(frozen=True)
class Records:
    """What is recorded.

    Attributes:
        outputs: each once, though many revisions may record it.
        unrecorded: outputs of stages that have not been run, as "stage: path".
        remarks: revisions that could not be read, and why.
    """

    outputs: tuple[Output, ...]
    unrecorded: tuple[str, ...]
    remarks: tuple[str, ...]


class Project:
    """A repository with a DVC pipeline, and one of its remotes.

    Args:
        root: the repository.
        remote: name of the remote; the default one if it is None.

    Raises:
        UserError: when there is no such repository or remote, or its settings cannot be used.
    """

    def __init__(self, root: Path, remote: str | None = None) -> None:
        try:
            self._repo = Repo(str(root))
        except DvcException as error:
            raise UserError(f"{root}: {error}") from error
        try:
            self.remote = self._name(remote)
            self._settings: dict[str, Any] = self._repo.config["remote"][self.remote]
            self._odb = self._remote_odb()
        except BaseException:
            self._repo.close()
            raise

    def __enter__(self) -> Project:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._repo.close()

    @property
    def url(self) -> str:
        """Address of the remote."""
        return str(self._settings["url"])

    def remote_store(self) -> Store:
        """Return the objects on the remote."""
        return Store(self._odb, self.url, self.remote)

    def cache_store(self) -> Store:
        """Return the objects in the cache of this machine."""
        cache = self._repo.cache.local
        return Store(cache, cache.path)

    def check_reachable(self) -> None:
        """Refuse a remote that cannot be looked into.

        Raises:
            UserError: naming it and the way out.
        """
        # DVC would make the folder, under the place where a shared disk is not mounted.
        if self._odb.fs.protocol == "local" and not Path(self.url).is_dir():
            raise UserError(
                f"remote {self.remote!r} ({self.url}): no such folder; mount the disk that has it, "
                f"or make it: `mkdir -p {self.url}`"
            )
        self.remote_store().check_reachable()

    def forget_plans(self) -> None:
        """Make DVC work out anew what a push or pull is to move.

        A transfer that is killed while DVC works that out leaves half of the list, and the next
        one would take it for the whole and end well with half of the files.

        Raises:
            UserError: when DVC is at work here.
        """
        try:
            with self._repo.lock:
                self._repo.drop_data_index()
        except DvcException as error:
            raise UserError(f"dvc: {_one_line(error)}") from error

    def warnings(self) -> list[str]:
        """Say what is wrong with the remote's settings, though it works."""
        found = []
        if not self._settings.get("verify"):
            found.append(
                f"remote {self.remote!r}: verify is off, so `dvc pull` takes harmed objects for "
                f"good; `dvc remote modify {self.remote} verify true`"
            )
        committed = self._repo.config.load_one("repo").get("remote", {}).get(self.remote, {})
        found += [
            f".dvc/config: has {key} of remote {self.remote!r}, and goes into git; `dvc remote "
            f"modify --unset {self.remote} {key}`, then `dvc remote modify --local {self.remote} "
            f"{key} ...`"
            for key in _LOCAL_ONLY
            if key in committed
        ]
        return found

    def records(
        self, targets: Sequence[str] = (), revisions: Sequence[str] = (), all_commits: bool = False
    ) -> Records:
        """Collect what is recorded and kept on the remote.

        Args:
            targets: stages, outputs, paths in an output, or .dvc files; all if there are none.
            revisions: of git, or names of experiments, beside the workspace.
            all_commits: all revisions of git.

        Raises:
            UserError: for a target that no revision has, for a revision that git does not know, or
                when the workspace's pipeline cannot be read.
        """
        outputs: dict[Output, None] = {}
        unrecorded: dict[str, None] = {}
        remarks: list[str] = []
        absent: dict[str, Exception] = {}
        found: set[str] = set()
        try:
            for revision in self._repo.brancher(revs=list(revisions), all_commits=all_commits):
                is_old = revision not in ("", "workspace")
                try:
                    stages = self._stages(targets, absent, found)
                except (DvcException, OSError) as error:
                    if not is_old:
                        raise UserError(_one_line(error)) from error
                    remarks.append(f"revision {revision[:12]} is left out: {_one_line(error)}")
                    continue
                for output in self._outputs(stages):
                    if output.oid:
                        outputs[output] = None
                    elif not is_old:
                        unrecorded[f"{output.stage}: {output.path}"] = None
        except RevError as error:
            raise UserError(f"--rev: {error}; allowed: what git or `dvc exp list` names") from error
        for target, reason in absent.items():
            if target not in found:
                raise UserError(f"{target}: {_one_line(reason)}") from reason
        return Records(tuple(outputs), tuple(unrecorded), tuple(remarks))

    def _stages(
        self, targets: Sequence[str], absent: dict[str, Exception], found: set[str]
    ) -> list[tuple[Any, str | None]]:
        """Return stages of the revision at hand, and the path that was asked for."""
        if not targets:
            return [tuple(pair) for pair in self._repo.index.collect_targets(None)]
        pairs: list[tuple[Any, str | None]] = []
        for target in targets:
            try:
                pairs += [tuple(pair) for pair in self._repo.index.collect_targets([target])]
                found.add(target)
            except DvcException as error:
                absent[target] = error
        return pairs

    def _outputs(self, stages: Sequence[tuple[Any, str | None]]) -> Iterator[Output]:
        fs = self._repo.fs
        for stage, asked in stages:
            # What is imported from another repository is kept on that one's remote.
            if stage.is_repo_import:
                continue
            for out in stage.outs:
                if not (out.use_cache and out.can_push and out.remote in (None, self.remote)):
                    continue
                if asked and not fs.isin_or_eq(asked, out.fs_path):
                    continue
                path = fs.relpath(out.fs_path, self._repo.root_dir).replace("\\", "/")
                within = "" if asked in (None, out.fs_path) else fs.relpath(asked, out.fs_path)
                if out.hash_info and out.hash_info.name != _HASH:
                    raise UserError(
                        f"{self._address(stage)}: {path} was recorded by DVC 2; "
                        "`dvc cache migrate --dvc-files`, then `dvc push`"
                    )
                oid = str(out.hash_info.value) if out.hash_info else ""
                yield Output(self._address(stage), path, oid, within)

    def _address(self, stage: Any) -> str:
        # DVC's own is relative to the working directory, which an old revision does not have.
        file = str(self._repo.fs.relpath(stage.path, self._repo.root_dir))
        name = getattr(stage, "name", None)
        if not name:
            return file
        return str(name) if file == "dvc.yaml" else f"{file}:{name}"

    def _name(self, remote: str | None) -> str:
        known = list(self._repo.config["remote"])
        name = remote or self._repo.config["core"].get("remote")
        if name is None:
            raise UserError(
                ".dvc/config: no default remote; `dvc remote add -d storage s3://BUCKET/PATH`, "
                f"or --remote with one of: {', '.join(known) or 'none'}"
            )
        if name not in known:
            raise unknown("remote", name, known, "--remote" if remote else ".dvc/config")
        return str(name)

    def _remote_odb(self) -> Any:
        try:
            return self._repo.cloud.get_remote_odb(self.remote, "verify")
        except DvcException as error:
            raise UserError(f"remote {self.remote!r}: {_one_line(error)}") from error
        # What connects at once, as a profile that is not there, fails here already.
        except Exception as error:
            raise explain(error, self.remote, str(self._settings["url"])) from error


def _one_line(error: BaseException) -> str:
    cause = error.__cause__
    said = " ".join(str(error).split())
    return f"{said}: {' '.join(str(cause).split())}" if cause is not None else said
