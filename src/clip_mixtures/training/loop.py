"""The loop that every kind of training shares: order, augmentation, state, curves, faults.

Everything random in a step follows from the run's seed and the step's number, so a run that is
killed anywhere and started again goes on with the same order, the same crops and the same dropout,
and on the CPU ends with the same bits. The global batch does not depend on the number of processes,
nor on how many images a device can hold at a time: a larger batch is accumulated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from dvclive import Live
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from clip_mixtures.errors import UserError
from clip_mixtures.training.checkpoints import (
    load_state,
    remove_checkpoints,
    save_checkpoint,
    save_state,
)
from clip_mixtures.training.config import Recipe, per_process_batch
from clip_mixtures.training.layout import CHECKPOINTS, CURVES, STATE
from clip_mixtures.training.precision import Precision
from clip_mixtures.training.processes import (
    Processes,
    from_first,
    mean_over_processes,
    wait_for_all,
)

# Points on the loss curve of a whole run. The state is saved at points, where the loss was checked,
# if the last time was longer ago than this: a kill costs a two-hundredth of a run, or this much.
CURVE_POINTS = 200
SECONDS_BETWEEN_STATES = 30.0
# Above this share of the time spent waiting for images, the input is what limits training.
_MUCH_WAITING = 0.2


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a network is given at a time.

    Attributes:
        images: (B, 3, S, S) float32, augmented and normalised, on the device.
        targets: (B, context length) int64 token ids, or (B,) int64 labels, on the device.
    """

    images: torch.Tensor
    targets: torch.Tensor


class Objective(Protocol):
    """What is learnt: the network, and what a step does with it.

    Attributes:
        network: the network whose weights are trained and saved.
    """

    network: torch.nn.Module

    def optimizer(self) -> torch.optim.Optimizer:
        """Make the optimiser."""
        ...

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the rate of a step, 0-based."""
        ...

    def backward(
        self, network: torch.nn.Module, parts: Sequence[Batch], precision: Precision
    ) -> torch.Tensor:
        """Leave the gradients of one global batch and return this process' loss, detached.

        Args:
            network: the network, wrapped where there are several processes.
            parts: this process' share, in pieces that fit the device.
            precision: autocast and scaling.
        """
        ...

    def after_step(self) -> None:
        """Do what must follow every step."""
        ...

    def facts(self) -> dict[str, float]:
        """Return what else belongs on the curves."""
        ...


class Feed(Protocol):
    """Where batches come from."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batches(self, rows: torch.Tensor, draws: torch.Tensor) -> Iterator[Batch]:
        """Yield the batches of some steps.

        Args:
            rows: (steps, b) int64 row numbers, this process' share of every step.
            draws: (steps, 5, b) float32 in [0, 1), what augmentation is made of.
        """
        ...


def train(
    objective: Objective,
    feed: Feed,
    recipe: Recipe,
    seed: int,
    scratch: Path,
    processes: Processes,
    device_batch: int | None = None,
) -> dict[str, Any]:
    """Train, leaving checkpoints and loss curves in ``scratch``.

    Args:
        objective: with freshly made weights, on the process' device.
        feed: the images and their targets.
        recipe: epochs, global batch, precision and what to keep.
        seed: of order, augmentation and dropout.
        scratch: folder of this run and no other; a state found in it is continued.
        processes: see :func:`processes.join_processes`.
        device_batch: how many images the device takes at a time; a process' share of a batch is
            accumulated in as many pieces as that needs. None for all of it at once.

    Returns:
        Facts of the run: steps, images seen, final loss.

    Raises:
        UserError: when the batch does not fit the processes or the data, the loss is not finite, or
            the disk is full.
    """
    local = per_process_batch(recipe.global_batch_size, processes.world_size)
    steps_per_epoch = len(feed) // recipe.global_batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"global_batch_size: {recipe.global_batch_size} is more than the {len(feed)} "
            "training images; make it smaller"
        )
    run = _Run(objective, feed, recipe, seed, steps_per_epoch, local, processes)
    run.device_batch = min(device_batch or local, local)
    run.resume(scratch)
    run.spread()
    if run.step == 0 and processes.is_first:
        save_checkpoint(scratch / CHECKPOINTS, 0, objective.network)
    with _progress(run) as bar, _curves(scratch, run) as live:
        while run.step < run.total_steps:
            for point in run.epoch(bar, scratch):
                _log(live, point)
            run.save_epoch(scratch)
    wait_for_all(processes)
    return {
        "steps": run.total_steps,
        "images_seen": run.total_steps * recipe.global_batch_size,
        **{name: round(value, 6) for name, value in run.history[-1].items() if name in _FINAL},
    }


_FINAL = ("loss", "logit_scale", "training_accuracy")


class _Run:
    """Network, optimiser and position of one run."""

    def __init__(
        self,
        objective: Objective,
        feed: Feed,
        recipe: Recipe,
        seed: int,
        steps_per_epoch: int,
        local: int,
        processes: Processes,
    ) -> None:
        self.objective, self.feed, self.recipe, self.seed = objective, feed, recipe, seed
        self.steps_per_epoch, self.local, self.processes = steps_per_epoch, local, processes
        self.total_steps = recipe.epochs * steps_per_epoch
        self.device_batch = local
        self.step = 0
        self.history: list[dict[str, float]] = []
        # Losses since the last point on the curve; on the device, so that no step waits for them.
        self.losses: list[torch.Tensor] = []
        self.optimizer = objective.optimizer()
        self.precision = Precision(recipe.precision, processes.device)
        self.waiting = self.working = 0.0
        self.saved_at = time.monotonic()
        self.network = objective.network

    def spread(self) -> None:
        """Wrap the network for several processes; all of them take the first's weights."""
        if self.processes.world_size > 1:
            self.network = DistributedDataParallel(self.objective.network)

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "network": self.objective.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision.state(),
            "history": self.history,
        }

    def resume(self, scratch: Path) -> None:
        """Go on from a saved state, if there is one; only the first process needs to see it."""
        state = load_state(scratch / STATE) if self.processes.is_first else None
        state = from_first(state, self.processes)
        if state is None:
            return
        self.objective.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.load(state["precision"])
        self.step = int(state["step"])
        self.history = state["history"]
        if self.processes.is_first:
            print(f"continuing after step {self.step} of {self.total_steps}", flush=True)

    def epoch(self, bar: tqdm[Any], scratch: Path) -> Iterator[dict[str, float]]:
        """Train to the end of the epoch, yielding a point of the curves every so many steps."""
        epoch, first = divmod(self.step, self.steps_per_epoch)
        rows, draws = self._plan(epoch, first)
        every = max(self.total_steps // CURVE_POINTS, 1)
        self.network.train()
        self.waiting = self.working = 0.0
        batches = self.feed.batches(rows, draws)
        before = time.perf_counter()
        for number, batch in enumerate(batches):
            ready = time.perf_counter()
            self._train_on(batch)
            bar.update()
            last = self.step % self.steps_per_epoch == 0
            # The end of an epoch is always a point: no checkpoint is kept without its loss checked.
            if self.step % every == 0 or last:
                yield self._point(bar)
                if not last:
                    self.save_state(scratch)
            # The first wait of an epoch is for workers to start, or to fill their queues.
            if number:
                self.waiting += ready - before
                self.working += time.perf_counter() - ready
            before = time.perf_counter()
        self._warn_of_waiting()

    def _plan(self, epoch: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this process' rows (steps, b) and draws (steps, 5, b) of the rest of an epoch."""
        size, rank = self.recipe.global_batch_size, self.processes.rank
        order = torch.randperm(len(self.feed), generator=_generator(self.seed, "order", epoch))
        rows = order[: self.steps_per_epoch * size].view(self.steps_per_epoch, size)[first:]
        draws = torch.stack(
            [
                torch.rand((5, size), generator=_generator(self.seed, "augmentation", epoch, step))
                for step in range(first, self.steps_per_epoch)
            ]
        )
        mine = slice(rank * self.local, (rank + 1) * self.local)
        return rows[:, mine].contiguous(), draws[:, :, mine].contiguous()

    def _train_on(self, batch: Batch) -> None:
        rate = self.objective.learning_rate(self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Dropout draws from the global generators; every process has its own part of a batch.
        torch.manual_seed(_seed(self.seed, "dropout", self.step, self.processes.rank))
        self.optimizer.zero_grad(set_to_none=True)
        parts = _split(batch, self.device_batch)
        self.losses.append(self.objective.backward(self.network, parts, self.precision))
        self.precision.step(self.optimizer)
        self.objective.after_step()
        self.step += 1

    def _point(self, bar: tqdm[Any]) -> dict[str, float]:
        losses = mean_over_processes(torch.stack(self.losses).double(), self.processes)
        self._check_finite(losses)
        self.losses = []
        loss = float(losses.mean())
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        point = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "loss": loss,
            "learning_rate": self.objective.learning_rate(self.step - 1, self.steps_per_epoch),
            **self.objective.facts(),
        }
        self.history.append(point)
        return point

    def _check_finite(self, losses: torch.Tensor) -> None:
        wrong = (~torch.isfinite(losses)).nonzero()
        if len(wrong):
            place = int(wrong[0])
            step = self.step - len(losses) + place + 1
            raise UserError(
                f"loss is {float(losses[place])} at step {step}; the last good checkpoint is kept. "
                "Lower learning_rate or raise warmup_steps"
            )

    def save_state(self, scratch: Path) -> None:
        """Save the state, if the last time was long enough ago; only right after a point."""
        if time.monotonic() - self.saved_at < SECONDS_BETWEEN_STATES:
            return
        if self.processes.is_first:
            save_state(scratch / STATE, self.state())
        self.saved_at = time.monotonic()

    def save_epoch(self, scratch: Path) -> None:
        """Keep a checkpoint of the epoch that has ended, if it is one to keep, and the state."""
        epoch = self.step // self.steps_per_epoch
        last = epoch == self.recipe.epochs
        if not self.processes.is_first:
            return
        if last or epoch % self.recipe.checkpoint_every == 0:
            save_checkpoint(scratch / CHECKPOINTS, epoch, self.objective.network)
            remove_checkpoints(scratch / CHECKPOINTS, self.recipe.keep_last)
        if not last:
            self.save_state(scratch)

    def _warn_of_waiting(self) -> None:
        share = self.waiting / max(self.waiting + self.working, 1e-9)
        if share > _MUCH_WAITING and self.processes.is_first:
            print(
                f"warning: {100 * share:.0f} % of the time went into waiting for images; raise "
                "WORKERS, or use images: packed",
                file=sys.stderr,
                flush=True,
            )


def _split(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into pieces of at most ``size`` images, as even as can be."""
    pieces = math.ceil(len(batch.images) / size)
    images = batch.images.tensor_split(pieces)
    targets = batch.targets.tensor_split(pieces)
    return [Batch(*part) for part in zip(images, targets, strict=True)]


def _seed(*parts: object) -> int:
    """Return a seed that stands for its parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*parts))


def _progress(run: _Run) -> tqdm[Any]:
    return tqdm(
        total=run.total_steps,
        initial=run.step,
        desc="training",
        unit="step",
        disable=not run.processes.is_first,
        mininterval=1,
    )


@contextlib.contextmanager
def _curves(scratch: Path, run: _Run) -> Iterator[Live | None]:
    """Open a dvclive folder that holds exactly the history of this run.

    dvclive appends. After a kill its files may hold points that the resumed run computes again, so
    the folder is made anew from the history that the state carries.
    """
    if not run.processes.is_first:
        yield None
        return
    folder = scratch / CURVES
    shutil.rmtree(folder, ignore_errors=True)
    live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
    try:
        for point in run.history:
            _log(live, point)
        yield live
    finally:
        live.end()


def _log(live: Live | None, point: dict[str, float]) -> None:
    if live is None:
        return
    live.step = int(point["step"])
    for name, value in point.items():
        if name != "step":
            live.log_metric(name, value)
    live.make_summary()
