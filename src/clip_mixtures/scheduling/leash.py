"""Run a command that ends when whoever started it does, with everything that it started.

The leash is a pipe to a small process that starts the command in a process group of its own.
However the holder of the pipe ends, the kernel closes it; then the group is asked to terminate, and
what is left after a while is killed. What the command leaves behind in its group goes with it, too,
so that a second attempt meets nothing of the first.

python -m clip_mixtures.scheduling.leash COMMAND ...     (the leash is standard input)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any

# Time to put things in order, between being asked to terminate and being killed.
GRACE_SECONDS = 10.0
# A signal is sent before it is delivered, so the end is waited for: an instant as a rule. Processes
# that nobody reaps stay in their group for good, as where a container's first one cares for none.
_DYING_SECONDS = 2.0
_CANNOT_RUN = 127  # as shells have it


class Leash:
    """A running command; leaving the context ends it.

    Args:
        command: program and arguments.
        environment: of the command; this process' by default.
        output: file for what it writes, errors included; this process' own streams by default.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        output: IO[Any] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clip_mixtures.scheduling.leash", *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            # Signals of the terminal are for the holder, who lets go.
            start_new_session=True,
        )

    def wait(self) -> int:
        """Wait for the end; return the exit status, or minus the signal that killed the command."""
        status = self._process.wait()
        self.let_go()
        return status

    def let_go(self) -> None:
        """Ask the command to end; from any thread, any number of times."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def __enter__(self) -> Leash:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.let_go()
        self.wait()


def hold(command: Sequence[str]) -> int:
    """Run a command until it ends or standard input does; the part at the command's end.

    Returns:
        Its exit status, or minus the signal that killed it.

    Raises:
        OSError: when there is no such program.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    threading.Thread(target=_end_when_let_go, args=(process.pid,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: _ending(process.pid).start())
    if hasattr(os, "waitid"):
        # Not yet taken note of, so that its number, the group's, cannot become another's.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    else:
        process.wait()
    _signal_group(process.pid, signal.SIGKILL)
    status = process.wait()
    _wait_until_gone(process.pid)
    return status


def _wait_until_gone(group: int) -> None:
    begun = time.monotonic()
    while _signal_group(group, 0) and time.monotonic() - begun < _DYING_SECONDS:
        time.sleep(0.01)


def _end_when_let_go(group: int) -> None:
    while os.read(0, 1 << 10):
        pass
    _end(group)


def _ending(group: int) -> threading.Thread:
    return threading.Thread(target=_end, args=(group,), daemon=True)


def _end(group: int) -> None:
    _signal_group(group, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: int) -> bool:
    """Send a signal, 0 for none; return whether there is anything to send it to."""
    # Some systems refuse a group of which nothing but what has ended is left.
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def main() -> None:
    """Run the command of the arguments and end as it does."""
    command = sys.argv[1:]
    if not command:
        sys.exit("usage: python -m clip_mixtures.scheduling.leash COMMAND ...")
    try:
        status = hold(command)
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(_CANNOT_RUN)
    if status < 0:
        with contextlib.suppress(OSError):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
