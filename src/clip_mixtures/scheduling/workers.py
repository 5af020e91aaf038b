"""Several commands at a time on one machine, each with cores or GPUs to itself.

What a command says goes to a log of its own. One that was killed is tried once more; one that
failed keeps no other from being run. When this process ends, however that happens, so do the
commands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from clip_mixtures.errors import UserError
from clip_mixtures.scheduling.leash import Leash
from clip_mixtures.scheduling.logs import end_of, error_in
from clip_mixtures.scheduling.telling import Telling

# A command that was killed is run once more: training goes on where it was.
ATTEMPTS = 2
_MOST_CORE_WORKERS = 4
# Seconds between looks at what running commands have begun.
_LOOK = 2.0
# How DVC and torchrun report that a process of theirs was killed; shells add 128 to the signal.
_REPORTS = re.compile(
    r"exited with -(\d+)\b|exited with (1[2-5]\d)\b|Signal (\d+) \(SIG\w+\) received by PID"
)
_SHELL_OFFSET = 128


@dataclasses.dataclass(frozen=True)
class Place:
    """What a worker has to itself.

    Attributes:
        cores: their numbers; none where there are fewer cores than workers.
        gpus: their names for CUDA_VISIBLE_DEVICES; none on a machine without.
    """

    cores: tuple[int, ...]
    gpus: tuple[str, ...]

    def environment(self) -> dict[str, str]:
        """Return the environment of what runs here; what the user set stays."""
        found = dict(os.environ)
        if self.gpus:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
            found["NPROC"] = found.get("NPROC") or str(len(self.gpus))
        threads = max(len(self.cores) // _processes(found.get("NPROC")), 1)
        found["OMP_NUM_THREADS"] = found.get("OMP_NUM_THREADS") or str(threads)
        return found

    def enter(self) -> None:
        """Keep this thread, and what it starts, to its cores, where the system can."""
        if self.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        name: which.
        seconds: it took.
        failure: nothing, or why it is not done.
        log: what it said.
    """

    name: str
    seconds: float
    failure: str
    log: Path


def places(workers: int | None, gpus_per_worker: int, waiting: int) -> list[Place]:
    """Share the machine among workers.

    Args:
        workers: how many; None for one a GPU (or group of GPUs), or without GPUs one a core (or
            group of NPROC cores), but not more than four.
        gpus_per_worker: GPUs of each.
        waiting: commands; no more workers than these.

    Raises:
        UserError: when there are fewer GPUs or cores than that, or a worker has fewer GPUs than
            NPROC processes.
    """
    cores, gpus = _cores(), _gpus()
    processes = _processes(os.environ.get("NPROC"))
    if gpus_per_worker > 1 and not gpus:
        raise UserError(
            f"--gpus-per-worker {gpus_per_worker}: no GPU is visible here; see `nvidia-smi` and "
            "CUDA_VISIBLE_DEVICES, or leave it out to compute on cores"
        )
    if gpus:
        if len(gpus) < gpus_per_worker:
            raise UserError(
                f"--gpus-per-worker {gpus_per_worker}: there are {len(gpus)} GPUs; "
                f"allowed: 1 to {len(gpus)}"
            )
        if processes > gpus_per_worker:
            raise UserError(
                f"NPROC: {processes} processes for the {gpus_per_worker} GPUs of a worker; unset "
                f"it, or run with --gpus-per-worker {processes}"
            )
        most = usual = len(gpus) // gpus_per_worker
    else:
        most, usual = len(cores), max(min(len(cores) // processes, _MOST_CORE_WORKERS), 1)
    wanted = workers or usual
    if wanted > most:
        what = f"{len(gpus)} GPUs, {gpus_per_worker} a worker" if gpus else f"{len(cores)} cores"
        raise UserError(f"--workers {wanted}: there are {what}; allowed: 1 to {most}")
    count = max(min(wanted, waiting), 1)
    return [
        Place(
            cores=tuple(cores[number * len(cores) // count : (number + 1) * len(cores) // count]),
            gpus=tuple(gpus[number * gpus_per_worker : (number + 1) * gpus_per_worker]),
        )
        for number in range(count)
    ]


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    return answer.stdout.split() if answer.returncode == 0 else []


def _processes(nproc: str | None) -> int:
    """Return how many processes NPROC asks for; who starts them refuses what is no number."""
    return max(int(nproc), 1) if nproc and nproc.isdecimal() else 1


def run_commands(
    commands: Mapping[str, Sequence[str]],
    at: Sequence[Place],
    logs: Path,
    unit: str,
    begins: re.Pattern[str],
) -> list[Outcome]:
    """Run commands, one worker at each place, and return how each ended, in their order.

    Args:
        commands: name to program and arguments; a log is called after the name.
        at: the places; each takes the next command that nobody has.
        logs: folder for what the commands say; the logs of earlier times are replaced.
        unit: what a command is, for the progress bar.
        begins: a line of a log that tells what its command has come to; the first group is said.

    Raises:
        KeyboardInterrupt: as it came, after what ran has ended.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Telling(len(commands), unit, begins)) as telling:
        work = _Work(commands, logs, telling)
        for place in at:
            # Daemons: who waits for a process holds up neither a second Ctrl-C nor the end.
            threading.Thread(target=work.at, args=(place,), daemon=True).start()
        try:
            while len(work.ended) < len(at):
                # Python 3.11 takes a thread for ended whose join() is interrupted.
                try:
                    work.wake.get(timeout=_LOOK)
                except queue.Empty:
                    telling.look()
        except BaseException:
            work.stop()
            while len(work.ended) < len(at):
                with contextlib.suppress(queue.Empty):
                    work.wake.get(timeout=_LOOK)
            raise
    return [work.outcomes[name] for name in commands]


class _Work:
    """The commands that wait, those that run, and how the others ended."""

    def __init__(self, commands: Mapping[str, Sequence[str]], logs: Path, telling: Telling) -> None:
        self.outcomes: dict[str, Outcome] = {}
        # The places that have no more to do; each wakes whoever waits.
        self.ended: list[Place] = []
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._commands, self._logs, self._telling = commands, logs, telling
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name in commands:
            self._waiting.put(name)
        self._running: set[Leash] = set()
        self._lock = threading.Lock()
        self._is_over = False

    def stop(self) -> None:
        """End what runs and begin nothing more."""
        with self._lock:
            self._is_over = True
            for leash in self._running:
                leash.let_go()

    def at(self, place: Place) -> None:
        """Run one command after another at a place, in this thread."""
        try:
            place.enter()
            while not self._is_over and self._next(place):
                pass
        finally:
            self.ended.append(place)
            self.wake.put(None)

    def _next(self, place: Place) -> bool:
        """Run the next command to its end; whether there was one."""
        try:
            name = self._waiting.get_nowait()
        except queue.Empty:
            return False
        start = time.monotonic()
        log = self._logs / f"{name}.log"
        try:
            failure = self._attempt(name, place, log)
        except Exception as error:
            failure = f"could not be run: {error}"
        outcome = Outcome(name, time.monotonic() - start, failure, log)
        self.outcomes[name] = outcome
        self._telling.ends(name, failure or f"done in {outcome.seconds:.0f} s")
        return True

    def _attempt(self, name: str, place: Place, log: Path) -> str:
        """Run a command to its end; return nothing, or why it failed."""
        number = 0
        for attempt in range(ATTEMPTS):
            if attempt:
                self._telling.look()
                self._telling.say(name, f"killed (signal {number}); once more")
            with log.open("ab" if attempt else "wb") as output:
                begun = output.tell()
                if not attempt:
                    self._telling.follow(name, log)
                code = self._run(self._commands[name], place, output)
            if code is None:
                return "stopped"
            if code == 0:
                return ""
            said = end_of(log, begun)
            number = _killed_by(code, said)
            if not number:
                error = error_in(said)
                return f"failed (exit {code}){error and f': {error}'}; see {log}"
        hint = "; is there too little memory? fewer --workers" if number == signal.SIGKILL else ""
        return f"killed {ATTEMPTS} times (signal {number}){hint}; see {log}"

    def _run(self, command: Sequence[str], place: Place, output: BinaryIO) -> int | None:
        """Run a command to its end; None if it is, or all is, to end before."""
        with self._lock:
            if self._is_over:
                return None
            leash = Leash(command, place.environment(), output)
            self._running.add(leash)
        try:
            code = leash.wait()
        finally:
            with self._lock:
                self._running.discard(leash)
        return None if self._is_over and code else code


def _killed_by(code: int, said: str) -> int:
    """Return the signal that ended a command, or a process of its own that it reports; 0 if none.

    Args:
        code: exit status, or minus a signal.
        said: by the command.
    """
    if code < 0:
        return -code
    found = _REPORTS.search(said)
    if found is None:
        return 0
    by_dvc, by_shell, by_torchrun = found.groups()
    return int(by_shell) - _SHELL_OFFSET if by_shell else int(by_dvc or by_torchrun)
