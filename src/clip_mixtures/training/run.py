"""One run from a mixture's rows to published checkpoints, in scratch space until it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clip_mixtures.files import atomic_write_json, read_text, remove_parts, sha256_file
from clip_mixtures.index import Index, Rows, read_index
from clip_mixtures.mixtures.captions import captions_of
from clip_mixtures.mixtures.spec import DOMAINS, Mixture
from clip_mixtures.mixtures.store import read_mixture
from clip_mixtures.scratch import end_with_parent, exclusive
from clip_mixtures.training import loop
from clip_mixtures.training.augmentation import Augmentation
from clip_mixtures.training.clip import Contrastive
from clip_mixtures.training.config import Recipe, SupervisedConfig, TrainConfig, per_process_batch
from clip_mixtures.training.data import fingerprint, pack_rows, source_hash, tokenize
from clip_mixtures.training.feed import DecodedFeed, PackedFeed, places_of
from clip_mixtures.training.layout import CHECKPOINTS, CURVES, FACTS, STATE
from clip_mixtures.training.memory import device_batch
from clip_mixtures.training.models import ClipModel, Normalisation, create_clip
from clip_mixtures.training.precision import autocast
from clip_mixtures.training.processes import (
    Processes,
    decoding_workers,
    from_first,
    join_processes,
    leave_processes,
    wait_for_all,
)
from clip_mixtures.training.supervised import (
    NO_LABEL,
    Supervised,
    create_classifier,
    labels_of,
)

_PACKED = "images-{}.uint8"
# What, of this package, decides what a run computes.
_DECIDING_SOURCES = (
    "training",
    "mixtures",
    "corpora/captions.py",
    "corpora/classes.py",
    "corpora/imagenet_sketch.py",
    "corpora/data",
    "archives.py",
    "images.py",
    "index.py",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that decides the result of a run.

    Attributes:
        name: of the run, for its folders.
        architecture: an open_clip name, or one of this project's own.
        config: the recipe, of CLIP or of a supervised classifier.
        seed: of weights, order, augmentation and dropout.
        mixture: the folder of the mixture that it trains on.
        data_version: whatever changes when the images do.
    """

    name: str
    architecture: str
    config: TrainConfig | SupervisedConfig
    seed: int
    mixture: Path
    data_version: str = ""

    def scratch_name(self) -> str:
        """Return a folder name that no other run, data or version of this code would use.

        Raises:
            UserError: when the mixture or an index is missing, or the index is another one.
        """
        stored = read_mixture(self.mixture)
        files = [self.mixture / "train.parquet", *stored.indices.values()]
        package = Path(__file__).parents[1]
        code = source_hash(*(package / name for name in _DECIDING_SOURCES))
        wanted = dataclasses.asdict(stored.mixture)
        decides = (self.architecture, self.config, self.seed, wanted, self.data_version)
        versions = (code, torch.__version__)
        return f"{self.name}-{fingerprint(*decides, *versions, *map(sha256_file, files))}"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that a run trains with.

    Attributes:
        objective: the network and what it learns by.
        feed: where its images come from.
        device_batch: how many images the device takes at a time.
        image_size: side of the square input, in pixels.
        left_out: images without a label.
    """

    objective: Contrastive | Supervised
    feed: PackedFeed | DecodedFeed
    device_batch: int
    image_size: int
    left_out: int


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """The rows of a mixture with what they are to be learnt as.

    Attributes:
        parts: an index and the row numbers taken from it, in training order.
        targets: (N, ...) integers, token ids or labels.
        left_out: images without a target.
    """

    parts: list[tuple[Index, Rows]]
    targets: torch.Tensor
    left_out: int = 0


def train_run(run: Run, scratch_root: Path, out: Path, labels: Mapping[str, Any]) -> None:
    """Train a run, or go on with one that was killed, and publish it.

    Called by every process that torchrun starts; the first one writes.

    Args:
        run: what to train.
        scratch_root: folder for unfinished runs, and for finished ones until they are forgotten.
        out: folder that appears whole at the end: checkpoints, loss curves, facts.
        labels: what else to write among the facts.

    Raises:
        UserError: for unreadable inputs, a batch that does not fit, a loss that is not finite, or a
            scratch folder that another process holds.
    """
    end_with_parent()
    processes = join_processes()
    scratch = scratch_root / run.scratch_name()
    with exclusive(scratch) if processes.is_first else contextlib.nullcontext():
        if processes.is_first:
            remove_parts(scratch)
        # Finished, and then lost on the way to whoever asked for it: only to be published again.
        if not from_first((scratch / FACTS).is_file(), processes):
            _finish(run, scratch, labels, processes)
        if processes.is_first:
            publish(scratch, out)
    leave_processes(processes)


def _finish(run: Run, scratch: Path, labels: Mapping[str, Any], processes: Processes) -> None:
    """Train a run to its end; its facts are written last.

    All of it stays in scratch until whoever asked for the run has it on record: DVC, killed before
    it has, removes the result and runs the stage again.
    """
    made = prepare(run, scratch, processes)
    where = {
        "processes": processes.world_size,
        "device": processes.device.type,
        "device_batch": made.device_batch,
        "versions": _versions(processes.device),
    }
    attempts = _attempts(scratch, where) if processes.is_first else []
    facts = loop.train(
        made.objective, made.feed, run.config, run.seed, scratch, processes, made.device_batch
    )
    if processes.is_first:
        recipe = {"architecture": run.architecture, **dataclasses.asdict(run.config)}
        counts = {"train_images": len(made.feed), "without_label": made.left_out}
        # Batch normalisation saw what a device takes at a time, in each of these.
        changed = {"attempts": attempts} if len(attempts) > 1 else {}
        everything = {**labels, **where, **changed, **counts, **facts, "recipe": recipe}
        atomic_write_json(scratch / FACTS, everything)
        for spent in (*scratch.glob(_PACKED.format("*")), scratch / STATE):
            spent.unlink(missing_ok=True)


def _versions(device: torch.device) -> dict[str, str]:
    """Return what, beside this project, decides the last digits of a run."""
    found = {name: version(name) for name in ("torch", "torchvision", "open_clip_torch")}
    if device.type == "cuda":
        found |= {"CUDA": str(torch.version.cuda), "GPU": torch.cuda.get_device_name(device)}
    return found


def _attempts(scratch: Path, where: dict[str, Any]) -> list[dict[str, Any]]:
    """Note where a run goes on; return the different places that it was in, in turn."""
    path = scratch / "attempts.json"
    before = json.loads(read_text(path)) if path.is_file() else []
    attempts: list[dict[str, Any]] = before if before[-1:] == [where] else [*before, where]
    atomic_write_json(path, attempts)
    return attempts


def prepare(run: Run, scratch: Path, processes: Processes) -> Prepared:
    """Make all that a run trains with: the network, what it learns by, and where images come from.

    Args:
        run: what to train.
        scratch: folder for packed images; every process gives the same.
        processes: see :func:`processes.join_processes`.

    Raises:
        UserError: for unreadable inputs, or a batch that does not fit.
    """
    if run.config.precision == "fp32":
        # By default convolutions on a GPU round to 10 bits.
        torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(run.seed)
    model = create_clip(run.architecture, processes.device)
    objective, chosen = _objective(run, model, processes)
    feed = _feed(run.config, model, chosen, scratch, processes)
    local = per_process_batch(run.config.global_batch_size, processes.world_size)
    trial = _trial(objective, model, run.config.precision, processes)
    at_once = device_batch(trial, local, processes, _bytes_beside(objective, model, local))
    objective.network.zero_grad(set_to_none=True)
    return Prepared(objective, feed, at_once, model.image_size, chosen.left_out)


def _objective(
    run: Run, model: ClipModel, processes: Processes
) -> tuple[Contrastive | Supervised, _Chosen]:
    """Make what is learnt, and read what it is learnt from."""
    stored = read_mixture(run.mixture)
    rows_of = stored.rows("train")
    indices = {name: read_index(stored.indices[name]) for name in rows_of}
    if isinstance(run.config, TrainConfig):
        chosen = _captioned(indices, rows_of, stored.mixture, model)
        return Contrastive(model.network, run.config, processes), chosen
    names = indices[DOMAINS].class_names()
    classifier = create_classifier(model, len(names)).to(processes.device)
    return Supervised(classifier, run.config), _labelled(indices, rows_of, names)


def _captioned(
    indices: Mapping[str, Index], rows_of: Mapping[str, Rows], mixture: Mixture, model: ClipModel
) -> _Chosen:
    captions = [
        caption
        for name, rows in rows_of.items()
        for caption in captions_of(name, indices[name].frame.iloc[rows], mixture)
    ]
    parts = [(indices[name], rows) for name, rows in rows_of.items()]
    return _Chosen(parts, tokenize(captions, model.tokenizer))


def _labelled(
    indices: Mapping[str, Index], rows_of: Mapping[str, Rows], names: list[str]
) -> _Chosen:
    parts, targets, left_out = [], [], 0
    for name, rows in rows_of.items():
        labels = labels_of(name, indices[name].frame.iloc[rows], names)
        has_label = labels != NO_LABEL
        parts.append((indices[name], rows[has_label]))
        targets.append(labels[has_label])
        left_out += int((~has_label).sum())
    return _Chosen(parts, torch.from_numpy(np.concatenate(targets)), left_out)


def _feed(
    config: Recipe, model: ClipModel, chosen: _Chosen, scratch: Path, processes: Processes
) -> PackedFeed | DecodedFeed:
    augmentation = Augmentation(scale=(config.crop_scale, 1.0), flip=config.flip)
    normalisation = Normalisation(model.mean, model.std, processes.device)
    if config.images == "decoded":
        return DecodedFeed(
            places_of(chosen.parts),
            chosen.targets,
            model.image_size,
            augmentation,
            config.decoder,
            normalisation,
            decoding_workers(),
        )
    packed = scratch / _PACKED.format(model.image_size)
    if processes.is_first_here:
        pack_rows(chosen.parts, model.image_size, packed, write=True)
    wait_for_all(processes)
    images = pack_rows(chosen.parts, model.image_size, packed, write=False)
    return PackedFeed(images, chosen.targets, augmentation, normalisation)


def _trial(
    objective: Contrastive | Supervised, model: ClipModel, precision: str, processes: Processes
) -> Any:
    """Return what is tried to see how many images fit."""
    shape = (3, model.image_size, model.image_size)

    def forward(count: int) -> torch.Tensor:
        images = torch.zeros((count, *shape), device=processes.device)
        with autocast(precision, processes.device):
            return objective.trial(images)

    return forward


def _bytes_beside(objective: Contrastive | Supervised, model: ClipModel, local: int) -> int:
    """Return what a step takes beside a pass: Adam's two numbers a weight, and a share's images.

    These are there four times while a batch is made: as pixels, cropped, less the mean, normalised.
    """
    weights = sum(parameter.nbytes for parameter in objective.network.parameters())
    return 2 * weights + 4 * local * 3 * model.image_size**2 * 4


def publish(scratch: Path, out: Path) -> None:
    """Copy what a finished run leaves (checkpoints, curves, facts) to its place, all at once."""
    building = out.with_name(f".{out.name}-publishing")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    # Copied, not moved: a kill in here must leave scratch whole for the next attempt.
    for name in (CHECKPOINTS, CURVES):
        shutil.copytree(scratch / name, building / name)
    shutil.copy2(scratch / FACTS, building / FACTS)
    if out.exists():
        shutil.rmtree(out)
    os.replace(building, out)
