"""Checkpoints are weights alone (safetensors); what a resumed run needs beside them is its state.

Neither can execute code when it is loaded, and both are replaced atomically.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clip_mixtures.errors import UserError
from clip_mixtures.files import replacing

_NAME = re.compile(r"epoch_(\d+)\.safetensors")


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Return where the weights after ``epoch`` epochs lie; 0 is before training."""
    return folder / f"epoch_{epoch:03d}.safetensors"


def save_checkpoint(folder: Path, epoch: int, network: torch.nn.Module) -> None:
    """Write a network's weights, contiguous and on the CPU."""
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    with replacing(checkpoint_path(folder, epoch)) as temporary:
        save_file(weights, temporary)


def load_checkpoint(path: Path, network: torch.nn.Module) -> None:
    """Load weights into a network of the same architecture.

    Raises:
        UserError: when the file is absent, damaged, or of another architecture.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error})") from error
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: does not fit the model ({reason})") from error


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Return epoch to file, by epoch.

    Raises:
        UserError: when there is none.
    """
    found = {
        int(m.group(1)): path for path in folder.glob("*") if (m := _NAME.fullmatch(path.name))
    }
    if not found:
        raise UserError(f"{folder}: no checkpoint epoch_*.safetensors; train the run first")
    return dict(sorted(found.items()))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state of an unfinished run (tensors, numbers, lists, strings)."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read the state of an unfinished run; None when there is none.

    Raises:
        UserError: when the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: unreadable ({reason}); delete it to train from scratch"
        ) from error
    return state
