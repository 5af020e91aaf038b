"""Time the zero-shot evaluation of a run's 33 checkpoints against the published procedure.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --images 200 --checkpoints 4 --published 1   # a quick look

Checkpoints of sample-RN (weights at random) and 2,000 made JPEGs of 500 x 375. The published
procedure is restated here from its description, with open_clip's own parts: for every checkpoint,
both text classifiers (DomainNet's 345 classes and ImageNet's 1,000, 86 prompts each) are made anew,
class by class, from whole texts, and every image is decoded anew by Pillow and open_clip's
transform, 250 at a time. Every checkpoint costs it the same, so a few are timed and their mean is
multiplied. Ours does all of them in one pass, from taking the prompts apart to the table of
predictions. One thread, one process; times are the process' own, so that other programs on the
machine do not count, and the predictions are compared. Rows for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import open_clip
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from clip_mixtures.corpora.classes import domainnet_classes, imagenet_class_names
from clip_mixtures.corpora.generated import jpegs
from clip_mixtures.evaluation.predictions import EvaluationSet, decoded, predict_checkpoints
from clip_mixtures.evaluation.readers import ZeroShotReader
from clip_mixtures.evaluation.zero_shot import fill, published_templates
from clip_mixtures.training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from clip_mixtures.training.models import ClipModel, create_clip

ARCHITECTURE = "sample-RN"
_DIFFERENT = 200
_BATCH = 250

Predictions = npt.NDArray[np.int64]


class _Images(Dataset[torch.Tensor]):
    """Files through open_clip's transform."""

    def __init__(self, paths: Sequence[Path], model: ClipModel) -> None:
        self._paths = paths
        self._transform = open_clip.image_transform(
            model.image_size, is_train=False, mean=model.mean, std=model.std
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        pixels: torch.Tensor = self._transform(Image.open(self._paths[number]))
        return pixels


@torch.inference_mode()
def _published(
    model: ClipModel, checkpoint: Path, paths: Sequence[Path], names: dict[str, list[str]]
) -> tuple[Predictions, dict[str, float]]:
    """Evaluate one checkpoint; return predictions among the domains' classes, and seconds."""
    begun, start = time.perf_counter(), time.process_time()
    load_checkpoint(checkpoint, model.network)
    model.network.eval()
    weights = {name: _class_by_class(model, classes) for name, classes in names.items()}
    classified = time.process_time()
    found = []
    for pixels in DataLoader(_Images(paths, model), batch_size=_BATCH):
        features = model.network.encode_image(pixels, normalize=True)  # type: ignore[operator]
        found.append((features @ weights["domains"]).argmax(dim=1))
    end = time.process_time()
    seconds = {"text": classified - start, "images": end - classified}
    seconds["clock"] = time.perf_counter() - begun
    return torch.cat(found).numpy(), seconds


def _class_by_class(model: ClipModel, classes: Sequence[str]) -> torch.Tensor:
    columns = []
    for name in classes:
        tokens = model.tokenizer([fill(template, name) for template in published_templates()])
        features = model.network.encode_text(tokens, normalize=True)  # type: ignore[operator]
        mean = features.mean(dim=0)
        columns.append(mean / mean.norm())
    return torch.stack(columns, dim=1)


def _ours(
    checkpoints: dict[int, Path], images: EvaluationSet, names: dict[str, list[str]]
) -> tuple[pd.DataFrame, float, float]:
    begun, start = time.perf_counter(), time.process_time()
    model = create_clip(ARCHITECTURE)
    reader = ZeroShotReader(model, names, published_templates())
    portions = decoded(images, model.image_size)
    table = predict_checkpoints(reader, checkpoints, images, portions, progress=False)
    return table, time.process_time() - start, time.perf_counter() - begun


def _write_images(folder: Path, count: int) -> EvaluationSet:
    pictures = jpegs(min(_DIFFERENT, count))
    paths = [f"{number:05}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        (folder / path).write_bytes(pictures[number % len(pictures)])
    labels = pd.array(np.arange(count) % len(domainnet_classes()), dtype="Int32")
    frame = pd.DataFrame({"path": paths, "domain": "real", "class_id": labels, "archive": None})
    return EvaluationSet("domains", frame, folder)


def _write_checkpoints(folder: Path, count: int) -> dict[int, Path]:
    for epoch in range(count):
        torch.manual_seed(epoch)
        save_checkpoint(folder, epoch, create_clip(ARCHITECTURE).network)
    return list_checkpoints(folder)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--checkpoints", type=int, default=33)
    parser.add_argument("--published", type=int, default=3, help="checkpoints timed as published")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = {
        "domains": [entry.name for entry in domainnet_classes()],
        "imagenet": list(imagenet_class_names()),
    }
    with tempfile.TemporaryDirectory() as name:
        images = _write_images(Path(name), args.images)
        checkpoints = _write_checkpoints(Path(name) / "checkpoints", args.checkpoints)
        model = create_clip(ARCHITECTURE)
        # The compiled loops are kept from one run of the project to the next.
        next(decoded(images, model.image_size, portion_bytes=1))
        table, seconds, clock = _ours(checkpoints, images, names)
        timed = dict(list(checkpoints.items())[:: -(-args.checkpoints // args.published)])
        paths = [images.root / path for path in images.frame["path"]]
        published = {epoch: _published(model, path, paths, names) for epoch, path in timed.items()}
    same = np.concatenate(
        [
            found == table.loc[table["epoch"] == epoch, "prediction"].to_numpy()
            for epoch, (found, _) in published.items()
        ]
    )
    parts = {
        part: np.mean([each[part] for _, each in published.values()]) for part in ("text", "images")
    }
    published_clock = args.checkpoints * parts.pop("clock")
    whole = args.checkpoints * sum(parts.values())
    print(
        f"{args.checkpoints} checkpoints of {ARCHITECTURE}, {args.images} images, "
        f"{len(published_templates()) * sum(map(len, names.values())):,} prompts; "
        f"{100 * same.mean():.2f} % of {same.size:,} predictions are the same "
        f"({table['prediction'].nunique()} different ones)\n"
    )
    print("| procedure | a checkpoint | all | ratio |\n| --- | ---: | ---: | ---: |")
    title = (
        f"published procedure (text {parts['text']:.1f} s, images {parts['images']:.1f} s; "
        f"{len(published)} timed)"
    )
    print(f"| {title} | {whole / args.checkpoints:.1f} s | {whole:,.0f} s | 1.0 |")
    print(
        f"| ours, all in one pass | {seconds / args.checkpoints:.2f} s | {seconds:,.0f} s "
        f"| {whole / seconds:.1f} |"
    )
    print(
        f"\nBy the clock, with whatever else ran: {published_clock:,.0f} s and {clock:,.0f} s, "
        f"ratio {published_clock / clock:.1f}"
    )


if __name__ == "__main__":
    main()
