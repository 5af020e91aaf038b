"""What an NVIDIA GPU does beside a CPU: the same numbers within stated bounds, and whole runs.

    make test-gpu

Elsewhere these tests are not selected, and skipped where there is no GPU. Single precision is meant
here: TF32, with which cuDNN rounds the inputs of convolutions to 10 bits, is off. Where two runs
are to end with the same bits, torch is held to deterministic kernels; without that, sums of atomic
additions come out in another order each time.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from circuit_towers import small_images, small_resnet, text_rows
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from test_activations import CLASSES, COUNT, portions
from test_activations import DOMAINS as READ_DOMAINS
from test_feed import CROPS, make_mixed, plan
from test_pipeline import Project
from test_sae_training import CONFIG as SAE
from test_sae_training import features
from test_supervised import CONFIG as CLASSIFIER
from test_supervised import make_supervised_run
from test_training import CONFIG as CLIP_RECIPE
from test_training import make_data, make_model, make_run
from train_toy import TOY, make_feed, make_towers

from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.predictions import EvaluationSet, predict_checkpoints
from clip_mixtures.evaluation.readers import Reader, SupervisedReader, ZeroShotReader
from clip_mixtures.evaluation.zero_shot import published_templates, text_classifier
from clip_mixtures.mechanisms import sae_training
from clip_mixtures.mechanisms.ablation import ablation_effects, mean_activations
from clip_mixtures.mechanisms.checkpoint import load_last
from clip_mixtures.mechanisms.circuits import attribute_nodes, edge_attributions, top_units
from clip_mixtures.mechanisms.cka import linear_cka
from clip_mixtures.mechanisms.class_circuits import read_circuits, trace_class, write_circuits
from clip_mixtures.mechanisms.collect import collect
from clip_mixtures.mechanisms.config import CircuitsConfig
from clip_mixtures.mechanisms.sae import Pass, SparseAutoencoder, backward, load_sae
from clip_mixtures.mechanisms.sae_training import train_sae
from clip_mixtures.mechanisms.shards import write_shards
from clip_mixtures.mechanisms.sharing import feature_histograms
from clip_mixtures.mechanisms.towers import tower_of
from clip_mixtures.training import loop
from clip_mixtures.training.augmentation import DRAWS, Augmentation, apply_maps
from clip_mixtures.training.checkpoints import load_state, save_checkpoint
from clip_mixtures.training.clip import Contrastive
from clip_mixtures.training.config import PRECISIONS, TrainConfig
from clip_mixtures.training.feed import DecodedFeed, PackedFeed, places_of
from clip_mixtures.training.layout import CHECKPOINTS, CURVES, STATE
from clip_mixtures.training.loop import Batch
from clip_mixtures.training.memory import device_batch
from clip_mixtures.training.models import Normalisation, create_clip, to_pixels
from clip_mixtures.training.precision import Precision
from clip_mixtures.training.processes import Processes, join_processes
from clip_mixtures.training.run import train_run
from clip_mixtures.training.supervised import Supervised, create_classifier

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
Values = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.delenv("DEVICE_BATCH", raising=False)


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")
    return torch.device("cuda", 0)


@pytest.fixture
def processes(gpu: torch.device) -> Processes:
    return Processes(rank=0, world_size=1, device=gpu)


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every sum be made in one order, or an operation that cannot fail."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with a scale of gradients at which no first step is skipped, as some usually are."""
    scaler = functools.partial(torch.amp.GradScaler, init_scale=64.0, growth_interval=2)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the distance of two tensors as a share of the second one's length."""
    wanted = wanted.detach().double().cpu()
    return float((found.detach().double().cpu() - wanted).norm() / wanted.norm())


def gradients(network: torch.nn.Module) -> torch.Tensor:
    """Return all gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def on(device: torch.device, feed: PackedFeed) -> PackedFeed:
    normalisation = dataclasses.replace(feed.normalisation, device=device)
    return dataclasses.replace(feed, normalisation=normalisation)


def losses_of(folder: Path) -> pd.Series[float]:
    path = folder / CURVES / "plots" / "metrics" / "loss.tsv"
    return pd.read_csv(path, sep="\t")["loss"]


def small_clip(layers: int = 2) -> CLIP:
    """Make a CLIP of two transformers without batch normalisation, with 64 pixels a side."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=layers, width=64, head_width=32, patch_size=8, image_size=64)
    text = CLIPTextCfg(context_length=16, vocab_size=200, width=64, heads=2, layers=2)
    return CLIP(32, vision, text)


def small_feed(device: torch.device, count: int) -> PackedFeed:
    """Make random images and captions for :func:`small_clip`."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    tokens = torch.from_numpy(random.integers(1, 200, (count, 16)))
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), device)
    return PackedFeed(images, tokens, Augmentation((0.8, 1.0), flip=True), normalisation)


def small_batch(device: torch.device, count: int) -> Batch:
    (batch,) = small_feed(device, count).batches(
        torch.arange(count)[None], torch.full((1, DRAWS, count), 0.5)
    )
    return batch


def halves(batch: Batch, pieces: int) -> list[Batch]:
    parts = zip(batch.images.chunk(pieces), batch.targets.chunk(pieces), strict=True)
    return [Batch(*part) for part in parts]


# Training


@pytest.mark.parametrize("precision", PRECISIONS)
def test_clip_learns(processes: Processes, tmp_path: Path, precision: str) -> None:
    model = make_model()
    model.network.to(processes.device)
    config = dataclasses.replace(CLIP_RECIPE, epochs=15, checkpoint_every=15, precision=precision)
    feed = on(processes.device, make_data(model, 16))
    loop.train(Contrastive(model.network, config, processes), feed, config, 0, tmp_path, processes)
    losses = losses_of(tmp_path)
    assert losses.iloc[-5:].mean() < losses.iloc[:5].mean() - 0.3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_classifier_learns(processes: Processes, tmp_path: Path, precision: str) -> None:
    colours = np.array([[30, 30, 30], [220, 30, 30], [30, 30, 220]])
    labels = np.arange(48) % 3
    noise = np.random.default_rng(0).integers(-30, 31, (48, 64, 64, 3))
    images = (colours[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)
    model = make_model()
    normalisation = Normalisation(model.mean, model.std, processes.device)
    feed = PackedFeed(images, torch.from_numpy(labels + 1000), Augmentation(), normalisation)
    config = dataclasses.replace(
        CLASSIFIER, epochs=10, global_batch_size=8, milestones=(8,), learning_rate=0.02,
        precision=precision,
    )  # fmt: skip
    objective = Supervised(create_classifier(model, 3).to(processes.device), config)
    facts = loop.train(objective, feed, config, 0, tmp_path, processes, 5)
    losses = losses_of(tmp_path)
    # Nothing known of 1,003 outputs is ln 1003 = 6.9.
    assert losses.iloc[0] > 6
    assert losses.iloc[-6:].mean() < 1
    assert facts["training_accuracy"] > 0.5


@pytest.mark.usefixtures("small_scale")
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-4), ("amp", 2e-2), ("amp_bf16", 5e-2)]
)
def test_the_first_losses_are_those_of_a_cpu(
    processes: Processes, tmp_path: Path, precision: str, tolerance: float
) -> None:
    config = dataclasses.replace(TOY, epochs=1, global_batch_size=8, learning_rate=1e-3)
    alone = Processes(rank=0, world_size=1, device=CPU)
    found = []
    for place, name in ((alone, "fp32"), (processes, precision)):
        recipe = dataclasses.replace(config, precision=name)
        network = small_clip().to(place.device)
        folder = tmp_path / place.device.type
        loop.train(
            Contrastive(network, recipe, place), small_feed(place.device, 24), recipe, 0, folder,
            place,
        )  # fmt: skip
        found.append(losses_of(folder).to_numpy())
    assert len(found[0]) == 3
    assert np.abs(found[1] - found[0]).max() < tolerance


class Kill(BaseException):
    """Ends a run as a signal would, where nobody catches it."""


def train_to(folder: Path, config: TrainConfig, processes: Processes, dies_at: int = 0) -> None:
    """Train towers with batch normalisation and dropout, to the end or to the death of a step."""
    network = make_towers(norm=True).to(processes.device)
    objective = Contrastive(network, config, processes)
    steps = 0

    def after_step() -> None:
        nonlocal steps
        Contrastive.after_step(objective)
        steps += 1
        if steps == dies_at:
            raise Kill

    objective.after_step = after_step  # type: ignore[method-assign]
    feed = on(processes.device, make_feed())
    loop.train(objective, feed, config, 0, folder, processes)


@pytest.mark.usefixtures("deterministic", "small_scale")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dies_at", [2, 5])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(
    processes: Processes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    dies_at: int,
) -> None:
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_STATES", 0)
    config = dataclasses.replace(TOY, precision=precision)
    train_to(tmp_path / "whole", config, processes)
    with pytest.raises(Kill):
        train_to(tmp_path / "killed", config, processes, dies_at)
    train_to(tmp_path / "killed", config, processes)
    whole, killed = (
        (tmp_path / name / CHECKPOINTS / f"epoch_{TOY.epochs:03d}.safetensors").read_bytes()
        for name in ("whole", "killed")
    )
    assert killed == whole
    assert losses_of(tmp_path / "killed").equals(losses_of(tmp_path / "whole"))
    states = [load_state(tmp_path / name / STATE) for name in ("whole", "killed")]
    assert states[0] is not None
    assert states[1] is not None
    assert states[1]["step"] == states[0]["step"] == 5
    # 64, doubled after two and after four steps.
    scale = states[0]["precision"].get("scale")
    assert scale == (256.0 if precision == "amp" else None)
    assert states[1]["precision"] == states[0]["precision"]


@pytest.mark.usefixtures("small_scale")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("amp", 2e-2)])
@pytest.mark.parametrize("pieces", [2, 3])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(
    processes: Processes, precision: str, tolerance: float, pieces: int
) -> None:
    found = []
    batch = small_batch(processes.device, 24)
    for parts in ([batch], halves(batch, pieces)):
        network = small_clip().to(processes.device)
        objective = Contrastive(network, TOY, processes)
        loss = objective.backward(network, parts, Precision(precision, processes.device))
        found.append((float(loss), gradients(network)))
    assert found[1][0] == pytest.approx(found[0][0], rel=tolerance)
    assert far(found[1][1], found[0][1]) < tolerance


def test_a_batch_of_a_classifier_in_parts_has_the_gradients_of_the_whole(
    processes: Processes,
) -> None:
    images = small_batch(processes.device, 12).images
    batch = Batch(images, 1000 + torch.arange(12, device=processes.device) % 3)
    model = dataclasses.replace(make_model(), network=small_clip(), image_size=64)
    found = []
    for parts in ([batch], halves(batch, 3)):
        torch.manual_seed(1)
        network = copy.deepcopy(create_classifier(model, 3)).to(processes.device)
        objective = Supervised(network, CLASSIFIER)
        objective.backward(network, parts, Precision("fp32", processes.device))
        found.append(gradients(network))
    assert far(found[1], found[0]) < 1e-5


def test_checkpointed_gradients_are_the_same_and_take_less_memory(processes: Processes) -> None:
    batch = small_batch(processes.device, 256)
    found, peaks = [], []
    for wanted in (False, True):
        config = dataclasses.replace(TOY, grad_checkpointing=wanted)
        network = small_clip(layers=8).to(processes.device)
        objective = Contrastive(network, config, processes)
        torch.cuda.reset_peak_memory_stats(processes.device)
        objective.backward(network, [batch], Precision("fp32", processes.device))
        peaks.append(torch.cuda.max_memory_allocated(processes.device))
        found.append(gradients(network))
    assert far(found[1], found[0]) < 1e-5
    assert peaks[1] < 0.8 * peaks[0]


@pytest.fixture
def limited(gpu: torch.device) -> Iterator[Callable[[int], None]]:
    """Let this process have so many bytes of the GPU beside what it holds."""

    def limit(spare: int) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(gpu).total_memory
        share = (torch.cuda.memory_reserved(gpu) + spare) / total
        torch.cuda.set_per_process_memory_fraction(share, gpu)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    torch.cuda.empty_cache()


def test_a_batch_that_does_not_fit_is_halved_and_trained_on_with_the_same_losses(
    processes: Processes, limited: Callable[[int], None], tmp_path: Path
) -> None:
    count = 2048
    config = dataclasses.replace(TOY, epochs=2, global_batch_size=count)
    feed = small_feed(processes.device, count)
    whole = small_clip(layers=8).to(processes.device)
    loop.train(Contrastive(whole, config, processes), feed, config, 0, tmp_path / "1", processes)
    torch.cuda.reset_peak_memory_stats(processes.device)
    small = small_clip(layers=8).to(processes.device)
    objective = Contrastive(small, config, processes)

    def forward(images: int) -> torch.Tensor:
        return objective.trial(torch.zeros((images, 3, 64, 64), device=processes.device))

    held = torch.cuda.memory_allocated(processes.device)
    forward(count // 4).backward()
    quarter = torch.cuda.max_memory_allocated(processes.device) - held
    small.zero_grad(set_to_none=True)
    # Room for a quarter, and for the whole batch as the feed makes it; not for a half.
    limited(int(1.2 * quarter) + 5 * count * 3 * 64 * 64 * 4)
    found = device_batch(forward, count, processes)
    assert count // 8 <= found <= count // 2
    small.zero_grad(set_to_none=True)
    loop.train(objective, feed, config, 0, tmp_path / "2", processes, found)
    assert losses_of(tmp_path / "2").to_numpy() == pytest.approx(
        losses_of(tmp_path / "1").to_numpy(), abs=1e-4
    )


def test_a_device_without_room_for_one_image_is_said(
    processes: Processes, limited: Callable[[int], None]
) -> None:
    limited(0)

    def forward(images: int) -> torch.Tensor:
        return torch.zeros((images, 1 << 24), device=processes.device).requires_grad_().sum()

    with pytest.raises(UserError, match="too little memory for one image"):
        device_batch(forward, 4, processes)


@pytest.mark.parametrize("images", ["packed", "decoded"])
@pytest.mark.parametrize("kind", ["clip", "classifier"])
def test_a_run_trains_on_the_gpu_and_says_so(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: str, kind: str
) -> None:
    monkeypatch.setenv("WORKERS", "2")
    run = make_run(tmp_path) if kind == "clip" else make_supervised_run(tmp_path)
    config = dataclasses.replace(run.config, images=images, precision="amp")
    run = dataclasses.replace(run, config=config)
    train_run(run, tmp_path / "scratch", tmp_path / "out", {})
    facts = json.loads((tmp_path / "out" / "training.json").read_text())
    assert facts["device"] == gpu.type
    assert facts["device_batch"] == 4
    assert np.isfinite(facts["loss"])


def test_every_process_has_a_gpu_of_its_own(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert join_processes().device == gpu
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    with pytest.raises(UserError, match="more processes than the"):
        join_processes()


NCCL = """
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from test_gpu import gradients, halves, small_batch, small_clip
from train_toy import TOY
from clip_mixtures.training.clip import Contrastive
from clip_mixtures.training.precision import Precision
from clip_mixtures.training.processes import join_processes

processes = join_processes()
torch.backends.cudnn.allow_tf32 = False
batch = small_batch(processes.device, 24)
found = []
for spread in (False, True):
    network = small_clip().to(processes.device)
    objective = Contrastive(network, TOY, processes)
    if spread:
        distributed.init_process_group("nccl", device_id=processes.device)
        network = DistributedDataParallel(network)
    objective.backward(network, halves(batch, 3), Precision("fp32", processes.device))
    found.append(gradients(network))
distributed.barrier()
box = [float((found[1] - found[0]).norm() / found[0].norm())]
distributed.broadcast_object_list(box, src=0)
distributed.destroy_process_group()
print("far:", box[0], processes.device)
"""


def test_gradients_that_nccl_exchanges_are_those_of_one_process(
    gpu: torch.device, tmp_path: Path
) -> None:
    """One process has nobody to exchange with, but goes the whole way through torchrun and NCCL."""
    script = tmp_path / "script.py"
    script.write_text(NCCL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", str(script)]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    far_by, device = done.stdout.split("far:")[1].split()
    assert device == str(gpu)
    assert float(far_by) < 1e-6


# Images


def test_crops_are_those_of_a_cpu(gpu: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand((16, 3, 64, 64), generator=generator)
    maps = Augmentation((0.3, 1.0), flip=True).maps(torch.rand((DRAWS, 16), generator=generator))
    # Half a grey level is 2e-3.
    assert (apply_maps(pixels.to(gpu), maps).cpu() - apply_maps(pixels, maps)).abs().max() < 1e-4


def test_packed_batches_are_those_of_a_cpu(gpu: torch.device) -> None:
    model = make_model()
    feed = make_data(model)
    rows, draws = plan(20, 4, 5, seed=0)
    for ours, theirs in zip(
        on(gpu, feed).batches(rows, draws), feed.batches(rows, draws), strict=True
    ):
        assert ours.images.device.type == ours.targets.device.type == gpu.type
        assert ours.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours.targets.cpu(), theirs.targets)
        assert (ours.images.cpu() - theirs.images).abs().max() < 5e-4


@pytest.mark.parametrize("workers", [0, 2])
def test_decoded_batches_are_those_of_a_cpu(
    gpu: torch.device, tmp_path: Path, workers: int
) -> None:
    mixed = make_mixed(tmp_path)
    targets = 10 * torch.arange(16)
    ours, theirs = (
        DecodedFeed(
            places_of(mixed.parts),
            targets,
            24,
            CROPS,
            "exact",
            Normalisation((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), device),
            workers if device == gpu else 0,
        )
        for device in (gpu, CPU)
    )
    rows, draws = plan(16, 4, 4, seed=0)
    for there, here in zip(ours.batches(rows, draws), theirs.batches(rows, draws), strict=True):
        assert there.images.device.type == gpu.type
        assert torch.equal(there.targets.cpu(), here.targets)
        assert (there.images.cpu() - here.images).abs().max() < 1e-5


# Evaluation

NAMES = ["ant", "bee", "cat", "dog", "elephant"]


def noise(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    generator = np.random.default_rng(seed)
    # Of different brightness, so that a random network tells them apart.
    levels = generator.integers(30, 226, (count, 1, 1, 3))
    speckle = generator.integers(-30, 30, (count, 64, 64, 3))
    return np.asarray(levels + speckle, dtype=np.uint8)


def readers(kind: str, folder: Path, device: torch.device, precision: str = "fp32") -> Reader:
    """Return a reader with a checkpoint taken up, of random weights that tell images apart."""
    torch.manual_seed(0)
    made = create_clip("sample-RN")
    network = made.network if kind == "clip" else create_classifier(made, len(NAMES))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean
    with torch.no_grad():
        normalisation = Normalisation(made.mean, made.std, CPU)
        network.get_submodule("visual")(normalisation.apply(to_pixels(torch.from_numpy(noise(64)))))
    save_checkpoint(folder, 1, network)
    model = create_clip("sample-RN", device)
    reader: Reader
    if kind == "clip":
        reader = ZeroShotReader(model, {"domains": NAMES}, published_templates()[:9], precision)
    else:
        reader = SupervisedReader(model, len(NAMES), precision)
    reader.load(folder / "epoch_001.safetensors")
    return reader


def scores(reader: Reader, images: npt.NDArray[np.uint8]) -> torch.Tensor:
    model = reader.model
    device = next(model.network.parameters()).device
    pixels = Normalisation(model.mean, model.std, device).apply(
        to_pixels(torch.from_numpy(images).to(device))
    )
    with torch.inference_mode():
        found = reader.logits(pixels, "domains")
    assert found.dtype == torch.float32
    return found.cpu()


@pytest.mark.parametrize("kind", ["clip", "classifier"])
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-5), ("amp", 2e-2), ("amp_bf16", 1e-1)]
)
def test_scores_are_those_of_a_cpu(
    gpu: torch.device, tmp_path: Path, kind: str, precision: str, tolerance: float
) -> None:
    images = noise(40)
    wanted = scores(readers(kind, tmp_path / "cpu", CPU), images)
    found = scores(readers(kind, tmp_path / "gpu", gpu, precision), images)
    assert (tmp_path / "cpu" / "epoch_001.safetensors").read_bytes() == (
        tmp_path / "gpu" / "epoch_001.safetensors"
    ).read_bytes()
    assert far(found, wanted) < tolerance


@pytest.mark.parametrize("kind", ["clip", "classifier"])
def test_predictions_are_those_of_a_cpu(gpu: torch.device, tmp_path: Path, kind: str) -> None:
    images = noise(700, seed=1)
    frame = pd.DataFrame({"domain": "real", "class_id": np.arange(700) % len(NAMES)})
    tested = EvaluationSet("domains", frame, tmp_path)
    tables = []
    for device in (CPU, gpu):
        folder = tmp_path / device.type
        reader = readers(kind, folder, device)
        parts = [(slice(0, 600), images[:600]), (slice(600, 700), images[600:])]
        checkpoints = {1: folder / "epoch_001.safetensors"}
        tables.append(predict_checkpoints(reader, checkpoints, tested, parts, progress=False))
        if device == CPU:
            best = scores(reader, images).topk(2, dim=1).values
    # Classes that are nearly as near may change places.
    clear = (best[:, 0] - best[:, 1] > 1e-5 * best.abs().max()).numpy()
    assert clear.mean() > 0.9
    assert (tables[1]["prediction"] == tables[0]["prediction"])[clear].all()
    assert tables[0]["prediction"].nunique() > 1


def test_text_classifiers_are_those_of_a_cpu(gpu: torch.device) -> None:
    found = []
    for device in (CPU, gpu):
        torch.manual_seed(0)
        model = create_clip("sample-RN", device)
        model.network.eval()
        found.append(text_classifier(model.network, model.tokenizer, NAMES, published_templates()))
    assert found[1].device.type == gpu.type
    assert (found[1].cpu() - found[0]).abs().max() < 1e-5


# Mechanisms


def test_activations_and_their_cka_are_those_of_a_cpu(gpu: torch.device, tmp_path: Path) -> None:
    torch.manual_seed(4)
    save_checkpoint(tmp_path, 4, create_clip("sample-RN").network)
    frame = pd.DataFrame(
        {"domain": np.repeat(READ_DOMAINS, COUNT // 3), "class_id": np.arange(COUNT) % CLASSES}
    )
    found = []
    for device in (CPU, gpu):
        checkpoint = load_last("sample-RN", tmp_path, device)
        found.append(
            collect(
                checkpoint.tower,
                checkpoint.normalisation,
                EvaluationSet("domains", frame, tmp_path),
                portions(10),
                domains=READ_DOMAINS,
                classes=CLASSES,
                epoch=4,
            )
        )
    here, there = found
    assert far(torch.from_numpy(there.features), torch.from_numpy(here.features)) < 1e-5
    assert there.class_means.keys() == here.class_means.keys()
    for name, means in here.class_means.items():
        assert far(torch.from_numpy(there.class_means[name]), torch.from_numpy(means)) < 1e-5
        flat = [one.class_means[name].reshape(len(READ_DOMAINS) * CLASSES, -1) for one in found]
        assert linear_cka(flat[0], flat[1]) == pytest.approx(1, abs=1e-5)


def autoencoder(kind: str, device: torch.device) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(0)
    return SparseAutoencoder(12, 8, kind=kind, k=5, generator=generator).to(device)


@pytest.mark.parametrize("kind", ["relu, dense", "relu, sparse", "relu, silent", "batch_topk"])
def test_gradients_of_an_autoencoder_are_those_of_a_cpu(gpu: torch.device, kind: str) -> None:
    inputs = torch.from_numpy(features(256))
    shift = {"relu, dense": 0.0, "relu, sparse": -1.2, "relu, silent": -99.0}.get(kind, 0.0)
    found = []
    for device in (CPU, gpu):
        model = autoencoder(kind.partition(",")[0], device)
        model.encoder_bias.data += shift
        one = backward(model, inputs.to(device), 1e-2)
        found.append((one.losses.total, one.fired, gradients(model), model.threshold))
    here, there = found
    active = float(here[1].sum()) / here[1].numel() / len(inputs)
    assert {"relu, dense": active > 0.3, "relu, sparse": 0 < active < 0.05}.get(kind, True)
    assert (active == 0) == (kind == "relu, silent")
    assert far(there[0], here[0]) < 1e-5
    assert torch.equal(there[1].cpu(), here[1])
    assert far(there[2], here[2]) < 1e-5
    assert float(there[3]) == pytest.approx(float(here[3]), rel=1e-5)


@pytest.mark.parametrize("kind", ["relu", "batch_topk"])
def test_an_autoencoder_learns_as_on_a_cpu(gpu: torch.device, tmp_path: Path, kind: str) -> None:
    shards = write_shards(tmp_path / "train", [features(300)], rows_per_shard=100)
    tests = write_shards(tmp_path / "test", [features(100, seed=1)])
    # Units that never fired are made anew on the way.
    config = dataclasses.replace(
        SAE, epochs=20, kind=kind, k=6, l1=3e-4, resample_every=30, resample_rows=200
    )
    facts = {
        device.type: train_sae(
            shards,
            config,
            0,
            tmp_path / device.type,
            tmp_path / device.type / "sae.safetensors",
            validation=tests,
            device=device,
        )
        for device in (CPU, gpu)
    }
    here, there = facts["cpu"], facts[gpu.type]
    assert there["validation_explained_variance"] > 0.3
    for name in ("validation_reconstruction", "validation_l0", "l1"):
        assert there[name] == pytest.approx(here[name], rel=0.1)
    model = load_sae(tmp_path / gpu.type / "sae.safetensors")
    assert model.dictionary.detach().norm(dim=1).numpy() == pytest.approx(np.ones(24), abs=1e-5)


@pytest.mark.usefixtures("deterministic")
def test_a_killed_autoencoder_goes_on_where_it_was(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sae_training, "SECONDS_BETWEEN_STATES", 0.0)
    # Products of whole matrices, which have deterministic kernels.
    monkeypatch.setattr("clip_mixtures.mechanisms.sae._looks_dense", lambda _: True)
    shards = write_shards(tmp_path / "train", [features(300)], rows_per_shard=100)
    calls = 0

    def dying(model: SparseAutoencoder, inputs: torch.Tensor, l1: float) -> Pass:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise Kill
        return backward(model, inputs, l1)

    def train(name: str) -> bytes:
        out = tmp_path / name / "sae.safetensors"
        train_sae(shards, SAE, 0, tmp_path / name, out, device=gpu)
        return out.read_bytes()

    whole = train("whole")
    with monkeypatch.context() as patch:
        patch.setattr(sae_training, "backward", dying)
        with pytest.raises(Kill):
            train("killed")
    assert train("killed") == whole


def test_frequencies_of_units_are_those_of_a_cpu(gpu: torch.device) -> None:
    rows = features(240)
    classes, domains = np.arange(240) % 4, np.arange(240) // 4 % 3
    found = [
        feature_histograms(
            autoencoder("relu", device).eval(), rows, classes, domains, range(4), range(3), top=5
        )
        for device in (CPU, gpu)
    ]
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_circuits_are_those_of_a_cpu(
    gpu: torch.device, dtype: torch.dtype, tolerance: float, protocol: str
) -> None:
    """In double precision they are the same sums, though a GPU takes other ways to them."""
    nodes: list[Values] = []
    edges: list[dict[tuple[str, str], torch.Tensor]] = []
    units: Values = {}
    for device in (CPU, gpu):
        visual = small_resnet().to(device, dtype).requires_grad_(False)
        images, texts = small_images().to(device, dtype), text_rows().to(device, dtype)
        found = attribute_nodes(visual, texts, images, 1, protocol=protocol, steps=6)
        assert all(value.device.type == device.type for value in found.values.values())
        nodes.append({name: value.cpu() for name, value in found.values.items()})
        units = units or top_units(nodes[0], 0.5)
        traced = edge_attributions(visual, texts, images, 1, 6, protocol, units=units)
        edges.append({pair: value.cpu() for pair, value in traced.items()})
    assert nodes[0].keys() == nodes[1].keys()
    assert edges[0].keys() == edges[1].keys()
    for name, wanted in nodes[0].items():
        assert far(nodes[1][name], wanted) < tolerance, name
    for pair, expected in edges[0].items():
        assert far(edges[1][pair], expected) < tolerance, pair


def test_circuits_of_a_transformer_are_those_of_a_cpu(gpu: torch.device) -> None:
    found: list[Values] = []
    for device in (CPU, gpu):
        visual = small_clip().visual.double().eval().requires_grad_(False).to(device)
        generator = torch.Generator().manual_seed(1)
        images = torch.randn((2, 3, 64, 64), generator=generator, dtype=torch.float64).to(device)
        texts = text_rows(width=32).to(device)
        effects = attribute_nodes(visual, texts, images, 0, protocol="corrected", steps=3).values
        found.append(effects)
    for name, wanted in found[0].items():
        assert far(found[1][name], wanted) < 1e-9, name


def test_ablations_do_what_they_do_on_a_cpu(gpu: torch.device) -> None:
    tables = []
    for device in (CPU, gpu):
        tower = tower_of(small_resnet().requires_grad_(False).to(device))
        images, texts = small_images(3).to(device), text_rows().to(device)
        fills = mean_activations(tower, small_images(8, seed=3).to(device).split(4))
        units = {"real": {name: torch.tensor([0, 2]) for name in ("act3", "resblock2")}}
        tables.append(
            ablation_effects(
                tower, texts, {"real": images}, units, 1, values=fills, each_layer=True, draws=2
            )
        )
    assert len(tables[0]) > 0
    pd.testing.assert_frame_equal(tables[1], tables[0], rtol=1e-9, atol=1e-12)


def test_circuits_of_a_class_go_through_the_files(gpu: torch.device, tmp_path: Path) -> None:
    tower = tower_of(small_resnet().requires_grad_(False).to(gpu))
    images = {name: small_images(2, seed=seed).to(gpu) for seed, name in enumerate("ab")}
    config = CircuitsConfig(images_per_class=2, steps=2, draws=1, fill="zero", edges_per_unit=1)
    traced = trace_class(tower, text_rows().to(gpu), images, 1, config, images)
    write_circuits(tmp_path / "class", traced)
    read = read_circuits(tmp_path / "class")
    assert read.nodes.keys() == images.keys()
    for domain, layers in traced.nodes.items():
        for layer, values in layers.items():
            assert torch.equal(read.nodes[domain][layer], values.cpu())
    pd.testing.assert_frame_equal(read.effects, traced.effects)


# The pipeline


def test_the_pipeline_runs_on_a_gpu_and_then_has_nothing_to_do(
    gpu: torch.device, tmp_path: Path
) -> None:
    project = Project(tmp_path)
    project.edit(
        run={"mixtures": ["cg-low"]},
        train={"precision": "amp", "images": "decoded"},
        evaluate={"precision": "amp"},
    )
    project.run("dvc", "repro")
    assert "up to date" in project.run("dvc", "repro").stdout
    run = "cg-low-sample-rn-s0"
    facts = json.loads((tmp_path / "build" / "runs" / run / "training.json").read_text())
    assert (facts["device"], facts["processes"]) == (gpu.type, 1)
    (cell,) = json.loads((tmp_path / "metrics" / "summary.json").read_text())
    assert cell["mixture"] == "cg-low"
    mechanisms = pd.read_csv(tmp_path / "metrics" / "mechanisms.csv")
    assert {"sharing", "completeness error"} <= set(mechanisms["measure"])
