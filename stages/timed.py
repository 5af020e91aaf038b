"""Note how long a stage took, beside what DVC hashes; times.py reads it.

A duration in a result would make every result another one. So it goes to the scratch folder: a line
for each stage that DVC ran to its end. In a file of its own, for all stages depend on it.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import sys
import time
from collections.abc import Callable

from experiment import running_stage, scratch_root

TIMES = "times.jsonl"


def timed(main: Callable[[], None]) -> Callable[[], None]:
    """Let a stage's ``main`` note how long it took; only where DVC runs it, and only its end."""

    @functools.wraps(main)
    def wrapped() -> None:
        start = time.monotonic()
        main()
        stage = running_stage()
        # Of the processes that torchrun starts, the first.
        if stage and os.environ.get("RANK", "0") == "0":
            _note(stage, time.monotonic() - start)

    return wrapped


def _note(stage: str, seconds: float) -> None:
    torch = sys.modules.get("torch")
    has_gpu = torch is not None and torch.cuda.is_available()
    line = {
        "stage": stage,
        "seconds": round(seconds, 1),
        "gpus": int(os.environ.get("WORLD_SIZE", "1")) if has_gpu else 0,
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    scratch_root().mkdir(parents=True, exist_ok=True)
    # One write at the end of the file: workers side by side do not tear each other's lines.
    with (scratch_root() / TIMES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
