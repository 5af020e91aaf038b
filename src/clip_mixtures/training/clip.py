"""Contrastive training of CLIP on image-text pairs (paper section 3.3).

One process or many (torchrun): each takes its slice of a global batch that does not depend on
their number, and the loss is open_clip's, local with gathered features that carry gradients.
A killed run goes on from its last saved state and, on the CPU, ends with the same bits as one that
was never interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from dvclive import Live
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from clip_mixtures.errors import UserError
from clip_mixtures.training.augmentation import Augmentation, apply_maps
from clip_mixtures.training.checkpoints import load_state, save_checkpoint, save_state
from clip_mixtures.training.config import TrainConfig, per_process_batch
from clip_mixtures.training.data import TrainingSet
from clip_mixtures.training.models import ClipModel, normalise, to_pixels

CHECKPOINTS, CURVES, STATE = "checkpoints", "curves", "state.pt"

# CLIP's cap on the logit scale, ln 100 (Radford et al. 2021, section 2.5).
MAX_LOGIT_SCALE = math.log(100)
# The state is saved at the end of an epoch, if the last time was longer ago than this: a kill costs
# an epoch, or this much where epochs are short.
SECONDS_BETWEEN_STATES = 30
# Points on the loss curve of a whole run.
CURVE_POINTS = 200


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: its number, 0..world_size-1.
        world_size: how many there are.
        device: what it computes on.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and shows progress."""
        return self.rank == 0


def join_processes() -> Processes:
    """Read torchrun's variables, choose the device, and join the others if there are any.

    Raises:
        UserError: when there are more processes than GPUs on a machine that has some.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= count:
            raise UserError(f"NPROC: more processes than the {count} GPUs; run with NPROC={count}")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if world_size > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        # The first process decodes the whole corpus while the others wait.
        distributed.init_process_group(backend, timeout=datetime.timedelta(hours=6))
    return Processes(rank, world_size, device)


def wait_for_all(processes: Processes) -> None:
    """Wait until every process is here."""
    if processes.world_size > 1:
        distributed.barrier()


def leave_processes(processes: Processes) -> None:
    """Leave the process group."""
    if processes.world_size > 1:
        distributed.destroy_process_group()


def train(
    model: ClipModel,
    data: TrainingSet,
    config: TrainConfig,
    seed: int,
    scratch: Path,
    processes: Processes,
) -> dict[str, Any]:
    """Train a model, leaving checkpoints and loss curves in ``scratch``.

    Args:
        model: with freshly made weights, on the process' device.
        data: image-text pairs.
        config: the recipe.
        seed: of order and augmentation.
        scratch: folder of this run and no other; a state found in it is continued.
        processes: see :func:`join_processes`.

    Returns:
        Facts of the run: steps, pairs seen, final loss and logit scale.

    Raises:
        UserError: when the batch does not fit the processes or the data, or the loss is not finite.
    """
    per_process_batch(config.global_batch_size, processes.world_size)
    steps_per_epoch = len(data) // config.global_batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"train.global_batch_size: {config.global_batch_size} is more than the {len(data)} "
            "training images; make it smaller"
        )
    trainer = _Trainer(model, data, config, seed, steps_per_epoch, processes)
    history = trainer.resume(scratch)
    if trainer.epoch == 0 and processes.is_first:
        save_checkpoint(scratch / CHECKPOINTS, 0, model.network)
    saved_at = time.monotonic()
    with _progress(trainer, processes) as bar, _curves(scratch, history, processes) as live:
        while trainer.epoch < config.epochs:
            for point in trainer.run_epoch(bar):
                history.append(point)
                _log(live, point)
            last = trainer.epoch == config.epochs
            if processes.is_first and (last or trainer.epoch % config.checkpoint_every == 0):
                save_checkpoint(scratch / CHECKPOINTS, trainer.epoch, model.network)
            if processes.is_first and time.monotonic() - saved_at > SECONDS_BETWEEN_STATES:
                save_state(scratch / STATE, trainer.state(history))
                saved_at = time.monotonic()
    wait_for_all(processes)
    steps = config.epochs * steps_per_epoch
    return {
        "steps": steps,
        "pairs_seen": steps * config.global_batch_size,
        "loss": round(history[-1]["loss"], 6),
        "logit_scale": round(history[-1]["logit_scale"], 6),
    }


class _Trainer:
    """Network, optimiser and position of one run."""

    def __init__(
        self,
        model: ClipModel,
        data: TrainingSet,
        config: TrainConfig,
        seed: int,
        steps_per_epoch: int,
        processes: Processes,
    ) -> None:
        self.model, self.data, self.config, self.seed = model, data, config, seed
        self.steps_per_epoch, self.processes = steps_per_epoch, processes
        self.epoch = 0
        self.total_steps = config.epochs * steps_per_epoch
        self.optimizer = make_optimizer(model.network, config)
        self.augmentation = Augmentation(scale=(config.crop_scale, 1.0), flip=config.flip)
        self.loss = open_clip.ClipLoss(
            local_loss=True,
            gather_with_grad=True,
            rank=processes.rank,
            world_size=processes.world_size,
        )
        self.logit_scale = model.network.get_parameter("logit_scale")
        self.network = model.network
        if processes.world_size > 1:
            self.network = DistributedDataParallel(model.network)

    def state(self, history: list[dict[str, float]]) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "network": self.model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": history,
        }

    def resume(self, scratch: Path) -> list[dict[str, float]]:
        state = load_state(scratch / STATE)
        if state is None:
            return []
        self.model.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = int(state["epoch"])
        if self.processes.is_first:
            print(f"continuing after epoch {self.epoch} of {self.config.epochs}", flush=True)
        history: list[dict[str, float]] = state["history"]
        return history

    def run_epoch(self, bar: tqdm[Any]) -> Iterator[dict[str, float]]:
        """Train one epoch, yielding a point of the loss curve every so many steps."""
        # Seeded by the epoch alone, so that a resumed run draws what an uninterrupted one would.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.data), generator=generator)
        size = self.config.global_batch_size
        every = max(self.total_steps // CURVE_POINTS, 1)
        self.network.train()
        losses: list[torch.Tensor] = []
        for number in range(self.steps_per_epoch):
            step = self.epoch * self.steps_per_epoch + number
            maps = self.augmentation.draw(size, generator)
            losses.append(self._step(step, order[number * size : (number + 1) * size], maps))
            bar.update()
            # The end of an epoch is always a point: no checkpoint is kept without its loss checked.
            if (step + 1) % every == 0 or number + 1 == self.steps_per_epoch:
                yield self._point(step, losses, bar)
                losses = []
        self.epoch += 1

    def _step(self, step: int, rows: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        mine = len(rows) // self.processes.world_size
        part = slice(self.processes.rank * mine, (self.processes.rank + 1) * mine)
        device = self.processes.device
        images, tokens = self.data.batch(rows[part])
        pixels = apply_maps(to_pixels(images.to(device, non_blocking=True)), maps[part])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.total_steps, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        features = self.network(normalise(pixels, self.model), tokens.to(device, non_blocking=True))
        loss: torch.Tensor = self.loss(*features[:3])
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        return loss.detach()

    def _point(self, step: int, losses: list[torch.Tensor], bar: tqdm[Any]) -> dict[str, float]:
        mean = torch.stack(losses).mean()
        if self.processes.world_size > 1:
            distributed.all_reduce(mean)
            mean /= self.processes.world_size
        loss = float(mean)
        if not math.isfinite(loss):
            raise UserError(
                f"loss is {loss} at step {step + 1}; the last good checkpoint is kept. "
                "Lower train.learning_rate or raise train.warmup_steps"
            )
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        return {
            "step": step + 1,
            "epoch": (step + 1) / self.steps_per_epoch,
            "loss": loss,
            "learning_rate": learning_rate(step, self.total_steps, self.config),
            "logit_scale": float(self.logit_scale.detach().exp()),
        }


def make_optimizer(network: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Make AdamW with decay on weights of two or more dimensions only.

    Gains, biases and the logit scale are left alone, as open_clip does.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the rate of a step (0-based): linear warm-up, then a half cosine down to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * done)) * config.learning_rate


def _progress(trainer: _Trainer, processes: Processes) -> tqdm[Any]:
    return tqdm(
        total=trainer.total_steps,
        initial=trainer.epoch * trainer.steps_per_epoch,
        desc="training",
        unit="step",
        disable=not processes.is_first,
        mininterval=1,
    )


@contextlib.contextmanager
def _curves(
    scratch: Path, history: list[dict[str, float]], processes: Processes
) -> Iterator[Live | None]:
    """Open a dvclive folder that holds exactly the history of this run.

    dvclive appends. After a kill its files may hold points that the resumed run computes again, so
    the folder is made anew from the history that the state carries.
    """
    if not processes.is_first:
        yield None
        return
    folder = scratch / CURVES
    shutil.rmtree(folder, ignore_errors=True)
    live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
    try:
        for point in history:
            _log(live, point)
        yield live
    finally:
        live.end()


def _log(live: Live | None, point: dict[str, float]) -> None:
    if live is None:
        return
    live.step = int(point["step"])
    for name in ("epoch", "loss", "learning_rate", "logit_scale"):
        live.log_metric(name, point[name])
    live.make_summary()
