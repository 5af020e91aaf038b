"""Numerical precision of training, by the names that open_clip gives them."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


class Precision:
    """Autocast and gradient scaling of one run.

    Args:
        name: one of :data:`config.PRECISIONS`.
        device: where it trains; "amp" is bfloat16 on a CPU, which has no float16 arithmetic.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._device = device
        half = name == "amp" and device.type == "cuda"
        self._dtype = torch.float16 if half else torch.bfloat16
        self._mixed = name != "fp32"
        self._scaler = torch.amp.GradScaler(device.type, enabled=half)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context for forward passes."""
        return torch.autocast(self._device.type, self._dtype, enabled=self._mixed)

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
