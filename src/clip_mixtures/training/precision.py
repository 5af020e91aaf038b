"""Numerical precision of training, by the names that open_clip gives them."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def autocast(name: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the context for forward passes.

    Args:
        name: one of :data:`config.PRECISIONS`.
        device: where they run; "amp" is bfloat16 on a CPU, which has no float16 arithmetic.
    """
    dtype = torch.float16 if _is_half(name, device) else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=name != "fp32")


def _is_half(name: str, device: torch.device) -> bool:
    return name == "amp" and device.type == "cuda"


class Precision:
    """Autocast and gradient scaling of one run.

    Args:
        name: one of :data:`config.PRECISIONS`.
        device: where it trains.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._name, self._device = name, device
        self._scaler = torch.amp.GradScaler(device.type, enabled=_is_half(name, device))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context for forward passes."""
        return autocast(self._name, self._device)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss whose gradients are to be taken."""
        return self._scaler.scale(loss)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take an optimiser step with the gradients that the scaled loss left."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return dict(self._scaler.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._scaler.load_state_dict(state)
