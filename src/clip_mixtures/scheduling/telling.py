"""What whoever runs several commands is told of them: lines on standard error over a bar."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from pathlib import Path

from tqdm import tqdm

from clip_mixtures.scheduling.logs import Follower


class _Screen:
    """Standard error, without a word where it takes no more.

    tqdm never gives up its lock when a write of a bar fails, and everyone who speaks next waits for
    it; so no write of a bar may fail.
    """

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    @property
    def encoding(self) -> str:
        """By which tqdm chooses what it draws a bar with."""
        return sys.stderr.encoding or "ascii"

    def fileno(self) -> int:
        """Where tqdm asks how wide the screen is."""
        return sys.stderr.fileno()


class Telling:
    """Tells how commands go, from any thread; where nobody can be told, they go on all the same.

    Args:
        count: of the commands.
        unit: what a command is.
        begins: a line of a log that tells what its command has come to; the first group is said.
    """

    def __init__(self, count: int, unit: str, begins: re.Pattern[str]) -> None:
        self._screen = _Screen()
        # Told to, tqdm measures a screen that is not standard error's own object.
        self._bar = tqdm(
            total=count, desc=f"{unit}s", unit=unit, file=self._screen, dynamic_ncols=True
        )
        self._begins = begins
        self._followed: dict[str, Follower] = {}
        # Its own: a screen that takes no more must not keep anybody from ending commands.
        self._lock = threading.Lock()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def follow(self, name: str, log: Path) -> None:
        """Tell from now on what a command comes to, by its log, from its beginning."""
        with self._lock:
            self._followed[name] = Follower(log, self._begins)

    def look(self) -> None:
        """Tell what the commands have come to since the last time."""
        with self._lock:
            for name, follower in self._followed.items():
                for what in follower.look():
                    self.say(name, what)

    def say(self, name: str, what: str) -> None:
        """Tell something of a command."""
        self._bar.write(f"{name}: {what}", file=self._screen)

    def ends(self, name: str, how: str) -> None:
        """Tell what a command has come to last, and how it ended."""
        self.look()
        with self._lock:
            self._followed.pop(name, None)
        self.say(name, how)
        self._bar.update()
