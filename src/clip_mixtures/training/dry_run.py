"""Two steps of a recipe on a made-up corpus: whether a machine can train it, and what that takes.

Everything is built by the functions that a run is built by: network, tokenizer, objective,
optimiser, precision, and the feed with its workers. The first step warms up, the second is timed;
it has the same images, so its loss is the loss after the first step.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch

from clip_mixtures.corpora.generated import BASE
from clip_mixtures.index import BASE_PREFIX, Rows, read_index
from clip_mixtures.mixtures.spec import DOMAINS, Mixture
from clip_mixtures.mixtures.store import write_mixture
from clip_mixtures.training import loop
from clip_mixtures.training.checkpoints import checkpoint_path, load_checkpoint
from clip_mixtures.training.config import SupervisedConfig, TrainConfig, per_process_batch
from clip_mixtures.training.layout import CHECKPOINTS, CURVES
from clip_mixtures.training.precision import Precision
from clip_mixtures.training.processes import Processes, decoding_workers, wait_for_all
from clip_mixtures.training.run import Run, prepare

STEPS = 2
# Turns a checkpoint into its accuracy on some images.
Evaluate: TypeAlias = Callable[[Path], float]


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What was seen of a recipe.

    Attributes:
        architecture: its name.
        is_supervised: whether it is a classifier.
        parameters: weights that are trained.
        image_size: side of the square input, in pixels.
        precision: one of :data:`config.PRECISIONS`.
        global_batch: the global batch that was tried.
        process_batch: a process' share of it.
        device_batch: how many images the device takes at a time.
        pieces: in how many a share is accumulated.
        seconds: of the second step, from batch to new weights, in this process.
        input_seconds: that the second step's share took to be read, decoded and cropped.
        workers: processes that decode; each has a whole share to do. 0 for packed images.
        peak_bytes: most memory that was in use: of the GPU, or of this process on a CPU.
        checkpoint_bytes: size of a checkpoint on disk.
        loss_before: of the first step, in nats.
        loss_after: of the second step, in nats.
        accuracy: of the checkpoint after both, as evaluated.
    """

    architecture: str
    is_supervised: bool
    parameters: int
    image_size: int
    precision: str
    global_batch: int
    process_batch: int
    device_batch: int
    pieces: int
    seconds: float
    input_seconds: float
    workers: int
    peak_bytes: int
    checkpoint_bytes: int
    loss_before: float
    loss_after: float
    accuracy: float

    @property
    def images_per_second(self) -> float:
        """Images that all processes together train on in a second, where the input keeps up."""
        return self.global_batch / self.seconds

    @property
    def input_per_second(self) -> float:
        """Images that this process' workers together make ready in a second."""
        return self.process_batch / self.input_seconds * max(self.workers, 1)


def dry_run(
    architecture: str,
    recipe: TrainConfig | SupervisedConfig,
    global_batch: int,
    mixture: Mixture,
    indices: Mapping[str, Path],
    scratch: Path,
    processes: Processes,
    evaluate: Evaluate,
) -> DryRun | None:
    """Train two steps, save, load and evaluate.

    Args:
        architecture: what to train.
        recipe: how.
        global_batch: images a step, over all processes; what the recipe says, or fewer.
        mixture: says how images are captioned.
        indices: of a corpus by :func:`generated.write_generated` with that many images or more.
        scratch: a folder of this trial's own, the same for all processes.
        processes: see :func:`processes.join_processes`.
        evaluate: the checkpoint after the steps; by the first process.

    Returns:
        What was seen, in the first process; None in the others.

    Raises:
        UserError: for what would stop a run: an architecture, a batch, a loss that is not finite.
    """
    if processes.is_first:
        _write_mixture(scratch / "mixture", mixture, indices, global_batch)
    wait_for_all(processes)
    config = dataclasses.replace(
        recipe, epochs=STEPS, global_batch_size=global_batch, checkpoint_every=STEPS, keep_last=0
    )
    _reset_peak(processes.device)
    made = prepare(Run("dry-run", architecture, config, 0, scratch / "mixture"), scratch, processes)
    objective, feed = _TimedObjective(made.objective, processes.device), _TimedFeed(made.feed)
    loop.train(objective, feed, config, 0, scratch, processes, made.device_batch)
    peak = _peak(processes.device)
    if not processes.is_first:
        return None
    checkpoint = checkpoint_path(scratch / CHECKPOINTS, STEPS)
    _check_reloads(checkpoint, objective.network)
    losses = pd.read_csv(scratch / CURVES / "plots" / "metrics" / "loss.tsv", sep="\t")["loss"]
    share = per_process_batch(global_batch, processes.world_size)
    return DryRun(
        architecture=architecture,
        is_supervised=isinstance(recipe, SupervisedConfig),
        parameters=sum(p.numel() for p in objective.network.parameters() if p.requires_grad),
        image_size=made.image_size,
        precision=recipe.precision,
        global_batch=global_batch,
        process_batch=share,
        device_batch=made.device_batch,
        pieces=math.ceil(share / made.device_batch),
        seconds=objective.seconds[-1],
        input_seconds=feed.seconds[-1],
        workers=decoding_workers() if recipe.images == "decoded" else 0,
        peak_bytes=peak,
        checkpoint_bytes=checkpoint.stat().st_size,
        loss_before=float(losses.iloc[0]),
        loss_after=float(losses.iloc[-1]),
        accuracy=evaluate(checkpoint),
    )


def _write_mixture(
    folder: Path, mixture: Mixture, indices: Mapping[str, Path], images: int
) -> None:
    """Take as many images as a batch has, half of them from the base set."""
    base = f"{BASE_PREFIX}{BASE}"
    is_train = read_index(indices[DOMAINS]).frame["split"].to_numpy() == "train"
    none = np.empty(0, dtype=np.int64)
    train: dict[str, Rows] = {
        base: np.arange(images // 2, dtype=np.int64),
        DOMAINS: np.flatnonzero(is_train)[: images - images // 2].astype(np.int64),
    }
    splits = {"train": train, "validation": {base: none, DOMAINS: none}}
    write_mixture(folder, mixture, splits, indices)


class _TimedObjective:
    """An objective that notes how long steps take; see :class:`loop.Objective`."""

    def __init__(self, objective: loop.Objective, device: torch.device) -> None:
        self.network = objective.network
        self.seconds: list[float] = []
        self._objective, self._device = objective, device
        self._begun = 0.0

    def optimizer(self) -> torch.optim.Optimizer:
        return self._objective.optimizer()

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        return self._objective.learning_rate(step, steps_per_epoch)

    def backward(
        self, network: torch.nn.Module, parts: Sequence[loop.Batch], precision: Precision
    ) -> torch.Tensor:
        self._begun = self._now()
        return self._objective.backward(network, parts, precision)

    def after_step(self) -> None:
        self._objective.after_step()
        self.seconds.append(self._now() - self._begun)

    def facts(self) -> dict[str, float]:
        return self._objective.facts()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _TimedFeed:
    """A feed that notes how long it is waited for; see :class:`loop.Feed`."""

    def __init__(self, feed: loop.Feed) -> None:
        self.seconds: list[float] = []
        self._feed = feed

    def __len__(self) -> int:
        return len(self._feed)

    def batches(self, rows: torch.Tensor, draws: torch.Tensor) -> Iterator[loop.Batch]:
        begun = time.perf_counter()
        for batch in self._feed.batches(rows, draws):
            self.seconds.append(time.perf_counter() - begun)
            yield batch
            begun = time.perf_counter()


def _check_reloads(checkpoint: Path, network: torch.nn.Module) -> None:
    """Load a checkpoint over its network and see that nothing changes."""
    state = network.state_dict()
    before = {name: tensor.detach().clone() for name, tensor in state.items()}
    for tensor in state.values():
        tensor.zero_()
    load_checkpoint(checkpoint, network)
    changed = [
        name for name, tensor in network.state_dict().items() if (tensor != before[name]).any()
    ]
    if changed:
        raise RuntimeError(f"{checkpoint}: {changed[0]} is not what was saved")


def _reset_peak(device: torch.device) -> None:
    # What an earlier trial left behind is not this one's.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        # The C library gives memory back and the kernel counts the peak anew, where they can;
        # where not, the peak is that of all trials so far.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
