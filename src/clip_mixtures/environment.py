"""Numbers that the environment gives: of hardware, so that no result depends on them."""

from __future__ import annotations

import os

from clip_mixtures.errors import UserError

NPROC = "NPROC"
WORKERS = "WORKERS"
DEVICE_BATCH = "DEVICE_BATCH"
MEMORY_MIB = "MEMORY_MIB"
# The least of each, and what it counts.
NUMBERS = {
    NPROC: (1, "processes"),
    WORKERS: (0, "workers"),
    DEVICE_BATCH: (1, "images"),
    MEMORY_MIB: (1, "MiB"),
}


def number_of(variable: str) -> int | None:
    """Return the number that a variable of the environment holds; None where it is unset or empty.

    Args:
        variable: one of :data:`NUMBERS`.

    Raises:
        UserError: when it is no number, or too small.
    """
    least, what = NUMBERS[variable]
    wanted = os.environ.get(variable)
    if not wanted:
        return None
    if not (wanted.isascii() and wanted.isdecimal()) or int(wanted) < least:
        raise UserError(f"{variable}: is {wanted!r}; allowed: a number of {what} from {least}")
    return int(wanted)
