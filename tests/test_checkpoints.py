"""Checkpoints: what is kept, full disks, and what comes from open_clip and goes back to it."""

from __future__ import annotations

import collections
import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clip_mixtures.__main__ import main
from clip_mixtures.errors import UserError
from clip_mixtures.training import checkpoints
from clip_mixtures.training.checkpoints import (
    checkpoint_path,
    export_checkpoint,
    import_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_state,
    remove_checkpoints,
    save_checkpoint,
    save_state,
)
from clip_mixtures.training.models import create_clip

ARCHITECTURE = "sample-RN"
COUNTERS = "num_batches_tracked"

Tensors = dict[str, torch.Tensor]


def make_network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return create_clip(ARCHITECTURE).network


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    """Weights of a model, with counters that are not all zero."""
    state = {name: tensor.contiguous() for name, tensor in make_network().state_dict().items()}
    state["visual.bn1.num_batches_tracked"] += 7
    return state


def put(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )


def refusal(source: Path, out: Path, architecture: str = ARCHITECTURE) -> str:
    """Import something that must be refused in one line, with nothing written; return the line."""
    with pytest.raises(UserError) as caught:
        import_checkpoint(source, architecture, out, epoch=1)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(str(source))
    assert not out.exists()
    return message


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Which are kept


@pytest.mark.parametrize(
    ("keep_last", "left"),
    [
        (0, [0, 1, 2, 10, 1000]),
        (1, [0, 1000]),
        (2, [0, 10, 1000]),
        (4, [0, 1, 2, 10, 1000]),
        (9, [0, 1, 2, 10, 1000]),
    ],
)
def test_epoch_0_and_the_newest_are_kept(tmp_path: Path, keep_last: int, left: list[int]) -> None:
    touch(tmp_path, *(checkpoint_path(tmp_path, epoch).name for epoch in (1000, 2, 0, 10, 1)))
    remove_checkpoints(tmp_path, keep_last)
    assert list(list_checkpoints(tmp_path)) == left


def test_only_checkpoints_are_removed(tmp_path: Path) -> None:
    foreign = ["epoch_1.safetensors", "epoch_001.pt", "best.safetensors", ".epoch_001.x.part"]
    touch(tmp_path, *foreign, "epoch_004.safetensors", "epoch_005.safetensors")
    (tmp_path / "epoch_003.safetensors").mkdir()
    remove_checkpoints(tmp_path, 1)
    assert names(tmp_path) == sorted([*foreign, "epoch_003.safetensors", "epoch_005.safetensors"])


def test_the_first_and_the_only_checkpoint_stay(tmp_path: Path) -> None:
    remove_checkpoints(tmp_path / "absent", 1)
    touch(tmp_path, "epoch_000.safetensors")
    remove_checkpoints(tmp_path, 1)
    touch(tmp_path, "epoch_001.safetensors")
    remove_checkpoints(tmp_path, 1)
    assert list(list_checkpoints(tmp_path)) == [0, 1]


# Disks that take no more


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def raiser(error: Exception) -> Callable[..., None]:
    def write(_: object, target: Any, **__: object) -> None:
        # Some of it is written before the disk is full.
        path = target if isinstance(target, Path) else Path(target.name)
        path.write_bytes(b"half")
        raise error

    return write


@pytest.mark.parametrize(
    "error",
    [
        os_error(errno.ENOSPC),
        os_error(errno.EDQUOT),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_named_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    network = torch.nn.Linear(2, 2)
    save_checkpoint(tmp_path, 1, network)
    save_state(tmp_path / "state.pt", {"epoch": 1})
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    monkeypatch.setattr(checkpoints, "save_file", raiser(error))
    monkeypatch.setattr(torch, "save", raiser(error))
    told = r"no space left on its disk; free some, .* the state kept so far continues it$"
    with pytest.raises(UserError, match=rf"epoch_001\.safetensors: {told}"):
        save_checkpoint(tmp_path, 1, network)
    with pytest.raises(UserError, match=rf"epoch_002\.safetensors: {told}"):
        save_checkpoint(tmp_path, 2, network)
    with pytest.raises(UserError, match=rf"state\.pt: {told}"):
        save_state(tmp_path / "state.pt", {"epoch": 2})
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


@pytest.fixture
def _small_files() -> Iterator[None]:
    """Let the operating system refuse what goes beyond a mebibyte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_small_files")
def test_an_error_of_the_system_reaches_us_through_the_libraries(tmp_path: Path) -> None:
    network = torch.nn.Linear(1024, 1024)
    with pytest.raises(UserError, match=r"epoch_001\.safetensors: cannot be written \(File too"):
        save_checkpoint(tmp_path, 1, network)
    with pytest.raises(UserError, match=r"state\.pt: cannot be written \(File too large\)"):
        save_state(tmp_path / "state.pt", dict(network.state_dict()))
    assert names(tmp_path) == []


def test_an_error_that_is_not_the_disks_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "save_file", raiser(SafetensorError("ours")))
    monkeypatch.setattr(torch, "save", raiser(RuntimeError("ours")))
    with pytest.raises(SafetensorError, match="ours"):
        save_checkpoint(tmp_path, 1, torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="ours"):
        save_state(tmp_path / "state.pt", {})
    assert names(tmp_path) == []


def test_an_import_to_a_full_disk_or_no_folder_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: Tensors
) -> None:
    source = put(tmp_path / "epoch_3.pt", tensors)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"epoch_003\.safetensors: cannot be written \("):
        import_checkpoint(source, ARCHITECTURE, tmp_path / "file")
    monkeypatch.setattr(checkpoints, "save_file", raiser(os_error(errno.ENOSPC)))
    with pytest.raises(UserError, match=r"no space left .* then run the command again$"):
        import_checkpoint(source, ARCHITECTURE, tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_an_empty_state_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"state\.pt: unreadable \(EOFError\); delete it"):
        load_state(tmp_path / "state.pt")


# From open_clip and back


def test_what_is_exported_comes_back_bit_for_bit(tmp_path: Path) -> None:
    network = make_network()
    save_checkpoint(tmp_path / "run", 32, network)
    original = checkpoint_path(tmp_path / "run", 32)
    export_checkpoint(original, tmp_path / "any.pt", 32, "toy")
    made = import_checkpoint(tmp_path / "any.pt", ARCHITECTURE, tmp_path / "back")
    assert made.path == checkpoint_path(tmp_path / "back", 32)
    assert made.path.read_bytes() == original.read_bytes()
    assert (made.epoch, made.tensors) == (32, len(network.state_dict()))
    assert made.dropped == made.filled == ()
    fresh = make_network(seed=1)
    load_checkpoint(made.path, fresh)
    assert same(dict(fresh.state_dict()), dict(network.state_dict()))


def test_open_clip_loads_what_is_exported(tmp_path: Path) -> None:
    network = make_network()
    save_checkpoint(tmp_path, 5, network)
    out = tmp_path / "toy.pt"
    export_checkpoint(checkpoint_path(tmp_path, 5), out, 5, "toy")
    content = torch.load(out, weights_only=True)
    assert (content["epoch"], content["name"]) == (5, "toy")
    assert list(content) == ["epoch", "name", "state_dict"]
    loaded = open_clip.create_model(ARCHITECTURE, pretrained=str(out), weights_only=True)
    assert same(dict(loaded.state_dict()), dict(network.state_dict()))
    other = make_network(seed=1)
    open_clip.load_checkpoint(other, str(out))
    assert same(dict(other.state_dict()), dict(network.state_dict()))
    again = tmp_path / "again.pt"
    export_checkpoint(checkpoint_path(tmp_path, 5), again, 5, "toy")
    assert again.read_bytes() == out.read_bytes()


def test_an_export_of_something_else_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, torch.nn.Linear(2, 2))
    source = checkpoint_path(tmp_path, 5)
    with pytest.raises(UserError, match=r"epoch_005\.safetensors: not of a CLIP model"):
        export_checkpoint(source, tmp_path / "toy.pt", 5, "toy")
    with pytest.raises(UserError, match=r"toy\.npz: open_clip knows the format by its name"):
        export_checkpoint(source, tmp_path / "toy.npz", 5, "toy")
    with pytest.raises(UserError, match=r"absent\.safetensors: not a readable checkpoint"):
        export_checkpoint(tmp_path / "absent.safetensors", tmp_path / "toy.pt", 5, "toy")
    assert names(tmp_path) == [source.name]


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: collections.OrderedDict(t),
        lambda t: {name: torch.nn.Parameter(tensor, False) for name, tensor in t.items()},
        lambda t: {"epoch": 7, "name": "x", "state_dict": t, "optimizer": {"state": {}}},
        lambda t: {name: channels_last(tensor) for name, tensor in t.items()},
        lambda t: {"model": t},
        lambda t: {"epoch": 7, "model": {"state_dict": {"model": t}}},
        lambda t: {"state_dict": prefixed(t, "module.")},
        lambda t: {"state_dict": prefixed(t, "_orig_mod.")},
        lambda t: {"state_dict": prefixed(t, "module._orig_mod.module.")},
        lambda t: {n.replace("visual.", "visual._orig_mod."): v for n, v in t.items()},
    ],
)
def test_every_published_form_is_read(
    tmp_path: Path, tensors: Tensors, wrap: Callable[[Tensors], object]
) -> None:
    source = put(tmp_path / "source.pth", wrap(tensors))
    made = import_checkpoint(source, ARCHITECTURE, tmp_path, epoch=7)
    assert same(load_file(made.path), tensors)


def test_the_old_format_of_torch_is_read(tmp_path: Path, tensors: Tensors) -> None:
    content = {"epoch": np.int64(7), "state_dict": tensors}
    torch.save(content, tmp_path / "source.pt", _use_new_zipfile_serialization=False)
    made = import_checkpoint(tmp_path / "source.pt", ARCHITECTURE, tmp_path)
    assert same(load_file(made.path), tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_precisions_become_float32(
    tmp_path: Path, tensors: Tensors, dtype: torch.dtype, suffix: str
) -> None:
    # Of all tensors, counters as well, as a careless conversion does.
    low = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    source = tmp_path / f"epoch_4{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": low}, source)
    else:
        save_file(low, source)
    made = import_checkpoint(source, ARCHITECTURE, tmp_path)
    expected = {name: low[name].to(tensor.dtype) for name, tensor in tensors.items()}
    assert same(load_file(made.path), expected)


def test_weights_that_share_memory_are_read(tmp_path: Path, tensors: Tensors) -> None:
    gain, bias = "visual.bn1.weight", "visual.bn1.running_var"
    shared = {**tensors, gain: tensors[bias]}
    made = import_checkpoint(put(tmp_path / "epoch_1.pt", shared), ARCHITECTURE, tmp_path)
    assert same(load_file(made.path), shared)


def test_numbers_of_numpy_beside_the_weights_are_read(tmp_path: Path, tensors: Tensors) -> None:
    extras = {
        "epoch": np.int64(32),
        "optimizer": {"lr": np.float64(0.5), "scale": np.float32(2), "flag": np.bool_(True)},
        "state_dict": tensors,
    }
    made = import_checkpoint(put(tmp_path / "source.pt", extras), ARCHITECTURE, tmp_path)
    assert made.epoch == 32
    assert same(load_file(made.path), tensors)
    # They are allowed while importing alone.
    with pytest.raises(Exception, match=r"multiarray\.scalar was not an allowed global"):
        torch.load(tmp_path / "source.pt", weights_only=True)


def test_the_name_of_numpy_1_is_known(tmp_path: Path, tensors: Tensors) -> None:
    content = {"epoch": np.float64(9), "state_dict": tensors}
    torch.save(content, tmp_path / "new.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "new.pt").read_bytes()
    assert b"cnumpy._core.multiarray\n" in data
    old = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    (tmp_path / "old.pt").write_bytes(old)
    assert import_checkpoint(tmp_path / "old.pt", ARCHITECTURE, tmp_path).epoch == 9


@pytest.mark.parametrize(
    ("name", "told", "given", "epoch"),
    [
        ("epoch_12.pt", 30, 5, 5),
        ("epoch_12.pt", 30, None, 30),
        ("epoch_12.pt", None, None, 12),
        ("epoch_012.pt", "thirty", None, 12),
        ("epoch_12.pt", 1.5, None, 12),
        ("epoch_12.pt", True, None, 12),
        ("epoch_12.pt", np.float64("nan"), None, 12),
        ("epoch_12.pt", np.float64("inf"), None, 12),
        ("any.pt", np.float32(3), None, 3),
        ("any.pt", None, 0, 0),
    ],
)
def test_the_epoch_is_given_or_in_the_file_or_in_its_name(
    tmp_path: Path, tensors: Tensors, name: str, told: object, given: int | None, epoch: int
) -> None:
    source = put(tmp_path / name, {"epoch": told, "state_dict": tensors})
    made = import_checkpoint(source, ARCHITECTURE, tmp_path / "out", given)
    assert names(tmp_path / "out") == [checkpoint_path(tmp_path, epoch).name]
    assert made.epoch == epoch


def test_without_an_epoch_one_is_asked_for(tmp_path: Path, tensors: Tensors) -> None:
    source = put(tmp_path / "epoch_latest.pt", tensors)
    with pytest.raises(UserError, match=r"neither the file nor its name .*; pass --epoch N$"):
        import_checkpoint(source, ARCHITECTURE, tmp_path / "out")
    source = put(tmp_path / "below.pt", {"epoch": -1, "state_dict": tensors})
    with pytest.raises(UserError, match=r"the epoch is -1; pass --epoch N"):
        import_checkpoint(source, ARCHITECTURE, tmp_path / "out")


def test_importing_leaves_the_seed_alone(tmp_path: Path, tensors: Tensors) -> None:
    source = put(tmp_path / "epoch_1.pt", tensors)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    import_checkpoint(source, ARCHITECTURE, tmp_path)
    assert torch.equal(torch.rand(4), expected)


# What is left out, what may be absent, what may not


def test_what_is_no_weight_is_left_out(tmp_path: Path, tensors: Tensors) -> None:
    extras = {
        "attn_mask": torch.zeros(24, 24),
        "transformer.attn_mask": torch.zeros(24, 24),
        "text.embeddings.position_ids": torch.arange(24),
        "input_resolution": torch.tensor(64),
        "context_length": torch.tensor(24),
        "vocab_size": torch.tensor(49408),
    }
    source = put(tmp_path / "epoch_1.pt", tensors | extras)
    made = import_checkpoint(source, ARCHITECTURE, tmp_path)
    assert made.dropped == tuple(sorted(extras))
    assert made.tensors == len(tensors)
    assert same(load_file(made.path), tensors)


def test_the_counters_of_batch_normalisation_may_be_absent(
    tmp_path: Path, tensors: Tensors
) -> None:
    few = {name: tensor for name, tensor in tensors.items() if COUNTERS not in name}
    made = import_checkpoint(put(tmp_path / "epoch_1.pt", few), ARCHITECTURE, tmp_path)
    assert made.filled == tuple(sorted(tensors.keys() - few.keys()))
    found = load_file(made.path)
    assert same({name: found[name] for name in few}, few)
    assert all(found[name] == torch.tensor(0) for name in made.filled)


def test_a_logit_scale_in_a_list_of_one_is_the_same(tmp_path: Path, tensors: Tensors) -> None:
    listed = {**tensors, "logit_scale": tensors["logit_scale"].reshape(1)}
    made = import_checkpoint(put(tmp_path / "epoch_1.pt", listed), ARCHITECTURE, tmp_path)
    assert same(load_file(made.path), tensors)


def test_what_does_not_fit_is_named(tmp_path: Path, tensors: Tensors) -> None:
    wrong = {name: tensor for name, tensor in tensors.items() if "attnpool" not in name}
    wrong |= {
        "logit_bias": torch.zeros(()),
        "visual.conv1.weight": torch.zeros(2, 3),
        "visual.bn1.weight": torch.zeros(8, dtype=torch.int8),
        "visual.bn1.bias": torch.zeros(8).to_sparse(),
        "visual.bn2.bias": torch.zeros(8, dtype=torch.complex64),
    }
    message = refusal(put(tmp_path / "a.pt", {"state_dict": wrong}), tmp_path / "out")
    absent = [repr(name) for name in tensors if "attnpool" in name]
    assert f"missing: {len(absent)} ({', '.join(absent[:3])}, ...)" in message
    assert "unexpected: 1 ('logit_bias')" in message
    assert "unfit: 4 ('visual.conv1.weight' is 2x3, not 8x3x3x3, " in message
    assert "'visual.bn1.weight' is torch.int8, not torch.float32, " in message
    assert "'visual.bn1.bias' is not a plain tensor, ...); give the --architecture" in message


def test_the_positions_of_another_image_size_are_refused(tmp_path: Path, tensors: Tensors) -> None:
    name = "visual.attnpool.positional_embedding"
    larger = {**tensors, name: torch.zeros(50, tensors[name].shape[1])}
    message = refusal(put(tmp_path / "a.pt", larger), tmp_path / "out")
    assert f"unfit: 1 ('{name}' is 50x" in message


def test_weights_of_another_architecture_are_refused(tmp_path: Path, tensors: Tensors) -> None:
    message = refusal(put(tmp_path / "a.pt", tensors), tmp_path / "out", "ViT-S-32")
    assert "a.pt: does not fit ViT-S-32: tensors missing: " in message
    with pytest.raises(UserError, match="unknown architecture 'RN51'"):
        import_checkpoint(tmp_path / "a.pt", "RN51", tmp_path / "out")


# Damage and malice


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, tensors: Tensors, suffix: str) -> None:
    source = tmp_path / f"epoch_1{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": tensors}, source)
    else:
        save_file(tensors, source)
    whole = source.read_bytes()
    random = np.random.default_rng(0).bytes(5000)
    for data in (whole[: len(whole) // 2], whole[:-100], whole[:3], b"", random, b"<html>no"):
        source.write_bytes(data)
        assert "not a readable checkpoint" in refusal(source, tmp_path / "out")


def test_an_old_file_cut_short_is_refused(tmp_path: Path, tensors: Tensors) -> None:
    source = tmp_path / "old.pt"
    torch.save(tensors, source, _use_new_zipfile_serialization=False)
    whole = source.read_bytes()
    for length in (len(whole) // 2, 300, 20):
        source.write_bytes(whole[:length])
        assert "not a readable checkpoint" in refusal(source, tmp_path / "out")


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.pt", tmp_path / "out")
    assert "no such file" in refusal(tmp_path / "absent.safetensors", tmp_path / "out")
    (tmp_path / "folder").mkdir()
    assert "no such file" in refusal(tmp_path / "folder", tmp_path / "out")


class Hostile:
    """Makes a folder where it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_executed(tmp_path: Path, tensors: Tensors, zipped: bool) -> None:
    evil = {"epoch": 1, "state_dict": tensors, "optimizer": Hostile(tmp_path / "ran")}
    source = tmp_path / "evil.pt"
    torch.save(evil, source, _use_new_zipfile_serialization=zipped)
    message = refusal(source, tmp_path / "out")
    assert "evil.pt: refused, because reading it would execute code from it" in message
    assert "mkdir'" in message
    assert "save its state_dict alone" in message
    assert not (tmp_path / "ran").exists()


def test_an_object_of_a_class_is_refused(tmp_path: Path, tensors: Tensors) -> None:
    import argparse

    source = put(tmp_path / "args.pt", {"args": argparse.Namespace(lr=1), "state_dict": tensors})
    assert "'argparse.Namespace'" in refusal(source, tmp_path / "out")
    # Arrays of numpy are more than its numbers.
    source = put(tmp_path / "array.pt", {"loss": np.zeros(2), "state_dict": tensors})
    assert "multiarray._reconstruct'" in refusal(source, tmp_path / "out")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_program_of_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "RN50.pt")
    message = refusal(tmp_path / "RN50.pt", tmp_path / "out")
    assert "would execute code from it (a TorchScript archive)" in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (torch.zeros(3), "holds no weights by name (a Tensor)"),
        ([1], "holds no weights by name (a list)"),
        ({}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"state_dict": {"a": "b"}}, "'a' is a str, not a named tensor"),
        ({1: torch.zeros(1)}, "1 is a Tensor, not a named tensor"),
        ({"a\nb": torch.zeros(1)}, r"unexpected: 1 ('a\nb')"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "holds 'a' twice, as 'module.a' too"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: object, told: str) -> None:
    assert told in refusal(put(tmp_path / "a.pt", content), tmp_path / "out")


def test_a_nest_without_an_end_is_refused(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["state_dict"] = endless
    source = put(tmp_path / "a.pt", endless)
    assert "holds no weights by name (a dict)" in refusal(source, tmp_path / "out")


def test_supervised_checkpoints_are_refused(tmp_path: Path, tensors: Tensors) -> None:
    told = "a supervised checkpoint of PyTorch Lightning, which cannot be imported"
    lightning = {"epoch": 4, "pytorch-lightning_version": "2.0", "state_dict": tensors}
    for path, content in (
        (tmp_path / "epoch=4-step=100.ckpt", {"state_dict": tensors}),
        (tmp_path / "renamed.pt", lightning),
        (tmp_path / "alone.pt", {"state_dict": prefixed(tensors, "model.")}),
    ):
        assert told in refusal(put(path, content), tmp_path / "out")


# Commands


def run(*argv: object) -> None:
    main([str(value) for value in argv])


def test_commands_import_and_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tensors: Tensors
) -> None:
    few = {name: tensor for name, tensor in tensors.items() if COUNTERS not in name}
    mask = {"attn_mask": torch.zeros(24, 24)}
    source = put(tmp_path / "epoch_3.pt", {"name": "x", "state_dict": few | mask})
    to, out = ("--architecture", ARCHITECTURE, "--out", tmp_path / "out"), tmp_path / "toy.pt"
    run("import-checkpoint", "--checkpoint", source, *to)
    made = checkpoint_path(tmp_path / "out", 3)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "left out: 'attn_mask'"
    assert said[1].startswith(f"set to zero: {len(tensors) - len(few)} counters")
    assert said[2:] == [f"{made}: {len(tensors)} tensors, epoch 3"]

    run("export-checkpoint", "--checkpoint", made, "--out", out)
    assert capsys.readouterr().out == f"{out}: epoch 3, named 'toy'\n"
    run("export-checkpoint", "--checkpoint", made, "--out", out, "--name", "sketches")
    assert torch.load(out, weights_only=True)["name"] == "sketches"
    run("import-checkpoint", "--checkpoint", out, *to, "--epoch", 4)
    assert checkpoint_path(tmp_path / "out", 4).read_bytes() == made.read_bytes()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--architecture", "RN51"], "--architecture: unknown architecture 'RN51'"),
        (["--architecture", ARCHITECTURE, "--epoch", "-1"], "--epoch: is -1; must be 0 or more"),
        (["--architecture", ARCHITECTURE], "absent.pt: no such file"),
    ],
)
def test_mistakes_in_commands_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], told: str
) -> None:
    paths = ["--checkpoint", tmp_path / "absent.pt", "--out", tmp_path / "out"]
    with pytest.raises(SystemExit) as caught:
        run("import-checkpoint", *paths, *argv)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_an_export_needs_the_name_of_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("export-checkpoint", "--checkpoint", "best.safetensors", "--out", tmp_path / "a.pt")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: best.safetensors: not named epoch_N.safetensors")


@pytest.mark.parametrize("command", ["import-checkpoint", "export-checkpoint"])
def test_commands_have_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run(command, "--help")
    assert caught.value.code == 0
    assert "--checkpoint" in capsys.readouterr().out


def test_an_rn50_has_the_names_of_open_clip_and_needs_its_positions(tmp_path: Path) -> None:
    shapes = open_clip.create_model("RN50", device="meta", load_weights=False).state_dict()
    del shapes["visual.attnpool.positional_embedding"]
    # One number seen in every place keeps the file small.
    one = torch.ones((), dtype=torch.half)
    weights = {"module." + name: one.expand(tensor.shape) for name, tensor in shapes.items()}
    source = put(tmp_path / "rn50.pt", {"epoch": 32, "state_dict": weights})
    message = refusal(source, tmp_path / "out", "RN50")
    fault = "tensors missing: 1 ('visual.attnpool.positional_embedding'); give the --architecture"
    assert f"does not fit RN50: {fault}" in message
