"""One torchrun command over several machines, where a pipeline says it for one.

The pipeline's command is `torchrun --standalone ...`, which is part of a stage's hash and stays as
it is. On the first machine a program called `torchrun` stands before the real one on PATH: it
writes the command to a folder that all machines see and starts it with a rendezvous in place of
`--standalone`. The other machines do nothing but follow: they run what is written there until the
first one says that it has ended. A stage that is up to date, or is found in DVC's run-cache, starts
nothing, and then they do not either.

python -m clip_mixtures.scheduling.nodes FOLDER NODES ARGUMENTS...    (for the stand-in torchrun)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_mixtures.files import atomic_write_json, atomic_write_text
from clip_mixtures.scheduling.leash import Leash

STANDALONE = "--standalone"
_ENDED = "ended"
_POLL_SECONDS = 0.5
# Between the end of a command on the first machine and its being ended on the others.
GRACE_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Launch:
    """A torchrun command that all machines run.

    Attributes:
        arguments: of torchrun, as the pipeline gives them.
        folder: where they are given.
        nodes: how many machines.
        endpoint: host and port where they meet; the first machine serves it.
        key: different for every launch.
    """

    arguments: tuple[str, ...]
    folder: str
    nodes: int
    endpoint: str
    key: str

    def command(self, is_first: bool) -> list[str]:
        """Return the command of one machine.

        Args:
            is_first: whether it is the machine that serves the endpoint.
        """
        return [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", str(self.nodes), "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", self.endpoint, "--rdzv-id", self.key),
            *("--rdzv-conf", f"is_host={int(is_first)}"),
            *(word for word in self.arguments if word != STANDALONE),
        ]


def write_stand_in(bin_folder: Path, folder: Path, nodes: int) -> None:
    """Write the program that stands before torchrun on the first machine's PATH.

    Args:
        bin_folder: folder for it.
        folder: where the machines find each other's word.
        nodes: how many machines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "clip_mixtures.scheduling.nodes", str(folder), str(nodes)]
    script = bin_folder / "torchrun"
    atomic_write_text(script, f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o755)


def launch(folder: Path, nodes: int, arguments: Sequence[str]) -> int:
    """Run a torchrun command here, and have the machines that follow run it, too.

    Args:
        folder: where they look.
        nodes: how many machines, this one included.
        arguments: of torchrun.

    Returns:
        The exit status, or minus the signal that killed it.
    """
    number = sum(name.startswith("launch-") for name in os.listdir(folder))
    endpoint = f"{socket.gethostname()}:{_free_port()}"
    one = Launch(tuple(arguments), os.getcwd(), nodes, endpoint, uuid.uuid4().hex)
    atomic_write_json(folder / f"launch-{number}.json", dataclasses.asdict(one))
    try:
        return subprocess.call(one.command(is_first=True))
    finally:
        atomic_write_text(folder / f"done-{number}", "")


def follow(folder: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run what the first machine launches, one after another, until it has ended.

    How these commands end is for the first machine to say: its part of them ends alike.

    Args:
        folder: as given to `write_stand_in`.
        environment: of the commands; this process' by default.
    """
    number = 0
    while True:
        # Read anew: over a network, a file's absence may be remembered for a minute.
        found = os.listdir(folder) if folder.is_dir() else []
        if f"launch-{number}.json" in found:
            _run(folder, number, environment)
            number += 1
        elif _ENDED in found:
            return
        else:
            time.sleep(_POLL_SECONDS)


def end(folder: Path) -> None:
    """Tell the machines that follow that there is no more to do."""
    atomic_write_text(folder / _ENDED, "")


def _run(folder: Path, number: int, environment: Mapping[str, str] | None) -> None:
    read = json.loads((folder / f"launch-{number}.json").read_text(encoding="utf-8"))
    one = Launch(**{**read, "arguments": tuple(read["arguments"])})
    with contextlib.chdir(one.folder):
        leash = Leash(one.command(is_first=False), environment)
    ended = threading.Event()
    watch = (leash, folder, {f"done-{number}", _ENDED}, ended)
    with leash:
        threading.Thread(target=_let_go_after, args=watch, daemon=True).start()
        leash.wait()
        ended.set()


def _let_go_after(leash: Leash, folder: Path, words: set[str], ended: threading.Event) -> None:
    """End a command a while after the first machine has said that its own has ended."""
    while not words & set(os.listdir(folder)):
        if ended.wait(_POLL_SECONDS):
            return
    if not ended.wait(GRACE_SECONDS):
        leash.let_go()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port


def main() -> None:
    """Stand in for torchrun on the first machine."""
    folder, nodes, *arguments = sys.argv[1:]
    status = launch(Path(folder), int(nodes), arguments)
    # As shells report a command that a signal ended.
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
