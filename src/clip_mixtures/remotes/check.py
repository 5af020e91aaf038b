"""Whether every object that the pipeline records is on the remote, with the bytes it is named for.

DVC looks at names alone when it pushes: what is harmed on the remote stays so, and what is missing
there of a folder is not noticed as long as the object that lists the folder is there. Here every
object is read and hashed, in pieces and several at a time, and replaced from the cache if that has
it unharmed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NoReturn, TypeVar

from tqdm import tqdm

from clip_mixtures.errors import UserError
from clip_mixtures.remotes.records import Output
from clip_mixtures.remotes.store import FOLDER_SUFFIX, Store, digest_of

DEFAULT_JOBS = 8
# After so many objects that cannot be read, it is the remote and not they.
_MOST_UNREADABLE = 10
# To read an object that a repair is to leave right; the pauses between are 1 s, 2 s and so on.
_ATTEMPTS = 3
# Objects are told apart by their names' first digits, as DVC's folders do.
_PREFIX_LENGTH = 2

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Problem(enum.StrEnum):
    """What is wrong with an object on the remote."""

    MISSING = "missing"
    CORRUPTED = "corrupted"
    UNREADABLE = "unreadable"


@dataclasses.dataclass(frozen=True)
class Finding:
    """An object that is not as it should be.

    Attributes:
        oid: its name.
        problem: what is wrong.
        detail: why it cannot be read; nothing for the other problems.
        places: stage and path in the workspace of everything that it belongs to.
        outcome: what became of it: nothing if no repair was tried.
        is_mended: whether it is on the remote now, unharmed.
    """

    oid: str
    problem: Problem
    detail: str = ""
    places: tuple[tuple[str, str], ...] = ()
    outcome: str = ""
    is_mended: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        objects: how many were looked for.
        size: bytes of those that are there.
        findings: what is wrong, by place.
        unlisted: folders of which the object that lists their files is nowhere unharmed, so that
            their files were not looked for.
        reread: objects that were not right at first, but were when read again.
    """

    objects: int
    size: int
    findings: tuple[Finding, ...]
    unlisted: tuple[Output, ...]
    reread: int

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong, or nothing any more."""
        return not self.unlisted and all(finding.is_mended for finding in self.findings)


def check(
    outputs: Sequence[Output],
    remote: Store,
    cache: Store,
    jobs: int = DEFAULT_JOBS,
    progress: str | None = None,
) -> Report:
    """Read everything that outputs consist of on a remote, and say what is wrong.

    Memory holds the names of the objects, and a few megabytes for each thread.

    Args:
        outputs: what is recorded.
        remote: where it should be.
        cache: tells which files a folder has, where the remote's object is not needed for that.
        jobs: objects at a time.
        progress: label of the progress bar, in bytes; no bar if None.

    Raises:
        UserError: when the remote cannot be reached, or the connection is lost.
    """
    if jobs < 1:
        raise ValueError(f"jobs {jobs} must be 1 or more")
    wanted, unlisted = _names(outputs, remote, cache, jobs)
    problems: dict[str, tuple[Problem, str]] = {}
    size = 0
    for missing, present in _in_threads(
        lambda prefix: _look_up(remote, prefix, wanted[prefix]), wanted, jobs
    ):
        size += present
        problems.update((oid, (Problem.MISSING, "")) for oid in missing)
    with tqdm(
        total=size, desc=progress, unit="B", unit_scale=True, disable=progress is None
    ) as bar:
        reader = _Reader(remote, bar)
        names = (oid for group in wanted.values() for oid in group if oid not in problems)
        found = {}
        for oid, problem, detail in _in_threads(reader.judge, names, jobs, reader.stop):
            if problem is not None:
                found[oid] = (problem, detail)
    problems |= found
    places = _places(set(problems), outputs, remote, cache) if problems else {}
    findings = [
        Finding(oid, problem, detail, tuple(places.get(oid, ())))
        for oid, (problem, detail) in problems.items()
    ]
    return Report(
        objects=sum(map(len, wanted.values())),
        size=size,
        findings=tuple(sorted(findings, key=_order)),
        unlisted=tuple(unlisted),
        reread=reader.reread,
    )


def repair(
    report: Report,
    outputs: Sequence[Output],
    remote: Store,
    cache: Store,
    jobs: int = DEFAULT_JOBS,
    progress: str | None = None,
) -> Report:
    """Replace what is corrupted and push what is missing, from the cache.

    Nothing is removed: what the cache lacks stays on the remote as it is. An object goes there only
    after its bytes in the cache were hashed, and is read back. What lists a folder goes last, and
    only when all of the folder's files are there, because DVC takes it for a sign that they are.

    Args:
        report: what :func:`check` found.
        outputs: of which.
        remote: where to mend.
        cache: where to take from.
        jobs: objects at a time.
        progress: label of the progress bar; no bar if None.

    Returns:
        The report with outcomes.

    Raises:
        UserError: when the remote cannot be reached or written to.
    """
    if jobs < 1:
        raise ValueError(f"jobs {jobs} must be 1 or more")
    files = [finding for finding in report.findings if not finding.oid.endswith(FOLDER_SUFFIX)]
    folders = [finding for finding in report.findings if finding.oid.endswith(FOLDER_SUFFIX)]
    # DVC's own list of what is there would keep `dvc push` from pushing what is not.
    remote.forget()
    mended: dict[str, Finding] = {}
    with tqdm(
        total=len(report.findings), desc=progress, unit="object", disable=progress is None
    ) as bar:
        for finding in _in_threads(lambda item: _mend(item, remote, cache), files, jobs):
            mended[finding.oid] = finding
            bar.update()
        lost = {oid for oid, finding in mended.items() if not finding.is_mended}
        incomplete = _incomplete(folders, lost, outputs, remote, cache)
        for finding in folders:
            if finding.problem is Problem.MISSING and finding.oid in incomplete:
                outcome = "not pushed, as its files are not all known to be there"
                mended[finding.oid] = dataclasses.replace(finding, outcome=outcome)
            else:
                mended[finding.oid] = _mend(finding, remote, cache)
            bar.update()
    findings = tuple(mended[finding.oid] for finding in report.findings)
    return dataclasses.replace(report, findings=findings)


def _names(
    outputs: Sequence[Output], remote: Store, cache: Store, jobs: int
) -> tuple[dict[str, set[str]], list[Output]]:
    """Return the names of all objects by their first digits, and the folders that tell none."""
    wanted: dict[str, set[str]] = defaultdict(set)
    unlisted = []
    for output, oids in _in_threads(
        lambda output: (output, _objects(output, remote, cache)), outputs, jobs
    ):
        wanted[output.oid[:_PREFIX_LENGTH]].add(output.oid)
        if oids is None:
            unlisted.append(output)
            continue
        for oid in oids:
            wanted[oid[:_PREFIX_LENGTH]].add(oid)
    return dict(wanted), sorted(unlisted, key=lambda output: output.path)


def _objects(output: Output, remote: Store, cache: Store) -> set[str] | None:
    """Return the objects of a folder's files; None if they cannot be known."""
    if not output.is_folder:
        return set()
    listing = _listing(output.oid, remote, cache)
    return None if listing is None else {oid for _, oid in output.files(listing)}


def _listing(oid: str, remote: Store, cache: Store) -> bytes | None:
    # The remote is asked twice: bytes may be altered on the way.
    for store in (cache, remote, remote):
        found = store.listing(oid)
        if found is not None:
            return found
    return None


def _look_up(remote: Store, prefix: str, wanted: set[str]) -> tuple[set[str], int]:
    """Return which of the objects are missing, and the bytes of the others."""
    there = remote.sizes(prefix)
    missing = wanted - there.keys()
    return missing, sum(there[oid] for oid in wanted - missing)


class _StoppedError(Exception):
    """The check is over; nobody is left to see this."""


class _Reader:
    """Reads objects in many threads, and counts what they have in common."""

    def __init__(self, remote: Store, bar: tqdm[NoReturn]) -> None:
        self.reread = 0
        self.stop = threading.Event()
        self._remote, self._bar = remote, bar
        self._unreadable = 0
        self._lock = threading.Lock()

    def judge(self, oid: str) -> tuple[str, Problem | None, str]:
        """Return an object with what is wrong with it, and why it cannot be read."""
        verdict = self._read(oid, self._count)
        if verdict[0] is not None:
            # Perhaps it was altered on the way, or another machine is replacing it.
            verdict = self._read(oid, self._pause)
            with self._lock:
                self.reread += verdict[0] is None
        problem, error = verdict
        if error is not None:
            with self._lock:
                self._unreadable += 1
                if self._unreadable > _MOST_UNREADABLE:
                    raise error
        return oid, problem, str(error or "")

    def _read(
        self, oid: str, tell: Callable[[int], None]
    ) -> tuple[Problem | None, UserError | None]:
        try:
            good = self._remote.digest(oid, tell) == digest_of(oid)
        except FileNotFoundError:
            return Problem.MISSING, None
        except UserError as error:
            return Problem.UNREADABLE, error
        return (None if good else Problem.CORRUPTED), None

    def _count(self, size: int) -> None:
        self._pause(size)
        with self._lock:
            self._bar.update(size)

    def _pause(self, _: int) -> None:
        if self.stop.is_set():
            raise _StoppedError


def _places(
    oids: set[str], outputs: Sequence[Output], remote: Store, cache: Store
) -> dict[str, list[tuple[str, str]]]:
    """Return stage and path of everything that objects belong to."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for output in outputs:
        if output.oid in oids:
            path = f"{output.path}/" if output.is_folder else output.path
            found[output.oid].append((output.stage, path))
        listing = _listing(output.oid, remote, cache) if output.is_folder else None
        for path, oid in output.files(listing) if listing is not None else ():
            if oid in oids:
                found[oid].append((output.stage, path))
    return found


def _order(finding: Finding) -> tuple[list[str], str]:
    return [path for _, path in finding.places], finding.oid


def _incomplete(
    folders: Sequence[Finding],
    lost: set[str],
    outputs: Sequence[Output],
    remote: Store,
    cache: Store,
) -> set[str]:
    """Return the folders that have files among the lost ones, or that were looked at in part."""
    oids = {finding.oid for finding in folders}
    return {
        output.oid
        for output in outputs
        if output.oid in oids
        and (output.within or (_objects(output, remote, cache) or set()) & lost)
    }


def _mend(finding: Finding, remote: Store, cache: Store) -> Finding:
    if finding.problem is Problem.UNREADABLE:
        if _is_right(finding.oid, remote):
            return dataclasses.replace(finding, outcome="right when read again", is_mended=True)
        return dataclasses.replace(finding, outcome="left as it is")
    try:
        in_cache = cache.digest(finding.oid)
    except FileNotFoundError:
        return dataclasses.replace(finding, outcome="not in the cache")
    if in_cache != digest_of(finding.oid):
        return dataclasses.replace(finding, outcome="corrupted in the cache, too")
    remote.replace(finding.oid, cache)
    if not _is_right(finding.oid, remote):
        return dataclasses.replace(finding, outcome="pushed, but reads back otherwise")
    outcome = "pushed" if finding.problem is Problem.MISSING else "replaced"
    return dataclasses.replace(finding, outcome=outcome, is_mended=True)


def _is_right(oid: str, remote: Store) -> bool:
    """Whether an object reads as it should, within a few attempts."""
    for attempt in range(_ATTEMPTS):
        # Another machine that replaces it at this moment makes reading it fail on some servers.
        _pause_before(attempt)
        with contextlib.suppress(FileNotFoundError, UserError):
            if remote.digest(oid) == digest_of(oid):
                return True
    return False


def _pause_before(attempt: int) -> None:
    time.sleep(attempt)


def _in_threads(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    jobs: int,
    stop: threading.Event | None = None,
) -> Iterator[_Result]:
    """Do items in threads, in any order, with few in hand; ended early, tell those that run."""
    pool = ThreadPoolExecutor(jobs)
    remaining = iter(items)

    def submit(count: int) -> set[Future[_Result]]:
        return {pool.submit(work, item) for item in itertools.islice(remaining, count)}

    try:
        pending = submit(2 * jobs)
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            pending |= submit(len(finished))
            for future in finished:
                yield future.result()
    finally:
        if stop is not None:
            stop.set()
        pool.shutdown(cancel_futures=True)
