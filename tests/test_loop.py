"""The training loop: kills, accumulation, open_clip's own trainer, processes, faults."""

from __future__ import annotations

import copy
import dataclasses
import errno
import os
import random
import re
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import open_clip
import pandas as pd
import pytest
import torch
import train_toy
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from test_training import make_data, make_model
from train_toy import ALONE, CPU, TOY, Faulty, make_feed, make_towers

from clip_mixtures import files
from clip_mixtures.errors import UserError
from clip_mixtures.training import loop
from clip_mixtures.training.augmentation import DRAWS
from clip_mixtures.training.checkpoints import (
    list_checkpoints,
    load_checkpoint,
    load_state,
    save_state,
)
from clip_mixtures.training.clip import Contrastive
from clip_mixtures.training.config import TrainConfig, train_config_from_params
from clip_mixtures.training.feed import PackedFeed
from clip_mixtures.training.layout import CHECKPOINTS, CURVES, STATE
from clip_mixtures.training.loop import Batch
from clip_mixtures.training.precision import Precision
from clip_mixtures.training.processes import Processes


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # The order of sums, and so the last bits, may depend on the number of threads.
    torch.set_num_threads(1)


@pytest.fixture
def saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the state at every point of the curves."""
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_STATES", 0)


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a run leaves, without the state of an unfinished one."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != STATE
    }


def curve(folder: Path, name: str = "loss") -> pd.Series[float]:
    path = folder / CURVES / "plots" / "metrics" / f"{name}.tsv"
    return pd.read_csv(path, sep="\t").set_index("step")[name]


def final_weights(folder: Path, epoch: int = TOY.epochs) -> dict[str, torch.Tensor]:
    towers = make_towers(seed=99)
    load_checkpoint(list_checkpoints(folder / CHECKPOINTS)[epoch], towers)
    return dict(towers.state_dict())


# Kills


class Kill(BaseException):
    """Ends a run as a signal would, where nobody catches it."""


KILL_CONFIG = dataclasses.replace(TOY, keep_last=2)
KILL_IMAGES = 35


class Moments:
    """Everything worth dying at: before and after each step, state and checkpoint, in order."""

    def __init__(self, fatal: int | None = None) -> None:
        self.fatal, self.count = fatal, 0

    def pass_one(self) -> None:
        self.count += 1
        if self.count == self.fatal:
            raise Kill

    def around(self, genuine: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: Any) -> None:
            self.pass_one()
            genuine(*args)
            self.pass_one()

        return wrapped


def train_killed(folder: Path, monkeypatch: pytest.MonkeyPatch, fatal: int | None) -> int:
    """Train to the end or to a fatal moment; return how many moments were passed."""
    moments = Moments(fatal)
    towers = make_towers(norm=True)
    objective = Contrastive(towers, KILL_CONFIG, ALONE)
    with monkeypatch.context() as patch:
        # Points on the curve stand for three steps, or for what an epoch leaves.
        patch.setattr(loop, "CURVE_POINTS", 4)
        for name in ("save_state", "save_checkpoint"):
            patch.setattr(loop, name, moments.around(getattr(loop, name)))
        patch.setattr(objective, "after_step", moments.around(objective.after_step))
        loop.train(objective, make_feed(KILL_IMAGES), KILL_CONFIG, 0, folder, ALONE)
    return moments.count


# 12 steps, 4 checkpoints, and states after steps 3, 4, 6, 8 and 9, each with a before and an after.
MOMENTS = 2 * (12 + 4 + 5)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SECONDS_BETWEEN_STATES", 0)
        assert train_killed(folder, patch, None) == MOMENTS
    return contents(folder)


@pytest.mark.usefixtures("saving")
@pytest.mark.parametrize("fatal", random.Random(0).sample(range(1, MOMENTS + 1), 20))
def test_a_kill_at_any_moment_costs_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    uninterrupted: dict[str, bytes],
    fatal: int,
) -> None:
    with pytest.raises(Kill):
        train_killed(tmp_path, monkeypatch, fatal)
    state = load_state(tmp_path / STATE)
    capsys.readouterr()
    passed = train_killed(tmp_path, monkeypatch, None)
    assert contents(tmp_path) == uninterrupted
    if state is None:
        assert passed == MOMENTS
    else:
        assert passed < MOMENTS
        assert f"continuing after step {state['step']} of 12" in capsys.readouterr().out


@pytest.mark.usefixtures("saving")
def test_a_run_that_dies_after_every_step_that_it_saves_still_ends_the_same(tmp_path: Path) -> None:
    ends = []
    for name, dies_after in (("whole", 0), ("dying", 2)):
        starts = 0
        while True:
            towers = make_towers(norm=True)
            objective = Faulty(towers, TOY, dies_after=dies_after)
            objective.die = stop  # type: ignore[method-assign]
            starts += 1
            try:
                loop.train(objective, make_feed(), TOY, 0, tmp_path / name, ALONE)
            except Kill:
                continue
            break
        ends.append((starts, contents(tmp_path / name)))
    # Each start takes one step and dies on the next; the last has only one step left.
    assert [starts for starts, _ in ends] == [1, 6]
    assert ends[0][1] == ends[1][1]


@pytest.mark.usefixtures("saving")
def test_the_scale_of_gradients_survives_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalers = []

    class Scaled(Precision):
        """As on a GPU: with a scale, which grows after every third step."""

        def __init__(self, name: str, device: torch.device) -> None:
            super().__init__(name, device)
            self._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
            scalers.append(self._scaler)

    monkeypatch.setattr(loop, "Precision", Scaled)
    ends = []
    for name, dies_after in (("whole", 0), ("dying", 2)):
        while True:
            objective = Faulty(make_towers(norm=True), TOY, dies_after=dies_after)
            objective.die = stop  # type: ignore[method-assign]
            try:
                loop.train(objective, make_feed(), TOY, 0, tmp_path / name, ALONE)
            except Kill:
                continue
            break
        ends.append((scalers[-1].get_scale(), contents(tmp_path / name)))
    # Six steps.
    assert ends[0][0] == 2.0**10
    assert ends[0] == ends[1]


def stop() -> None:
    raise Kill


SCRIPT = Path(__file__).parent / "train_toy.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.mark.usefixtures("saving")
def test_kill_9_costs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), str(folder), "--norm", "--waits", "1"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    with process:
        deadline = time.monotonic() + 300
        while not (folder / STATE).exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.4)
        process.kill()
    assert process.returncode == -9
    state = load_state(folder / STATE)
    assert state is not None
    assert 1 <= state["step"] < 6
    for name in ("killed", "whole"):
        # Another start shows that everything comes from the state.
        towers = make_towers(seed=5 if name == "killed" else 0, norm=True)
        objective = Contrastive(towers, TOY, ALONE)
        files.remove_parts(tmp_path / name)
        loop.train(objective, make_feed(), TOY, 0, tmp_path / name, ALONE)
    assert contents(folder) == contents(tmp_path / "whole")


# Accumulation


def random_batch(count: int, side: int = 8, words: int = 50, length: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn((count, 3, side, side), generator=generator)
    return Batch(images, torch.randint(words, (count, length), generator=generator))


def in_pieces(batch: Batch, size: int) -> list[Batch]:
    pieces = zip(batch.images.split(size), batch.targets.split(size), strict=True)
    return [Batch(*piece) for piece in pieces]


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(size: int) -> None:
    batch = random_batch(8)
    fp32 = Precision("fp32", CPU)
    towers = [make_towers(), make_towers()]
    losses = [
        Contrastive(network, TOY, ALONE).backward(network, parts, fp32)
        for network, parts in zip(towers, ([batch], in_pieces(batch, size)), strict=True)
    ]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)
    for (name, whole), (_, parts) in zip(
        *(each.named_parameters() for each in towers), strict=True
    ):
        assert whole.grad is not None
        assert whole.grad.abs().max() > 1e-4, name
        torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("device_batch", [1, 3, 5, 8, 100])
def test_what_the_device_takes_at_a_time_does_not_change_a_run(
    tmp_path: Path, device_batch: int
) -> None:
    taken: list[int] = []
    for name, size in (("whole", None), ("parts", device_batch)):
        towers = make_towers()
        if size:
            towers.visual.register_forward_hook(lambda _, __, out: taken.append(len(out)))
        objective = Contrastive(towers, TOY, ALONE)
        loop.train(objective, make_feed(), TOY, 0, tmp_path / name, ALONE, size)
    assert max(taken) <= device_batch
    # 8 images in parts as even as can be, each encoded twice, in each of 6 steps.
    in_a_step = {1: [1] * 16, 3: [3, 3, 2] * 2, 5: [4, 4] * 2, 8: [8], 100: [8]}[device_batch]
    assert taken == in_a_step * 6
    whole, parts = (curve(tmp_path / name) for name in ("whole", "parts"))
    assert parts.tolist() == pytest.approx(whole.tolist(), rel=1e-4)


def test_an_accumulated_step_counts_each_part_in_the_statistics_once() -> None:
    model = make_model()
    network, reference = model.network.train(), copy.deepcopy(model.network).train()
    batch = random_batch(8, side=64, words=1000, length=24)
    parts = in_pieces(batch, 3)
    model_config = dataclasses.replace(TOY, precision="fp32")
    Contrastive(network, model_config, ALONE).backward(network, parts, Precision("fp32", CPU))
    for part in parts:
        reference(part.images, part.targets)
    statistics = dict(network.named_buffers())
    counts = [value for name, value in statistics.items() if name.endswith("batches_tracked")]
    assert counts
    assert {int(count) for count in counts} == {3}
    for name, expected in reference.named_buffers():
        assert torch.equal(statistics[name], expected), name


def test_trying_how_much_fits_leaves_the_network_as_it_was() -> None:
    network = make_model().network.train()
    before = copy.deepcopy(network.state_dict())
    Contrastive(network, TOY, ALONE).trial(torch.randn(2, 3, 64, 64)).backward()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


# open_clip's trainer


class Recording:
    """A feed that remembers its batches."""

    def __init__(self, feed: PackedFeed) -> None:
        self.feed = feed
        self.batches_made: list[Batch] = []

    def __len__(self) -> int:
        return len(self.feed)

    def batches(self, rows: torch.Tensor, draws: torch.Tensor) -> Iterator[Batch]:
        for batch in self.feed.batches(rows, draws):
            self.batches_made.append(batch)
            yield batch


class Loader:
    """What open_clip's trainer wants of a data loader."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self.num_batches = len(batches)
        self.num_samples = sum(len(batch.images) for batch in batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return ((batch.images, batch.targets) for batch in self._batches)


class Writer:
    """Keeps what open_clip's trainer would show on a board."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add_scalar(self, name: str, value: float, _: int) -> None:
        self.values.setdefault(name, []).append(value)


def train_as_open_clip(
    network: torch.nn.Module, batches: Sequence[Batch], config: TrainConfig, accumulated: int
) -> Writer:
    """Train with open_clip's own loop, schedule and parameter groups; return its board."""
    network.output_dict = True  # type: ignore[assignment]
    named = list(network.named_parameters())
    words = ("bn", "ln", "bias", "logit_scale")
    spared = [p for n, p in named if p.ndim < 2 or any(word in n for word in words)]
    kept = {id(p) for p in spared}
    optimizer = torch.optim.AdamW(
        [
            {"params": spared, "weight_decay": 0.0},
            {"params": [p for _, p in named if id(p) not in kept], "weight_decay": 0.1},
        ],
        lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon,
    )  # fmt: skip
    of_epoch = len(batches) // config.epochs
    steps = len(batches) // accumulated
    scheduler = cosine_lr(optimizer, config.learning_rate, config.warmup_steps, steps)
    args = types.SimpleNamespace(
        device="cpu", precision="fp32", distill=False, accum_freq=accumulated, rank=0,
        skip_scheduler=False, grad_clip_norm=None, horovod=False, local_rank=0, world_size=1,
        batch_size=len(batches[0].images), log_every_n_steps=1, wandb=False,
    )  # fmt: skip
    writer = Writer()
    for epoch in range(config.epochs):
        loader = Loader(batches[epoch * of_epoch : (epoch + 1) * of_epoch])
        data = {"train": types.SimpleNamespace(dataloader=loader, set_epoch=lambda _: None)}
        loss = open_clip.ClipLoss()
        train_one_epoch(network, data, loss, epoch, optimizer, None, scheduler, None, args, writer)
    return writer


def sample_rn() -> tuple[torch.nn.Module, PackedFeed]:
    model = make_model()
    return model.network, make_data(model, 26)


def toy() -> tuple[torch.nn.Module, PackedFeed]:
    return make_towers(), make_feed(26)


@pytest.mark.parametrize(
    ("make", "accumulated", "rate"), [(sample_rn, 1, 1e-3), (toy, 1, 1e-2), (toy, 2, 1e-2)]
)
def test_the_losses_are_those_of_open_clips_trainer(
    tmp_path: Path,
    make: Callable[[], tuple[torch.nn.Module, PackedFeed]],
    accumulated: int,
    rate: float,
) -> None:
    network, feed = make()
    theirs = copy.deepcopy(network)
    recording = Recording(feed)
    config = dataclasses.replace(TOY, learning_rate=rate)
    objective = Contrastive(network, config, ALONE)
    loop.train(objective, recording, config, 0, tmp_path, ALONE, 8 // accumulated)
    batches = [
        part for batch in recording.batches_made for part in in_pieces(batch, 8 // accumulated)
    ]
    board = train_as_open_clip(theirs, batches, config, accumulated).values
    assert len(board["train/loss"]) == 9
    assert curve(tmp_path).tolist() == pytest.approx(board["train/loss"], rel=1e-5)
    rates = curve(tmp_path, "learning_rate").tolist()
    assert rates == pytest.approx(board["train/lr"], rel=1e-9)
    # Theirs is the scale that a step began with, ours the one it ended with.
    scales = curve(tmp_path, "logit_scale").tolist()
    assert scales[:-1] == pytest.approx(board["train/scale"][1:], rel=1e-5)


# Faults


class Poisoned(Contrastive):
    """A loss that is not a number at one step of the run."""

    def __init__(self, network: torch.nn.Module, config: TrainConfig, step: int, value: float):
        super().__init__(network, config, ALONE)
        self.step, self.value, self.steps = step, value, 0

    def backward(
        self, network: torch.nn.Module, parts: Sequence[Batch], precision: Precision
    ) -> torch.Tensor:
        self.steps += 1
        loss = super().backward(network, parts, precision)
        return loss * self.value if self.steps == self.step else loss


@pytest.mark.usefixtures("saving")
@pytest.mark.parametrize("points", [4, 200])
@pytest.mark.parametrize(
    ("step", "value"),
    [(1, float("nan")), (5, float("inf")), (7, float("-inf")), (8, float("nan")), (12, 1e39)],
)
def test_a_loss_that_is_not_finite_names_its_step_and_keeps_what_was_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, value: float, points: int
) -> None:
    # The loss is looked at once in 3 steps, or after every step; 4 steps make an epoch.
    monkeypatch.setattr(loop, "CURVE_POINTS", points)
    whole, faulty = tmp_path / "whole", tmp_path / "faulty"
    loop.train(Contrastive(make_towers(), TOY, ALONE), make_feed(35), TOY, 0, whole, ALONE)
    told = {1: "nan", 7: "-inf", 8: "nan"}.get(step, "inf")
    with pytest.raises(
        UserError, match=rf"loss is {told} at step {step};.*checkpoint is kept"
    ) as e:
        loop.train(Poisoned(make_towers(), TOY, step, value), make_feed(35), TOY, 0, faulty, ALONE)
    assert "\n" not in str(e.value)
    kept = list(list_checkpoints(faulty / CHECKPOINTS))
    assert kept == list(range((step - 1) // 4 + 1))
    before = contents(whole)
    for name, data in contents(faulty / CHECKPOINTS).items():
        assert data == before[f"checkpoints/{name}"]
    state = load_state(faulty / STATE)
    every = {4: 3, 200: 1}[points]
    good = [n for n in range(1, step) if n % every == 0 or n % 4 == 0]
    assert (state["step"] if state else None) == (good[-1] if good else None)
    # Once the cause is gone, the run goes on as if there had been none.
    loop.train(Contrastive(make_towers(), TOY, ALONE), make_feed(35), TOY, 0, faulty, ALONE)
    assert contents(faulty) == contents(whole)


@pytest.mark.parametrize(
    ("epochs", "every", "keep_last", "kept"),
    [
        (5, 1, 0, [0, 1, 2, 3, 4, 5]),
        (5, 2, 0, [0, 2, 4, 5]),
        (5, 10, 0, [0, 5]),
        (5, 1, 2, [0, 4, 5]),
        (5, 2, 2, [0, 4, 5]),
        (6, 3, 1, [0, 6]),
        (4, 1, 9, [0, 1, 2, 3, 4]),
    ],
)
def test_the_checkpoints_that_the_recipe_says_are_kept(
    tmp_path: Path, epochs: int, every: int, keep_last: int, kept: list[int]
) -> None:
    config = dataclasses.replace(TOY, epochs=epochs, checkpoint_every=every, keep_last=keep_last)
    loop.train(Contrastive(make_towers(), config, ALONE), make_feed(8), config, 0, tmp_path, ALONE)
    assert list(list_checkpoints(tmp_path / CHECKPOINTS)) == kept


@pytest.mark.usefixtures("saving")
def test_a_disk_that_is_full_at_a_state_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, filled = tmp_path / "whole", tmp_path / "filled"
    loop.train(Contrastive(make_towers(), TOY, ALONE), make_feed(), TOY, 0, whole, ALONE)
    states: list[int] = []

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(path: Path, state: dict[str, Any]) -> None:
        states.append(state["step"])
        with monkeypatch.context() as patch:
            if len(states) == 3:
                patch.setattr("os.fsync", full)
            save_state(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", save)
        with pytest.raises(UserError, match=r"state\.pt: no space left.*start the run again") as e:
            loop.train(Contrastive(make_towers(), TOY, ALONE), make_feed(), TOY, 0, filled, ALONE)
    assert "\n" not in str(e.value)
    state = load_state(filled / STATE)
    assert state is not None
    assert state["step"] == states[1] == 2
    loop.train(Contrastive(make_towers(), TOY, ALONE), make_feed(), TOY, 0, filled, ALONE)
    assert contents(filled) == contents(whole)


# Waiting


class Clock:
    """Stands in for the module `time`: nothing takes any time but sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.monotonic = time.monotonic

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Slow:
    """A feed that waits before every batch, the longest before the first."""

    def __init__(self, feed: PackedFeed, seconds: float, clock: Clock) -> None:
        self.feed, self.seconds, self.clock = feed, seconds, clock

    def __len__(self) -> int:
        return len(self.feed)

    def batches(self, rows: torch.Tensor, draws: torch.Tensor) -> Iterator[Batch]:
        self.clock.sleep(100.0)
        for batch in self.feed.batches(rows, draws):
            self.clock.sleep(self.seconds)
            yield batch


@pytest.mark.parametrize(
    ("waits", "works", "share"), [(1.0, 1.0, 50), (1.0, 3.9, 20), (1.0, 4.1, None), (0, 1.0, None)]
)
def test_much_waiting_for_images_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    waits: float,
    works: float,
    share: int | None,
) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(train_toy, "time", clock)
    config = dataclasses.replace(TOY, epochs=2)
    objective = Faulty(make_towers(), config, waits=works)
    loop.train(objective, Slow(make_feed(), waits, clock), config, 0, tmp_path, ALONE)
    shares = re.findall(r"warning: (\d+) % .* waiting for images", capsys.readouterr().err)
    # Once an epoch, or never.
    assert shares == ([] if share is None else 2 * [str(share)])


# Precision


@pytest.mark.parametrize("precision", ["amp_bf16", "amp"])
def test_mixed_precision_learns_nearly_the_same(tmp_path: Path, precision: str) -> None:
    curves = {}
    for name in ("fp32", precision):
        config = dataclasses.replace(TOY, precision=name)
        towers = make_towers()
        kinds: set[torch.dtype] = set()
        towers.visual.register_forward_hook(lambda _, __, out, kinds=kinds: kinds.add(out.dtype))
        objective = Contrastive(towers, config, ALONE)
        loop.train(objective, make_feed(), config, 0, tmp_path / name, ALONE)
        curves[name] = curve(tmp_path / name).tolist()
        assert kinds == {torch.float32 if name == "fp32" else torch.bfloat16}
        assert {value.dtype for value in towers.state_dict().values()} == {torch.float32}
    assert curves[precision] == pytest.approx(curves["fp32"], rel=0.03)
    assert curves[precision] != curves["fp32"]


def test_parts_of_a_batch_agree_in_mixed_precision_too() -> None:
    batch, precision = random_batch(8), Precision("amp_bf16", CPU)
    towers = [make_towers(), make_towers()]
    for network, parts in zip(towers, ([batch], in_pieces(batch, 3)), strict=True):
        Contrastive(network, TOY, ALONE).backward(network, parts, precision)
    for (name, whole), (_, parts_) in zip(
        *(each.named_parameters() for each in towers), strict=True
    ):
        assert whole.grad is not None
        assert parts_.grad is not None
        near = torch.nn.functional.cosine_similarity(
            whole.grad.flatten(), parts_.grad.flatten(), dim=0
        )
        assert near > 0.99 or whole.grad.numel() == 1, name


def test_an_unknown_precision_is_refused() -> None:
    params = dataclasses.asdict(TOY)
    with pytest.raises(UserError, match=r"train\.precision: unknown precision 'bf16'.*amp_bf16"):
        train_config_from_params({**params, "precision": "bf16"})


# Processes


@given(
    st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, 2**40), st.integers(0, 5), st.integers(0, 2)
)
@settings(max_examples=40, deadline=None)
def test_the_slices_of_all_processes_make_the_batches_of_one(
    world_size: int, seed: int, epoch: int, first: int
) -> None:
    config = dataclasses.replace(TOY, global_batch_size=16, epochs=6)
    towers, feed = make_towers(), make_feed(53)

    def plan(rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        processes = Processes(rank, size, CPU)
        objective = Contrastive(towers, config, processes)
        run = loop._Run(objective, feed, config, seed, 3, 16 // size, processes)
        return run._plan(epoch, first)

    rows, draws = plan(0, 1)
    slices = [plan(rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat([part for part, _ in slices], dim=1), rows)
    assert torch.equal(torch.cat([part for _, part in slices], dim=2), draws)
    assert rows.shape == (3 - first, 16)
    assert draws.shape == (3 - first, DRAWS, 16)
    # No image twice in an epoch, and another order in the next.
    assert len(rows.unique()) == rows.numel()


def test_epochs_and_seeds_have_their_own_order_and_augmentation() -> None:
    feed = make_feed(64)

    def plan(seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        objective = Contrastive(make_towers(), TOY, ALONE)
        return loop._Run(objective, feed, TOY, seed, 8, 8, ALONE)._plan(epoch, 0)

    plans = [plan(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({rows.numpy().tobytes() for rows, _ in plans}) == 4
    steps = [step for _, draws in plans for step in draws]
    assert len({step.numpy().tobytes() for step in steps}) == len(steps) == 32
    again = plan(1, 1)
    assert all(torch.equal(a, b) for a, b in zip(plans[3], again, strict=True))


def torchrun(folder: Path, *options: str, toy: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    return subprocess.Popen(
        [*command, str(SCRIPT), str(folder), *toy],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def end(*launched: subprocess.Popen[str]) -> list[int]:
    """Wait for launchers and return their statuses; none survives this."""
    try:
        for process in launched:
            output = process.communicate(timeout=120)[0]
            print(output)
        return [process.returncode for process in launched]
    finally:
        for process in launched:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two processes on one node."""
    folder = tmp_path_factory.mktemp("two")
    assert end(torchrun(folder, "--standalone", "--nproc-per-node=2")) == [0]
    return folder


def test_two_processes_learn_what_one_does(tmp_path: Path, two_processes: Path) -> None:
    # Without batch normalisation and dropout, only the order of sums differs.
    loop.train(Contrastive(make_towers(), TOY, ALONE), make_feed(), TOY, 0, tmp_path, ALONE)
    one, two = curve(tmp_path), curve(two_processes)
    assert two.index.tolist() == one.index.tolist() == [1, 2, 3, 4, 5, 6]
    assert two.tolist() == pytest.approx(one.tolist(), rel=1e-5)
    for name, value in final_weights(tmp_path).items():
        torch.testing.assert_close(final_weights(two_processes)[name], value, rtol=1e-3, atol=1e-4)


def test_a_run_of_two_processes_may_go_on_with_one(tmp_path: Path, two_processes: Path) -> None:
    # The devices of the two are smaller too: they take 3 of their 4 images at a time.
    toy = ["--dies-after=4", "--device-batch=3"]
    killed = torchrun(tmp_path, "--standalone", "--nproc-per-node=2", toy=toy)
    assert end(killed) != [0]
    state = load_state(tmp_path / STATE)
    assert state is not None
    assert state["step"] == 3
    files.remove_parts(tmp_path)
    # Another start shows that everything comes from the state.
    loop.train(Contrastive(make_towers(5), TOY, ALONE), make_feed(), TOY, 0, tmp_path, ALONE)
    assert contents(tmp_path).keys() == contents(two_processes).keys()
    assert curve(tmp_path).index.tolist() == [1, 2, 3, 4, 5, 6]
    assert curve(tmp_path).tolist() == pytest.approx(curve(two_processes).tolist(), rel=1e-5)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port


STATIC = "--node-rank={node} --master-addr=127.0.0.1 --master-port={port}"
C10D = "--rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:{port} --rdzv-id=toy --local-addr=127.0.0.1"


@pytest.mark.parametrize("rendezvous", [STATIC, C10D], ids=["static", "c10d"])
def test_two_nodes_learn_what_two_processes_of_one_do(
    tmp_path: Path, two_processes: Path, rendezvous: str
) -> None:
    port = free_port()
    nodes = [
        torchrun(
            tmp_path,
            "--nnodes=2",
            "--nproc-per-node=1",
            *rendezvous.format(node=node, port=port).split(),
        )
        for node in (0, 1)
    ]
    assert end(*nodes) == [0, 0]
    found, expected = contents(tmp_path), contents(two_processes)
    assert found.keys() == expected.keys()
    assert found == expected
