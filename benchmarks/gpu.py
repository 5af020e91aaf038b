"""Time what an NVIDIA GPU does at the study's sizes, on made-up images.

    python benchmarks/gpu.py                      # all parts, some minutes
    python benchmarks/gpu.py train sae            # some of them

Parts, each a table in Markdown for docs/benchmarks.md:

train       a CLIP step: RN50 at 224 pixels by batch, precision and checkpointing; ViT-S-32, Swin-T
classifier  a step of the supervised RN50, 256 images
setup       what else a step of RN50 could be run with: TF32, cudnn.benchmark, channels first
feed        images a second out of JPEGs of 500 x 375, by all cores, and through a step of training
evaluation  zero-shot predictions of one checkpoint
circuits    seconds of nodes and edges of a class in a domain, RN50
sae         steps of a sparse autoencoder, 1024 to 4096

A step goes through what training uses (objective, precision, fused optimiser), from a batch on the
GPU to new weights. Weights are random; the work does not depend on them but where it says so. The
first steps are not timed, CUDA events time the others, and medians over rounds are printed. A
multiply and an add are two operations; those of a step are counted by torch on its forward and
backward pass, and their share is of the peak that the GPU's maker states for the precision.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from clip_mixtures.corpora.generated import write_generated
from clip_mixtures.evaluation.predictions import EvaluationSet, decoded, predict_checkpoints
from clip_mixtures.evaluation.readers import ZeroShotReader
from clip_mixtures.evaluation.zero_shot import published_templates
from clip_mixtures.index import read_index
from clip_mixtures.mechanisms import sae as sae_module
from clip_mixtures.mechanisms.circuits import attribute_nodes, edge_attributions, top_units
from clip_mixtures.mechanisms.config import SaeConfig
from clip_mixtures.mechanisms.sae import SparseAutoencoder, backward
from clip_mixtures.mechanisms.sae_training import make_optimizer
from clip_mixtures.mechanisms.shards import shuffled_batches, write_shards
from clip_mixtures.mechanisms.towers import tower_of
from clip_mixtures.mixtures.spec import DOMAINS
from clip_mixtures.training.augmentation import DRAWS, Augmentation
from clip_mixtures.training.checkpoints import save_checkpoint
from clip_mixtures.training.clip import Contrastive
from clip_mixtures.training.config import SupervisedConfig, TrainConfig
from clip_mixtures.training.feed import DecodedFeed, places_of
from clip_mixtures.training.loop import Batch, Objective
from clip_mixtures.training.models import Normalisation, create_clip
from clip_mixtures.training.precision import Precision
from clip_mixtures.training.processes import Processes, decoding_workers
from clip_mixtures.training.supervised import Supervised, create_classifier

GPU = torch.device("cuda", 0)
ALONE = Processes(rank=0, world_size=1, device=GPU)
WARMUP, ROUNDS, STEPS = 3, 3, 4
# Dense operations a second of an H100 SXM by its data sheet, which an H200 shares.
PEAK = {"amp": 989e12, "amp_bf16": 989e12, "fp32": 67e12, "tf32": 494e12}
CLIP = TrainConfig(
    epochs=32, global_batch_size=1024, learning_rate=1e-3, warmup_steps=500, weight_decay=0.2,
    beta1=0.9, beta2=0.98, epsilon=1e-8, crop_scale=0.9, flip=False,
)  # fmt: skip
CLASSIFIER = SupervisedConfig(
    epochs=90, global_batch_size=256, learning_rate=0.01, weight_decay=1e-4, crop_scale=0.9,
    flip=False, momentum=0.9, nesterov=True, milestones=(30, 50, 70), gamma=0.1,
)  # fmt: skip
CLASSES = 345
# Images of a batch that is decoded, and that are predicted.
FED, PREDICTED = 512, 8192
MIB = 1 << 20


def _milliseconds(work: Callable[[], object], rounds: int = ROUNDS, times: int = STEPS) -> float:
    """Return the median over rounds of what it takes the GPU to do some work."""
    for _ in range(WARMUP):
        work()
    found: list[float] = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(times):
            work()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / times)
    return statistics.median(found)


def _row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def _head(*names: str) -> None:
    print()
    _row(*names)
    _row("---", *["---:"] * (len(names) - 1))


# Steps of training


class _Step:
    """A step of an objective on one batch, again and again."""

    def __init__(self, objective: Objective, batch: Batch, precision: str) -> None:
        self._objective, self._batch = objective, batch
        self._precision = Precision(precision, GPU)
        self._optimizer = objective.optimizer()
        objective.network.train()

    def forward_and_back(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._objective.backward(self._objective.network, [self._batch], self._precision)

    def __call__(self) -> None:
        self.forward_and_back()
        self._precision.step(self._optimizer)
        self._objective.after_step()


def _clip_step(architecture: str, batch: int, precision: str, checkpointing: bool) -> _Step:
    torch.manual_seed(0)
    model = create_clip(architecture, GPU)
    config = dataclasses.replace(CLIP, precision=precision, grad_checkpointing=checkpointing)
    texts = [f"a photo of the object number {number}" for number in range(batch)]
    tokens = model.tokenizer(texts).to(GPU)
    objective = Contrastive(model.network, config, ALONE)
    return _Step(objective, Batch(_images(batch, model.image_size), tokens), precision)


def _images(count: int, size: int) -> torch.Tensor:
    images = torch.randn((count, 3, size, size), device=GPU)
    return images.contiguous(memory_format=torch.channels_last)


def _timed(title: Sequence[object], make: Callable[[], _Step], images: int, peak: float) -> None:
    """Print a row: images a second, memory, operations a second and their share of a peak."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        step = make()
        taken = _milliseconds(step)
        memory = torch.cuda.max_memory_allocated()
        with FlopCounterMode(display=False) as counter:
            step.forward_and_back()
    except torch.OutOfMemoryError:
        _row(*title, "out of memory", "", "", "")
        return
    rate = counter.get_total_flops() / taken * 1000
    _row(
        *title, f"{1000 * images / taken:,.0f}", f"{memory / MIB / 1024:.1f}",
        f"{rate / 1e12:.0f}", f"{rate / peak:.0%}",
    )  # fmt: skip


_STEP_HEAD = ("images/s", "GiB", "TFLOP/s", "of peak")


def train(args: argparse.Namespace) -> None:
    """Time CLIP's step."""
    _head("network", "batch", "precision", "checkpointed", *_STEP_HEAD)
    cases = [("RN50", batch, "amp", False) for batch in (128, 256, 512)]
    cases += [("RN50", 256, "amp", True), ("RN50", 256, "amp_bf16", False)]
    cases += [("RN50", 128, "fp32", False), ("RN50", 1024, "amp", False)]
    cases += [("ViT-S-32", 1024, "amp", False), ("ViT-S-32", 1024, "amp", True)]
    cases += [("Swin-T", 256, "amp", False), ("Swin-T", 256, "amp", True)]
    for network, batch, precision, wanted in cases:
        _timed(
            (network, batch, precision, "yes" if wanted else "no"),
            lambda case=(network, batch, precision, wanted): _clip_step(*case),  # type: ignore[misc]
            batch, PEAK[precision],
        )  # fmt: skip


def classifier(args: argparse.Namespace) -> None:
    """Time the step of the supervised classifier."""
    _head("network", "batch", "precision", *_STEP_HEAD)
    for precision in ("amp", "amp_bf16", "fp32"):

        def make(precision: str = precision) -> _Step:
            torch.manual_seed(0)
            model = create_clip("RN50", GPU)
            network = create_classifier(model, CLASSES).to(GPU)
            images = _images(CLASSIFIER.global_batch_size, model.image_size)
            labels = torch.randint(1000, 1000 + CLASSES, (len(images),), device=GPU)
            return _Step(Supervised(network, CLASSIFIER), Batch(images, labels), precision)

        # As training has it: single precision is not rounded to ten bits in convolutions.
        with _cudnn(allow_tf32=precision != "fp32"):
            _timed(("RN50", 256, precision), make, CLASSIFIER.global_batch_size, PEAK[precision])


@contextlib.contextmanager
def _cudnn(**settings: bool) -> Iterator[None]:
    before = {name: getattr(torch.backends.cudnn, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(torch.backends.cudnn, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


def setup(args: argparse.Namespace) -> None:
    """Time what a step could be run with."""
    _head("RN50", "batch", "precision", *_STEP_HEAD)

    def channels_first(precision: str) -> _Step:
        step = _clip_step("RN50", 128, precision, False)
        step._objective.network.to(memory_format=torch.contiguous_format)
        images = step._batch.images.contiguous(memory_format=torch.contiguous_format)
        step._batch = dataclasses.replace(step._batch, images=images)
        return step

    def as_it_is(precision: str) -> _Step:
        return _clip_step("RN50", 128, precision, False)

    for precision in ("amp", "fp32"):
        for title, make, settings in (
            ("as it is", as_it_is, {}),
            ("cudnn.benchmark", as_it_is, {"benchmark": True}),
            ("channels first", channels_first, {}),
            ("without TF32", as_it_is, {"allow_tf32": False}),
        ):
            if precision == "amp" and title == "without TF32":
                continue
            peak = PEAK["tf32" if precision == "fp32" and "without" not in title else precision]
            with _cudnn(**settings):
                _timed((title, 128, precision), lambda: make(precision), 128, peak)  # noqa: B023


# Images


def feed(args: argparse.Namespace) -> None:
    """Time decoding by all cores, alone and while a network trains."""
    workers = decoding_workers()
    steps, batch = args.feed_steps, FED
    with tempfile.TemporaryDirectory() as name:
        paths = write_generated(Path(name) / "corpus", 8 * FED, 128, ("real", "sketch"))
        index = read_index(paths[DOMAINS])
        rows = np.flatnonzero(index.frame["split"] == "train")
        print(f"\n{workers} workers; batches of {batch}, made {steps} times")
        _head("input", "images/s", "a step waits for")
        for decoder in ("exact", "fast"):
            alone, _ = _fed(index, rows, decoder, workers, batch, steps, None)
            _row(f"decoded, {decoder}", f"{alone:,.0f}", "")
        step = _clip_step("RN50", batch, "amp", False)
        network = 1000 * batch / _milliseconds(step)
        together, waits = _fed(index, rows, "exact", workers, batch, steps, step)
        _row("a step of RN50 without input", f"{network:,.0f}", "")
        _row("RN50 fed by `exact`", f"{together:,.0f}", f"{waits:.0%}")


def _fed(
    index: object, rows: np.ndarray, decoder: str, workers: int, batch: int, steps: int,
    step: _Step | None,
) -> tuple[float, float]:  # fmt: skip
    """Return images a second, and the share of the time spent waiting for them."""
    chosen = rows[np.arange(batch * 4) % len(rows)]
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), GPU)
    made = DecodedFeed(
        places_of([(index, chosen)]),  # type: ignore[list-item]
        torch.zeros((len(chosen), 77), dtype=torch.int32), 224, Augmentation((0.9, 1.0)), decoder,
        normalisation, workers,
    )  # fmt: skip
    # The first of every worker are not timed: workers start, and all are ready at once.
    ahead = 2 * max(workers, 1)
    count = steps + ahead
    order = (torch.arange(count * batch) % len(chosen)).view(count, batch)
    draws = torch.rand((count, DRAWS, batch), generator=torch.Generator().manual_seed(0))
    waited = 0.0
    batches = made.batches(order, draws)
    for given in itertools.islice(batches, ahead):
        if step is not None:
            step._batch = dataclasses.replace(given, targets=step._batch.targets)
            step()
    torch.cuda.synchronize()
    begun = before = time.perf_counter()
    for given in itertools.islice(batches, steps):
        waited += time.perf_counter() - before
        if step is not None:
            step._batch = dataclasses.replace(given, targets=step._batch.targets)
            step()
            torch.cuda.synchronize()
        before = time.perf_counter()
    spent = time.perf_counter() - begun
    return steps * batch / spent, waited / spent


def evaluation(args: argparse.Namespace) -> None:
    """Time zero-shot predictions of RN50 on pixels that are decoded already, and with decoding."""
    count = PREDICTED
    _head("RN50, 345 classes, 86 prompts", "precision", "time or rate")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        save_checkpoint(folder, 1, create_clip("RN50").network)
        paths = write_generated(folder / "corpus", 2, 64, ("real", "sketch"))
        index = read_index(paths[DOMAINS])
        names = index.class_names()
        tests = index.frame[index.frame["split"] == "test"]
        pixels = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
        whole = EvaluationSet(DOMAINS, pd.concat([tests] * 24).iloc[:count], index.root)
        for precision in ("fp32", "amp", "amp_bf16"):
            with _cudnn(allow_tf32=False):
                model = create_clip("RN50", GPU)
                reader = ZeroShotReader(model, {DOMAINS: names}, published_templates(), precision)
                checkpoints = {1: folder / "epoch_001.safetensors"}
                reader.load(checkpoints[1])
                reader._known.clear()
                torch.cuda.synchronize()
                begun = time.perf_counter()
                reader.load(checkpoints[1])
                torch.cuda.synchronize()
                _row("text, and loading", precision, f"{time.perf_counter() - begun:.2f} s")
                rates = []
                for _ in range(3):
                    portions = [(slice(0, count), pixels)]
                    begun = time.perf_counter()
                    predict_checkpoints(reader, checkpoints, whole, portions, progress=False)
                    rates.append(count / (time.perf_counter() - begun))
                _row("pixels in memory", precision, f"{max(rates):,.0f} images/s")
        parts = decoded(whole, 224, decoding_workers(), portion_bytes=2048 * 3 * 224 * 224)
        begun = time.perf_counter()
        predict_checkpoints(reader, checkpoints, whole, parts, progress=False)
        _row(
            f"JPEGs, {decoding_workers()} threads", "amp_bf16",
            f"{count / (time.perf_counter() - begun):,.0f} images/s",
        )  # fmt: skip


# Mechanisms


def circuits(args: argparse.Namespace) -> None:
    """Time nodes and edges of a class in one domain, as the study's preset has them."""
    torch.manual_seed(0)
    visual = create_clip("RN50", GPU).network.get_submodule("visual")
    for name, weight in visual.named_parameters():
        # A fresh network's residual branches give nothing.
        if name.endswith("bn3.weight"):
            torch.nn.init.uniform_(weight, 0.1, 0.5)
    visual.eval().requires_grad_(False)
    tower = tower_of(visual)
    texts = normalize(torch.randn((CLASSES, 1024), device=GPU), dim=1)
    _head("a class in a domain", "images", "steps", "memory_bytes", "seconds", "peak GiB")
    with _cudnn(allow_tf32=False):
        for images, steps, gib in ((2, 10, 1), (10, 5, 1), (10, 5, 8), (50, 5, 8)):
            pixels = _images(images, 224)
            if images == 50 and args.quick:
                continue
            for what in ("nodes", "edges"):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
                spent = []
                for _ in range(2 if images <= 10 else 1):
                    begun = time.perf_counter()
                    if what == "nodes":
                        found = attribute_nodes(
                            tower, texts, pixels, 0, protocol="corrected", steps=steps,
                            memory_bytes=gib << 30,
                        ).values  # fmt: skip
                        units = top_units({k: v for k, v in found.items() if k != "input"}, 0.1)
                    else:
                        edge_attributions(
                            tower, texts, pixels, 0, steps, "corrected", units=units,
                            memory_bytes=gib << 30,
                        )  # fmt: skip
                    torch.cuda.synchronize()
                    spent.append(time.perf_counter() - begun)
                peak = torch.cuda.max_memory_allocated() / MIB / 1024
                _row(what, images, steps, f"{gib} GiB", f"{min(spent):.2f}", f"{peak:.1f}")


@contextlib.contextmanager
def _products_of_whole_matrices() -> Iterator[None]:
    """Follow all codes, however few are active."""
    before = sae_module._looks_dense
    sae_module._looks_dense = lambda activations: True
    try:
        yield
    finally:
        sae_module._looks_dense = before


def sae(args: argparse.Namespace) -> None:
    """Time steps of a sparse autoencoder, with their input, dense and sparse."""
    width, batch = 1024, 2048
    config = SaeConfig(epochs=1, batch_size=batch, learning_rate=1e-4, l1=1e-4)
    generator = torch.Generator().manual_seed(0)
    rows = normalize(torch.randn((32 * batch, width), generator=generator), dim=1).half()
    _head("1024 to 4096, batches of 2,048", "active codes", "ms", "rows/s")
    with tempfile.TemporaryDirectory() as name:
        shards = write_shards(Path(name), rows.split(batch), rows_per_shard=16 * batch)
        inputs = rows[:batch].float().to(GPU)
        for title, shift in (("dense", 0.0), ("some", -0.5), ("few", -1.0)):
            start = torch.Generator().manual_seed(0)
            model = SparseAutoencoder(width, 4, generator=start).to(GPU)
            deviation = float(model.encoder_weight.norm(dim=1).mean()) / math.sqrt(width)
            model.encoder_bias.data += 3 * shift * deviation
            active = float((model.encode(inputs) > 0).sum(dim=1).double().mean())
            optimizer = make_optimizer(model, config)
            # The weights stay, or codes would become sparse while they are timed.
            for group in optimizer.param_groups:
                group["lr"] = 0.0

            def step(given: torch.Tensor = inputs) -> None:
                backward(model, given, config.l1)  # noqa: B023
                optimizer.step()  # noqa: B023
                model.renormalise()  # noqa: B023

            taken = _milliseconds(step, times=10)
            _row(
                f"{title}, input there",
                f"{active:,.0f}",
                f"{taken:.2f}",
                f"{1000 * batch / taken:,.0f}",
            )
            with _products_of_whole_matrices():
                taken = _milliseconds(step, times=10)
            _row(
                f"{title}, whole matrices", f"{active:,.0f}", f"{taken:.2f}",
                f"{1000 * batch / taken:,.0f}",
            )  # fmt: skip
            begun, seen = time.perf_counter(), 0
            for epoch in range(2):
                for given in shuffled_batches(shards, batch, seed=0, epoch=epoch):
                    step(given.to(GPU))
                    seen += len(given)
            torch.cuda.synchronize()
            spent = time.perf_counter() - begun
            _row(
                f"{title}, from shards", f"{active:,.0f}", f"{1000 * spent * batch / seen:.2f}",
                f"{seen / spent:,.0f}",
            )  # fmt: skip


PARTS = {
    part.__name__: part for part in (train, classifier, setup, feed, evaluation, circuits, sae)
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="without what takes longest")
    parser.add_argument("--feed-steps", type=int, default=48, metavar="N")
    args = parser.parse_args()
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: allowed: {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here")
    print(f"{torch.cuda.get_device_name(GPU)}, torch {torch.__version__}")
    for name in args.parts or PARTS:
        begun = time.perf_counter()
        PARTS[name](args)
        print(f"\n{name}: {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
