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

from clip_mixtures.files import atomic_write_json, sha256_file
from clip_mixtures.index import read_index
from clip_mixtures.mixtures.build import read_rows
from clip_mixtures.training import clip
from clip_mixtures.training.config import TrainConfig
from clip_mixtures.training.data import (
    TrainingSet,
    captions_of,
    fingerprint,
    pack_rows,
    source_hash,
    tokenize,
)
from clip_mixtures.training.models import ClipModel, create_clip
from clip_mixtures.training.scratch import end_with_parent, exclusive

FACTS = "training.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that decides the result of a run.

    Attributes:
        name: of the run, for its folders.
        architecture: an open_clip name, or one of this project's own.
        config: the recipe.
        seed: of weights, order and augmentation.
        captions: "standard" or "aligned".
        selection: the mixture's rows (Parquet).
        indices: index name, as in the selection, to index file.
    """

    name: str
    architecture: str
    config: TrainConfig
    seed: int
    captions: str
    selection: Path
    indices: Mapping[str, Path]

    def scratch_name(self) -> str:
        """Return a folder name that no other run, and no other version of the code, would use."""
        files = [self.selection, *self.indices.values()]
        code = source_hash(Path(__file__).parent)
        decides = (self.architecture, self.config, self.seed, self.captions, torch.__version__)
        return f"{self.name}-{fingerprint(*decides, code, *map(sha256_file, files))}"


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
        torch.manual_seed(run.seed)
        model = create_clip(run.architecture, processes.device)
        data = _load(run, model, scratch, processes)
        facts = clip.train(model, data, run.config, run.seed, scratch, processes)
        if processes.is_first:
            recipe = {"architecture": run.architecture, **dataclasses.asdict(run.config)}
            everything = {**labels, "train_images": len(data), **facts, "recipe": recipe}
            atomic_write_json(scratch / FACTS, everything)
            publish(scratch, out)
            shutil.rmtree(scratch)
    clip.leave_processes(processes)


def _load(run: Run, model: ClipModel, scratch: Path, processes: clip.Processes) -> TrainingSet:
    indices = {name: read_index(path) for name, path in run.indices.items()}
    parts = [(indices[name], rows) for name, rows in read_rows(run.selection).items()]
    packed = scratch / f"images-{model.image_size}.uint8"
    if processes.is_first:
        pack_rows(parts, model.image_size, packed, write=True)
    clip.wait_for_all(processes)
    captions = [
        caption
        for index, rows in parts
        for caption in captions_of(index.frame.iloc[rows], run.captions)
    ]
    images = pack_rows(parts, model.image_size, packed, write=False)
    return TrainingSet(images, tokenize(captions, model.tokenizer))


def publish(scratch: Path, out: Path) -> None:
    """Move what a finished run leaves (checkpoints, curves, facts) to its place, all at once."""
    building = out.with_name(f".{out.name}-publishing")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    for name in (clip.CHECKPOINTS, clip.CURVES, FACTS):
        # Scratch may be another file system, so this may be a copy.
        shutil.move(scratch / name, building / name)
    if out.exists():
        shutil.rmtree(out)
    os.replace(building, out)
