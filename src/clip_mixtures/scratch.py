"""Scratch space of an unfinished run: one process at a time, and none that outlives its launcher.

torchrun puts its workers into sessions of their own, so killing `dvc repro` may leave a worker that
trains on. Two workers in one scratch folder would overwrite each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from clip_mixtures.errors import UserError

_PR_SET_PDEATHSIG = 1
LOCK = "owner.pid"


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a scratch folder; the kernel lets go of it however the process ends.

    Raises:
        UserError: when another process holds it, naming that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UserError(
                f"{folder}: process {owner} is training this run; wait for it, or stop it "
                f"(kill {owner}) and start again"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def discard(folder: Path) -> None:
    """Remove a scratch folder that is done with; killed on the way, it leaves none of that name.

    Half a folder would be taken for the state of a run that goes on.
    """
    done = folder.with_name(f"{folder.name}.done")
    shutil.rmtree(done, ignore_errors=True)
    os.replace(folder, done)
    shutil.rmtree(done)


def forget(folder: Path) -> None:
    """Remove a scratch folder whose result is on record elsewhere, unless a process holds it."""
    with contextlib.suppress(UserError), exclusive(folder):
        discard(folder)


def end_with_parent() -> None:
    """Ask Linux to kill this process when the one that launched it dies; elsewhere do nothing."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
