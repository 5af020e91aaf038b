"""A real SLURM on this machine alone, with two nodes that share its cores, for as long as asked.

Nothing of it is installed as a service: the daemons run from a folder of their own, with an
authentication of their own, and end with the context.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
PACKAGES = ("slurm-wlm", "munge")
NODES = ("n1", "n2")
# More than there may be: tests wait more than they compute.
CORES = 4

CONFIG = """
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=1
ReturnToService=2
KillWait=5
MessageTimeout=60
{nodes}
PartitionName=toy Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclasses.dataclass(frozen=True)
class Slurm:
    """A running SLURM.

    Attributes:
        folder: of its files.
    """

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What its programs need to find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        found = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, (command, found.stdout, found.stderr)
        return found.stdout

    def states(self) -> dict[str, str]:
        """Return the tasks in the queue, and in which state each is."""
        lines = self.ask("squeue", "--array", "--noheader", "--format=%i %T").splitlines()
        return {job: state for line in lines for job, state in [line.split()]}

    def empty(self) -> None:
        """Cancel all that is in the queue, and wait for its end."""
        self.ask("scancel", "--user", "root")
        wait_until(lambda: not self.states())


def wait_until(is_so: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.2)


def install() -> None:
    """Install SLURM from the distribution's packages, or skip the test that asks for it."""
    if all(shutil.which(program) for program in PROGRAMS):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"no SLURM here, and it takes root and apt-get to install {PACKAGES}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        found = subprocess.run(
            ["apt-get", "-qq", *command], env=environment, capture_output=True, check=False
        )
        if found.returncode:
            pytest.skip(f"{PACKAGES} cannot be installed: {found.stderr.decode().strip()[-300:]}")


@contextlib.contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Start SLURM, and end it with all that it runs.

    Args:
        folder: for its files, with a short path: sockets have no long names.
    """
    install()
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons want root")
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    host, ports = socket.gethostname(), _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CORES} "
        "State=UNKNOWN"
        for node, port in zip(NODES, ports[1:], strict=True)
    )
    config = CONFIG.format(host=host, port=ports[0], folder=folder, nodes=nodes)
    slurm = Slurm(folder)
    (folder / "slurm.conf").write_text(config.lstrip())
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    with contextlib.ExitStack() as stack:
        munge = {part: folder / f"munge.{part}" for part in ("socket", "pid", "log", "seed")}
        daemons = [
            [
                *("munged", "--foreground", "--force", "--num-threads=2"),
                *(f"--key-file={key}", f"--socket={munge['socket']}"),
                *(f"--pid-file={munge['pid']}", f"--log-file={munge['log']}"),
                f"--seed-file={munge['seed']}",
            ],
            ["slurmctld", "-D", "-c"],
            *(["slurmd", "-D", "-N", node] for node in NODES),
        ]
        for command in daemons:
            stack.enter_context(_daemon(command, slurm))
            if command[0] == "munged":
                wait_until(munge["socket"].exists)
        try:
            wait_until(lambda: _idle(slurm) == len(NODES))
            yield slurm
        finally:
            slurm.empty()


def _idle(slurm: Slurm) -> int:
    return slurm.ask("sinfo", "--noheader", "--Node", "--format=%T").split().count("idle")


@contextlib.contextmanager
def _daemon(command: list[str], slurm: Slurm) -> Iterator[None]:
    with (slurm.folder / f"{command[0]}.out").open("ab") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **slurm.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
