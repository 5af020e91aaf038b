"""Time what feeds the trainer against open_clip's CsvDataset, in one run, on one thread.

    pip install braceexpand webdataset   # which open_clip's own trainer wants
    python benchmarks/input_pipeline.py

400 JPEGs of 500 x 375 are made (smooth fields, shapes and noise; quality 90); every variant gives
224 x 224 training crops of area 0.9 to 1. Times are the process' own, and rounds are interleaved,
so that a noisy machine is noisy for all; the medians' ratios are what to read. Rows for
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip_train.data import CsvDataset
from PIL import Image

from clip_mixtures.corpora.generated import jpegs
from clip_mixtures.training.augmentation import DRAWS, Augmentation
from clip_mixtures.training.decoding import crop_to

SIZE = 224
_COUNT = 400
_CAPTION = "a photograph of something that somebody saw on a day in spring, number {}"


def _make(folder: Path) -> list[Path]:
    paths = [folder / f"{number:03}.jpg" for number in range(_COUNT)]
    for path, data in zip(paths, jpegs(_COUNT), strict=True):
        path.write_bytes(data)
    with open(folder / "list.csv", "w", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["filepath", "title"])
        rows.writerows([str(path), _CAPTION.format(number)] for number, path in enumerate(paths))
    return paths


def _variants(folder: Path, paths: list[Path]) -> dict[str, Callable[[int], object]]:
    transform = open_clip.image_transform(SIZE, is_train=True)
    theirs = CsvDataset(
        str(folder / "list.csv"), transform, "filepath", "title", "\t",
        tokenizer=open_clip.get_tokenizer("RN50"),
    )  # fmt: skip
    data = [path.read_bytes() for path in paths]
    draws = torch.rand((_COUNT, DRAWS), generator=torch.Generator().manual_seed(0)).tolist()
    augmentation = Augmentation(scale=(0.9, 1.0))
    packed = np.stack([np.asarray(Image.open(p).resize((SIZE, SIZE))) for p in paths])

    def decoded(decoder: str) -> Callable[[int], object]:
        return lambda i: crop_to(data[i], SIZE, augmentation, draws[i], decoder)

    return {
        "open_clip's CsvDataset": lambda i: theirs[i],
        "decoded, exact": decoded("exact"),
        "decoded, fast": decoded("fast"),
        "packed": lambda i: torch.from_numpy(packed[i].copy()),
    }


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        paths = _make(Path(name))
        size = sum(path.stat().st_size for path in paths) / len(paths)
        variants = _variants(Path(name), paths)
        seconds: dict[str, list[float]] = {title: [] for title in variants}
        for _ in range(args.rounds):
            for title, variant in variants.items():
                start = time.process_time()
                for number in range(_COUNT):
                    variant(number)
                seconds[title].append((time.process_time() - start) / _COUNT)
    base = statistics.median(seconds["open_clip's CsvDataset"])
    print(f"{_COUNT} JPEGs of 500 x 375, {size / 1000:.0f} kB each, median of {args.rounds}\n")
    print("| input | images/s per core | ratio |\n| --- | ---: | ---: |")
    for title, times in seconds.items():
        middle = statistics.median(times)
        print(f"| {title} | {1 / middle:,.0f} | {base / middle:.2f} |")


if __name__ == "__main__":
    main()
