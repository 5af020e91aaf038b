"""The processes of a run: who is first, what each computes on, and how they meet.

torchrun starts them, on one machine or several, and says so in environment variables; a run
started without it is one process.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from typing import Any

import torch
from torch import distributed

from clip_mixtures.environment import WORKERS, number_of
from clip_mixtures.errors import UserError

# The first process prepares the data while the others wait.
_PATIENCE = datetime.timedelta(hours=6)


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: its number, 0..world_size-1.
        world_size: how many there are.
        device: what it computes on.
        local_rank: its number on this machine.
    """

    rank: int
    world_size: int
    device: torch.device
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the results and shows progress."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this process prepares what the others of its machine share."""
        return self.local_rank == 0


def join_processes() -> Processes:
    """Read torchrun's variables, choose the device, and join the others if there are any.

    Raises:
        UserError: when there are more processes than GPUs on a machine that has some.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = _device(local_rank)
    if world_size > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        bound = device if device.type == "cuda" else None
        distributed.init_process_group(backend, timeout=_PATIENCE, device_id=bound)
    return Processes(rank, world_size, device, local_rank)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(f"NPROC: more processes than the {count} GPUs; run with NPROC={count}")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def wait_for_all(processes: Processes) -> None:
    """Wait until every process is here."""
    if processes.world_size > 1:
        distributed.barrier()


def leave_processes(processes: Processes) -> None:
    """Leave the process group."""
    if processes.world_size > 1:
        distributed.destroy_process_group()


def mean_over_processes(value: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Return the mean of a tensor over all processes."""
    if processes.world_size > 1:
        distributed.all_reduce(value)
        value = value / processes.world_size
    return value


def from_first(value: Any, processes: Processes) -> Any:
    """Return the first process' value in every process."""
    if processes.world_size == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def decoding_workers() -> int:
    """Return how many workers decode images for this process; the cores are shared with siblings.

    The environment's WORKERS decides; without it, the cores that this process may use.

    Raises:
        UserError: when WORKERS is not a number.
    """
    wanted = number_of(WORKERS)
    if wanted is not None:
        return wanted
    siblings = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max((cores or 1) // siblings, 1)
