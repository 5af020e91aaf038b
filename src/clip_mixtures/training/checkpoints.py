"""Checkpoints are weights alone (safetensors); what a resumed run needs beside them is its state.

Neither can execute code when it is loaded, and both are replaced atomically. Checkpoints in
open_clip's format come in through :func:`import_checkpoint` and go out through
:func:`export_checkpoint`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clip_mixtures.errors import UserError
from clip_mixtures.files import replacing
from clip_mixtures.training.architectures import check_architecture

_NAME = re.compile(r"epoch_(\d+)\.safetensors")
_PUBLISHED_NAME = re.compile(r"epoch_([0-9]+)")

_FULL = {errno.ENOSPC, errno.EDQUOT}
_SAFETENSORS_ERRNO = re.compile(r"\(os error (\d+)\)")
_CONTINUE = "then start the run again: the state kept so far continues it"
_REPEAT = "then run the command again"

# What torch says of a file whose pickle calls for more than tensors and plain values.
_CODE = re.compile(
    r"(?:GLOBAL|unrecognized function) (?P<name>\w+(?:\.\w+)+)"
    r"|TorchScript archive|legacy \.tar format"
)
# Where published checkpoints nest the weights, and what wrappers put before their names.
_NESTS = ("state_dict", "model")
_MOST_NESTS = 8
_WRAPPER, _COMPILED = "module", "_orig_mod"
# Not weights: made anew with the model, or OpenAI's notes on its shape.
_LEFT_OUT = {"attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size"}
_COUNTER = "num_batches_tracked"
_LISTED = 3


@dataclasses.dataclass(frozen=True)
class ImportedCheckpoint:
    """What an import made.

    Attributes:
        path: the checkpoint that was written.
        epoch: the number of epochs behind it.
        tensors: how many it holds.
        dropped: names in the source that are no weights of the architecture and were left out.
        filled: names of batch normalisation's counters that the source lacks, now zero.
    """

    path: Path
    epoch: int
    tensors: int
    dropped: tuple[str, ...]
    filled: tuple[str, ...]


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Return where the weights after ``epoch`` epochs lie; 0 is before training."""
    return folder / f"epoch_{epoch:03d}.safetensors"


def save_checkpoint(folder: Path, epoch: int, network: torch.nn.Module) -> None:
    """Write a network's weights, contiguous and on the CPU.

    Raises:
        UserError: when the disk is full or cannot be written to; nothing half-written stays.
    """
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    _write_weights(checkpoint_path(folder, epoch), weights, _CONTINUE)


def load_checkpoint(path: Path, network: torch.nn.Module) -> None:
    """Load weights into a network of the same architecture.

    Raises:
        UserError: when the file is absent, damaged, or of another architecture.
    """
    weights = _read_weights(path)
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
    found = _checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: no checkpoint epoch_*.safetensors; train the run first")
    return found


def remove_checkpoints(folder: Path, keep_last: int) -> None:
    """Remove old checkpoints, and nothing else.

    Args:
        folder: where they lie; it may be absent.
        keep_last: how many of the newest stay, beside epoch 0; 0 keeps all.
    """
    if keep_last < 1:
        return
    trained = [
        path
        for epoch, path in _checkpoints(folder).items()
        if epoch > 0 and path == checkpoint_path(folder, epoch) and path.is_file()
    ]
    for path in trained[:-keep_last]:
        path.unlink(missing_ok=True)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state of an unfinished run (tensors, numbers, lists, strings).

    Raises:
        UserError: when the disk is full or cannot be written to; the state before stays.
    """
    _write_pickle(path, state, _CONTINUE)


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
        raise UserError(
            f"{path}: unreadable ({_reason(error)}); delete it to train from scratch"
        ) from error
    return state


def import_checkpoint(
    source: Path, architecture: str, out: Path, epoch: int | None = None
) -> ImportedCheckpoint:
    """Turn a checkpoint in open_clip's format into one of this project.

    The source is a ``.pt`` or ``.pth`` file, of weights alone or with the weights under
    ``state_dict`` or ``model`` (once or more), or a ``.safetensors`` file. ``module.`` and
    ``_orig_mod.`` in names go, and weights of half precision become float32. No code from the file
    is executed: one that calls for code is refused.

    Every tensor of the architecture must be there, in its shape; that includes
    ``visual.attnpool.positional_embedding``, which is learnt. Only batch normalisation's
    ``num_batches_tracked`` may be absent: nothing that is computed depends on it, and it becomes 0.
    ``attn_mask``, ``position_ids`` and OpenAI's ``input_resolution``, ``context_length`` and
    ``vocab_size`` are left out where the architecture does not have them.

    Weights do not say which activation they were trained with. Published RN50 checkpoints are
    open_clip's ``RN50``, with GELU, unless trained as ``RN50-quickgelu``, as OpenAI's and some
    others were; the wrong one of the two loads without an error and is less accurate.

    Args:
        source: the file to read.
        architecture: the name that :func:`create_clip` knows it by.
        out: the folder to write ``epoch_NNN.safetensors`` in.
        epoch: how many epochs it was trained for; else the file says so, or its name ``epoch_N``.

    Raises:
        UserError: when the file cannot be read without executing code, is no checkpoint of the
            architecture, or does not say its epoch.
    """
    check_architecture(architecture, "architecture")
    named, told = _unnest(_read_published(source), source)
    given = _plain_names(named, source)
    number = _epoch(source, epoch, told)
    expected = _expected_tensors(architecture)
    dropped = sorted(name for name in given.keys() - expected if _last(name) in _LEFT_OUT)
    filled = sorted(name for name in expected.keys() - given if _last(name) == _COUNTER)
    weights = {name: tensor for name, tensor in given.items() if name not in dropped}
    weights |= {name: torch.zeros_like(expected[name]) for name in filled}
    _check_fit(weights, expected, source, architecture)
    path = checkpoint_path(out, number)
    _write_weights(path, _converted(weights, expected), _REPEAT)
    return ImportedCheckpoint(path, number, len(weights), tuple(dropped), tuple(filled))


def export_checkpoint(path: Path, out: Path, epoch: int, name: str) -> None:
    """Write a checkpoint as open_clip does: ``open_clip.create_model(..., pretrained=out)``.

    Args:
        path: the checkpoint.
        out: the ``.pt`` file to write, with ``epoch``, ``name`` and ``state_dict``.
        epoch: the number of epochs behind the checkpoint.
        name: of the run.

    Raises:
        UserError: when the checkpoint is absent, damaged or not of a CLIP model, or ``out`` has a
            name that open_clip would not read as this format.
    """
    if out.suffix not in (".pt", ".pth"):
        raise UserError(f"{out}: open_clip knows the format by its name; end it in .pt")
    weights = _read_weights(path)
    if "logit_scale" not in weights:
        raise UserError(f"{path}: not of a CLIP model (no 'logit_scale'); open_clip has no use")
    _write_pickle(out, {"epoch": epoch, "name": name, "state_dict": weights}, _REPEAT)


def epoch_of_checkpoint(path: Path) -> int:
    """Return the epoch that a checkpoint's name tells.

    Raises:
        UserError: when it is not named like a checkpoint.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"{path}: not named epoch_N.safetensors, as a run's checkpoints are")
    return int(match.group(1))


def _checkpoints(folder: Path) -> dict[int, Path]:
    found = {
        int(m.group(1)): path for path in folder.glob("*") if (m := _NAME.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


# Writing


def _write_weights(path: Path, weights: dict[str, torch.Tensor], then: str) -> None:
    with _writing(path, then) as temporary:
        save_file(weights, temporary)


def _write_pickle(path: Path, value: dict[str, Any], then: str) -> None:
    # Given a file and not its name, torch lets the error of a full disk through; it also leaves
    # the temporary name out of the bytes.
    with _writing(path, then) as temporary, open(temporary, "wb") as file:
        torch.save(value, file)


@contextlib.contextmanager
def _writing(path: Path, then: str) -> Iterator[Path]:
    """Replace a file; a full disk, or one that refuses, becomes a UserError.

    Args:
        path: the file.
        then: what to do once there is space.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except (OSError, SafetensorError, RuntimeError) as error:
        number = _error_number(error)
        if number is None:
            raise
        if number in _FULL:
            raise UserError(f"{path}: no space left on its disk; free some, {then}") from error
        raise UserError(f"{path}: cannot be written ({os.strerror(number)})") from error


def _error_number(error: BaseException | None) -> int | None:
    """Return the operating system's number of what went wrong, None when it was something else."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        if isinstance(error, SafetensorError) and (m := _SAFETENSORS_ERRNO.search(str(error))):
            return int(m.group(1))
        # torch reports that its archive is incomplete while it handles the error of the write.
        error = error.__cause__ or error.__context__
    return None


# Reading


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        weights: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error})") from error
    return weights


def _read_published(source: Path) -> object:
    """Read a file that others wrote, without executing anything in it."""
    if source.suffix == ".ckpt":
        raise _lightning(source)
    if not source.is_file():
        raise UserError(f"{source}: no such file; give the path of a .pt, .pth or .safetensors")
    if source.suffix == ".safetensors":
        return _read_weights(source)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_numbers()):
            warnings.simplefilter("ignore")
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        if needs := _CODE.search(str(error)):
            what = repr(needs["name"]) if needs["name"] else f"a {needs[0]}"
            raise UserError(
                f"{source}: refused, because reading it would execute code from it ({what}); where"
                " you trust it, save its state_dict alone, and import that"
            ) from error
        raise UserError(
            f"{source}: not a readable checkpoint ({_reason(error)}); download or copy it again"
        ) from error


def _numpy_numbers() -> list[Any]:
    """Return what unpickling numpy's numbers takes, under numpy 2's names and numpy 1's.

    Some programs leave them beside the weights, as losses and counts.
    """
    scalar = np.float64(0).__reduce__()[0]
    kinds = sorted({*np.typecodes["AllInteger"], *"?efd"})
    return [
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        (np.dtype, "numpy.dtype"),
        *{type(np.dtype(kind)) for kind in kinds},
    ]


def _reason(error: Exception) -> str:
    """Return what an exception of torch's says, in one line, without advice on unsafe loading."""
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()
    reason = lines[0].partition(" Please ")[0] if lines else type(error).__name__
    return "".join(char if char.isprintable() else "?" for char in reason)


def _lightning(source: Path) -> UserError:
    return UserError(
        f"{source}: a supervised checkpoint of PyTorch Lightning, which cannot be imported; give a"
        " CLIP checkpoint in open_clip's format"
    )


def _unnest(content: object, source: Path) -> tuple[Mapping[Any, Any], int | None]:
    """Return the mapping of names to tensors inside a file's content, and its epoch if it says."""
    epoch = None
    for _ in range(_MOST_NESTS):
        if not isinstance(content, Mapping):
            break
        if "pytorch-lightning_version" in content:
            raise _lightning(source)
        epoch = _whole(content.get("epoch")) if epoch is None else epoch
        inner = [content[key] for key in _NESTS if isinstance(content.get(key), Mapping)]
        if not inner:
            return content, epoch
        content = inner[0]
    raise UserError(
        f"{source}: holds no weights by name (a {type(content).__name__}); give a checkpoint in"
        " open_clip's format"
    )


def _whole(value: object) -> int | None:
    """Return a number as an integer; None for what is no whole number."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value == value // 1 else None


def _epoch(source: Path, given: int | None, told: int | None) -> int:
    """Return the epoch that the caller gave, else the file's content, else its name."""
    match = _PUBLISHED_NAME.fullmatch(source.stem)
    named = int(match.group(1)) if match else None
    epoch = next((number for number in (given, told, named) if number is not None), None)
    if epoch is None:
        raise UserError(
            f"{source}: neither the file nor its name (epoch_N{source.suffix}) says how many epochs"
            " it was trained for; pass --epoch N"
        )
    if epoch < 0:
        raise UserError(f"{source}: the epoch is {epoch}; pass --epoch N, 0 or more")
    return epoch


def _plain_names(named: Mapping[Any, Any], source: Path) -> dict[str, torch.Tensor]:
    """Return tensors by their names in the network itself, without those of wrappers."""
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in named.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"{source}: {name!r} is a {type(tensor).__name__}, not a named tensor; give a"
                " checkpoint in open_clip's format"
            )
        parts = [part for part in name.split(".") if part != _COMPILED]
        while parts[:1] == [_WRAPPER]:
            parts = parts[1:]
        short = ".".join(parts)
        if short in plain:
            raise UserError(f"{source}: holds {short!r} twice, as {name!r} too; remove one")
        plain[short] = tensor
    if not plain:
        raise UserError(f"{source}: holds no tensors; give a checkpoint in open_clip's format")
    if all(name.startswith("model.") for name in plain):
        raise _lightning(source)
    return plain


def _last(name: str) -> str:
    return name.rpartition(".")[2]


# Comparing with the architecture


def _expected_tensors(architecture: str) -> dict[str, torch.Tensor]:
    """Return an architecture's tensors; their values mean nothing."""
    from clip_mixtures.training.models import create_clip

    with torch.random.fork_rng(devices=[]):
        return dict(create_clip(architecture).network.state_dict())


def _check_fit(
    weights: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    source: Path,
    architecture: str,
) -> None:
    missing = [repr(name) for name in expected if name not in weights]
    unexpected = [repr(name) for name in weights if name not in expected]
    unfit = [
        f"{name!r} {misfit}"
        for name, tensor in weights.items()
        if name in expected and (misfit := _misfit(name, tensor, expected[name]))
    ]
    faults = [
        _first(names, kind)
        for names, kind in ((missing, "missing"), (unexpected, "unexpected"), (unfit, "unfit"))
        if names
    ]
    if faults:
        raise UserError(
            f"{source}: does not fit {architecture}: tensors {'; '.join(faults)}; give the"
            " --architecture that it was trained with"
        )


def _first(names: Sequence[str], kind: str) -> str:
    """Return the count and the first few of some names."""
    more = ", ..." if len(names) > _LISTED else ""
    return f"{kind}: {len(names)} ({', '.join(names[:_LISTED])}{more})"


def _misfit(name: str, tensor: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Return how a tensor differs from what the architecture has; None when it can be used."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return "is not a plain tensor"
    scale = _last(name) == "logit_scale" and tensor.numel() == expected.numel()
    if tensor.shape != expected.shape and not scale:
        return f"is {_shape(tensor)}, not {_shape(expected)}"
    if tensor.is_complex() or (expected.is_floating_point() and not tensor.is_floating_point()):
        return f"is {tensor.dtype}, not {expected.dtype}"
    return None


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _converted(
    weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return tensors in the architecture's types and shapes, each with memory of its own."""
    return {
        name: tensor.detach()
        .to(expected[name].dtype)
        .reshape(expected[name].shape)
        .clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
