"""One run from a mixture's rows to published checkpoints, in scratch space until it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clip_mixtures.files import atomic_write_json, remove_parts, sha256_file
from clip_mixtures.index import read_index
from clip_mixtures.mixtures.captions import captions_of
from clip_mixtures.mixtures.store import read_mixture
from clip_mixtures.scratch import end_with_parent, exclusive
from clip_mixtures.training import clip
from clip_mixtures.training.config import TrainConfig
from clip_mixtures.training.data import (
    TrainingSet,
    fingerprint,
    pack_rows,
    source_hash,
    tokenize,
)
from clip_mixtures.training.models import ClipModel, create_clip

FACTS = "training.json"
# What, of this package, decides what a run computes.
_DECIDING_SOURCES = (
    "training",
    "mixtures",
    "corpora/captions.py",
    "corpora/classes.py",
    "corpora/imagenet_sketch.py",
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
        config: the recipe.
        seed: of weights, order and augmentation.
        mixture: the folder of the mixture that it trains on.
        data_version: whatever changes when the images do.
    """

    name: str
    architecture: str
    config: TrainConfig
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


def train_run(run: Run, scratch_root: Path, out: Path, labels: Mapping[str, Any]) -> None:
    """Train a run, or go on with one that was killed, and publish it.

    Called by every process that torchrun starts; the first one writes.

    Args:
        run: what to train.
        scratch_root: folder for unfinished runs.
        out: folder that appears whole at the end: checkpoints, loss curves, facts.
        labels: what else to write among the facts.

    Raises:
        UserError: for unreadable inputs, a batch that does not fit, a loss that is not finite, or a
            scratch folder that another process holds.
    """
    end_with_parent()
    processes = clip.join_processes()
    scratch = scratch_root / run.scratch_name()
    with exclusive(scratch) if processes.is_first else contextlib.nullcontext():
        if processes.is_first:
            remove_parts(scratch)
        torch.manual_seed(run.seed)
        model = create_clip(run.architecture, processes.device)
        data = _load(run, model, scratch, processes)
        facts = clip.train(model, data, run.config, run.seed, scratch, processes)
        if processes.is_first:
            recipe = {"architecture": run.architecture, **dataclasses.asdict(run.config)}
            where = {"processes": processes.world_size, "device": processes.device.type}
            everything = {**labels, **where, "train_images": len(data), **facts, "recipe": recipe}
            atomic_write_json(scratch / FACTS, everything)
            publish(scratch, out)
            # First the state, so that a folder that is only half removed is never continued.
            (scratch / clip.STATE).unlink(missing_ok=True)
            shutil.rmtree(scratch)
    clip.leave_processes(processes)


def _load(run: Run, model: ClipModel, scratch: Path, processes: clip.Processes) -> TrainingSet:
    stored = read_mixture(run.mixture)
    rows_of = stored.rows("train")
    indices = {name: read_index(stored.indices[name]) for name in rows_of}
    parts = [(indices[name], rows) for name, rows in rows_of.items()]
    packed = scratch / f"images-{model.image_size}.uint8"
    if processes.is_first:
        pack_rows(parts, model.image_size, packed, write=True)
    clip.wait_for_all(processes)
    captions = [
        caption
        for name, rows in rows_of.items()
        for caption in captions_of(name, indices[name].frame.iloc[rows], stored.mixture)
    ]
    images = pack_rows(parts, model.image_size, packed, write=False)
    return TrainingSet(images, tokenize(captions, model.tokenizer))


def publish(scratch: Path, out: Path) -> None:
    """Copy what a finished run leaves (checkpoints, curves, facts) to its place, all at once."""
    building = out.with_name(f".{out.name}-publishing")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    # Copied, not moved: a kill in here must leave scratch whole for the next attempt.
    for name in (clip.CHECKPOINTS, clip.CURVES):
        shutil.copytree(scratch / name, building / name)
    shutil.copy2(scratch / FACTS, building / FACTS)
    if out.exists():
        shutil.rmtree(out)
    os.replace(building, out)
