"""How many images a device can take at a time, found by trying."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import distributed

from clip_mixtures.environment import DEVICE_BATCH, number_of
from clip_mixtures.errors import UserError
from clip_mixtures.training.processes import Processes


def device_batch(
    forward: Callable[[int], torch.Tensor], local: int, processes: Processes, beside: int = 0
) -> int:
    """Return how many images of a process' share the device takes at a time.

    The environment variable DEVICE_BATCH says so; without it a GPU is tried with all of the share,
    then half, until a forward and backward pass fits, and a CPU takes all.

    Args:
        forward: makes a scalar from that many images, through everything that is trained.
        local: this process' share of the global batch.
        processes: all of them take the same number.
        beside: bytes of the device that a step takes beside a pass: a batch, an optimiser's state.

    Raises:
        UserError: for a DEVICE_BATCH that is no number, or when not even one image fits.
    """
    wanted = number_of(DEVICE_BATCH)
    if wanted is not None:
        return min(wanted, local)
    if processes.device.type != "cuda":
        return local
    fitting = _largest(forward, local, beside, processes.device)
    if processes.world_size > 1:
        box = torch.tensor(fitting, device=processes.device)
        distributed.all_reduce(box, op=distributed.ReduceOp.MIN)
        fitting = int(box)
    return fitting


def _largest(
    forward: Callable[[int], torch.Tensor], local: int, beside: int, device: torch.device
) -> int:
    """Return the largest of local, local/2, local/4 ... that fits the device's memory."""
    size = local
    while True:
        held = None
        try:
            # What it stands for is not there yet.
            held = torch.empty(beside, dtype=torch.uint8, device=device)
            forward(size).backward()
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise UserError(
                    "the device has too little memory for one image; take a smaller model, or "
                    "grad_checkpointing: true (transformers)"
                ) from error
        else:
            # Half of what just fits would waste it; all of it leaves room for fragmentation.
            return size
        del held
        torch.cuda.empty_cache()
        size = (size + 1) // 2
