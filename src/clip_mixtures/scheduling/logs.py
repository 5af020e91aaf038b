"""What commands have written to their logs, as far as whoever runs them wants to know it."""

from __future__ import annotations

import os
import re
from pathlib import Path

# What a progress bar that was cut off leaves before the next line, for it ends without a newline.
AFTER_BAR = r"(?:.*\]\s*)?"

_LAST_LINES = 15
_LAST_BYTES = 1 << 16
_ENDS_OF_LINES = re.compile("[\r\n]+")
# As :func:`clip_mixtures.errors.reports_user_errors` prints a mistake, and DVC one of its own.
_ERROR = re.compile(AFTER_BAR + r"(?:error|ERROR): (.+)")


class Follower:
    """Finds in a log what it has gained since the last look, in whole lines.

    Args:
        log: the file; it need not be there yet.
        wanted: matched from the beginning of a line.
    """

    def __init__(self, log: Path, wanted: re.Pattern[str]) -> None:
        self._log, self._wanted, self._read = log, wanted, 0

    def look(self) -> list[str]:
        """Return the first group of every match in the lines since the last look."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._read)
                gained = file.read()
        except OSError:
            # There later, or never: what is followed goes on without being told.
            return []
        # A bar is one long line that returns again and again.
        whole = gained[: max(gained.rfind(b"\n"), gained.rfind(b"\r")) + 1]
        self._read += len(whole)
        lines = _ENDS_OF_LINES.split(whole.decode(errors="replace"))
        return [found[1] for line in lines if (found := self._wanted.match(line))]


def end_of(log: Path, begun: int = 0) -> str:
    """Return the last part of a log, from byte ``begun`` on."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(begun, size - _LAST_BYTES))
        return file.read().decode(errors="replace")


def last_lines(log: Path) -> list[str]:
    """Return a log's last lines as a terminal would show them; none where there is no log."""
    return _lines(end_of(log))[-_LAST_LINES:] if log.is_file() else []


def error_in(said: str) -> str:
    """Return the first error that a command complained of, the cause of any others; "" if none."""
    matches = (_ERROR.match(line) for line in _lines(said))
    return next((found[1] for found in matches if found), "")


def _lines(text: str) -> list[str]:
    """Return the lines that a terminal would show, the empty ones left out."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return [line for line in lines if line.strip()]
