"""How much memory a backward pass needs, measured on one row, and how many rows fit in a bound.

What autograd keeps for a backward pass depends on the network and on nothing that can be read off
it, so it is counted: tensors that are saved while a function runs on one row and on two. The
difference is what a row costs; parameters are the same in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from clip_mixtures.errors import UserError

MEMORY_BYTES = 1 << 30

# Values of the largest kind that are alive in a pass beside those that autograd keeps: a sum before
# and after, and their gradients.
_WORKING = 4

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class RowMemory:
    """Bytes of one row in every submodule of a chain.

    Attributes:
        values: of each submodule's value, that of the input first.
        graphs: what autograd keeps of each submodule, 0 for the input.
    """

    values: tuple[int, ...]
    graphs: tuple[int, ...]

    def after(self, place: int) -> int:
        """Return the bytes of a pass from a submodule's value to the end, and back."""
        return sum(self.graphs[place + 1 :]) + _WORKING * max(self.values[place:])


def row_memory(functions: Sequence[Function], row: torch.Tensor) -> RowMemory:
    """Measure what a row costs in a chain of functions.

    Args:
        functions: each takes the value of the one before; the first takes the row.
        row: a value with a batch of one.

    Returns:
        Bytes of the row itself and then of every function.
    """
    values, graphs = [row.nbytes], [0]
    one = row.detach()
    for function in functions:
        after, kept_of_one = _saved(function, one)
        _, kept_of_two = _saved(function, torch.cat([one, one]))
        values.append(after.nbytes)
        graphs.append(max(kept_of_two - kept_of_one, 0))
        one = after
    return RowMemory(tuple(values), tuple(graphs))


def rows_within(memory_bytes: int, bytes_per_row: int, what: str, rows: int) -> int:
    """Return how many of some rows to take at a time, in parts as equal as can be.

    Args:
        memory_bytes: the bound.
        bytes_per_row: what a row needs.
        what: name of a row, for the message.
        rows: how many there are, at least 1.

    Raises:
        UserError: when not even one fits.
    """
    fit = memory_bytes // bytes_per_row
    if fit < 1:
        raise UserError(
            f"memory_bytes: {memory_bytes:,} bytes are too few: {what} takes {bytes_per_row:,}"
        )
    parts = -(-rows // fit)
    return -(-rows // parts)


def _saved(function: Function, value: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Run a function; return its value, detached, and the bytes that autograd keeps of it."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        found = function(value.requires_grad_())
    return found.detach(), sum(sizes.values())
