"""Dry runs: the whole path on a small network, what is reported of it, and mistakes."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_supervised import CONFIG as CLASSIFIER
from test_training import CONFIG as CLIP

import dry_run as stage
from clip_mixtures.corpora.generated import write_generated
from clip_mixtures.errors import UserError
from clip_mixtures.mixtures.spec import Mixture
from clip_mixtures.training import dry_run as library
from clip_mixtures.training.checkpoints import load_checkpoint, save_checkpoint
from clip_mixtures.training.config import SupervisedConfig, TrainConfig
from clip_mixtures.training.dry_run import DryRun, dry_run
from clip_mixtures.training.models import create_clip
from clip_mixtures.training.processes import Processes
from clip_mixtures.training.supervised import create_classifier
from experiment import load_experiment

ROOT = Path(__file__).parent.parent
ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))
DOMAINS = ("clipart", "real", "sketch")
MIXTURE = Mixture("m", "cg_high_diversity", "sketch", ("ant",), DOMAINS, protocol="corrected")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    # Starting a worker takes longer than all that it would do here.
    monkeypatch.setenv("WORKERS", "0")
    monkeypatch.delenv("DEVICE_BATCH", raising=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_generated(tmp_path_factory.mktemp("generated") / "corpus", 8, 3, DOMAINS)


def tried(
    recipe: TrainConfig | SupervisedConfig,
    corpus: dict[str, Path],
    scratch: Path,
    evaluate: Callable[[Path], float] = lambda _: 0.25,
) -> DryRun:
    scratch.mkdir()
    seen = dry_run("sample-RN", recipe, 6, MIXTURE, corpus, scratch, ALONE, evaluate)
    assert seen is not None
    return seen


@pytest.mark.parametrize("images", ["packed", "decoded"])
def test_clip_is_trained_for_two_steps_and_evaluated(
    corpus: dict[str, Path], tmp_path: Path, images: str
) -> None:
    evaluated = []

    def evaluate(checkpoint: Path) -> float:
        evaluated.append(checkpoint)
        load_checkpoint(checkpoint, create_clip("sample-RN").network)
        return 0.5

    recipe = dataclasses.replace(CLIP, images=images, grad_checkpointing=True)
    seen = tried(recipe, corpus, tmp_path / "scratch", evaluate)
    network = create_clip("sample-RN").network
    assert seen.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert (seen.architecture, seen.is_supervised, seen.image_size) == ("sample-RN", False, 64)
    assert (seen.global_batch, seen.process_batch, seen.device_batch, seen.pieces) == (6, 6, 6, 1)
    assert (seen.precision, seen.accuracy, seen.workers) == ("fp32", 0.5, 0)
    # Six images at random are told apart by chance, about.
    assert 1 < seen.loss_before < 4
    assert seen.loss_after != seen.loss_before
    assert math.isfinite(seen.loss_after)
    (checkpoint,) = evaluated
    assert seen.checkpoint_bytes == checkpoint.stat().st_size > 4 * seen.parameters
    assert 0 < seen.seconds < 60
    assert seen.images_per_second == pytest.approx(6 / seen.seconds)
    assert seen.input_per_second == pytest.approx(6 / seen.input_seconds)
    # Weights, gradients and moments are the least that it takes.
    assert seen.peak_bytes > 16 * seen.parameters
    facts = json.loads((tmp_path / "scratch" / "mixture" / "mixture.json").read_text())
    assert facts["images"]["train"] == {"base-generated": 3, "domains": 3}
    assert facts["mixture"]["protocol"] == "corrected"
    epochs = sorted(path.name for path in (tmp_path / "scratch" / "checkpoints").iterdir())
    assert epochs == ["epoch_000.safetensors", "epoch_002.safetensors"]


def test_a_classifier_has_an_output_for_every_class(
    corpus: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEVICE_BATCH", "4")
    seen = tried(CLASSIFIER, corpus, tmp_path / "scratch")
    assert seen.is_supervised
    assert (seen.device_batch, seen.pieces) == (4, 2)
    classifier = create_classifier(create_clip("sample-RN"), 345)
    assert seen.parameters == sum(parameter.numel() for parameter in classifier.parameters())
    # Chance among 1,345 classes, about; at this rate two steps learn six images.
    assert seen.loss_before == pytest.approx(math.log(1345), abs=0.5)
    assert seen.loss_after < seen.loss_before


def test_a_loss_that_is_not_finite_stops_it(corpus: dict[str, Path], tmp_path: Path) -> None:
    recipe = dataclasses.replace(CLASSIFIER, learning_rate=1e38, milestones=(5,))
    with pytest.raises(UserError, match=r"loss is .* at step 2"):
        tried(recipe, corpus, tmp_path / "scratch")


def test_a_checkpoint_that_is_not_what_was_saved_is_found(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    save_checkpoint(tmp_path, 0, network)
    path = tmp_path / "epoch_000.safetensors"
    library._check_reloads(path, network)
    with torch.no_grad():
        network.bias[1] += 1
    with pytest.raises(RuntimeError, match="bias is not what was saved"):
        library._check_reloads(path, network)


def test_the_feed_is_timed_and_not_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("clip_mixtures.training.dry_run.time.perf_counter", lambda: clock[0])

    class Feed:
        def __len__(self) -> int:
            return 5

        def batches(self, rows: torch.Tensor, draws: torch.Tensor) -> Iterator[Any]:
            for seconds in (3.0, 4.0):
                clock[0] += seconds
                yield seconds

    feed = library._TimedFeed(Feed())
    for _ in feed.batches(torch.empty(0), torch.empty(0)):
        clock[0] += 100.0
    assert feed.seconds == [3.0, 4.0]
    assert len(feed) == 5


# The program


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped parameters and a preset of its own."""
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "tiny.yaml").write_text(
        "models:\n"
        "  tiny: {architecture: sample-RN, train: {images: decoded, precision: amp}}\n"
        "train: {global_batch_size: 32}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCRATCH", raising=False)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call the program and return what it prints."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dry_run.py", *arguments])
        stage.main()
        return capsys.readouterr().out

    return call


def rows_of(printed: str) -> list[dict[str, str]]:
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_a_preset_is_tried_and_not_written(project: Path, run: Callable[..., str]) -> None:
    before = (project / "params.yaml").read_bytes()
    printed = run("--preset", "tiny", "--model", "tiny", "--images", "3", "--train-images", "100")
    (row,) = rows_of(printed)
    wanted = {
        "model": "tiny", "architecture": "sample-RN", "image": "64 px", "recipe": "32, amp",
        "steps/epoch": "3", "tried": "8, fp32", "a process": "8", "at a time": "8 x 1",
    }  # fmt: skip
    assert {name: row[name] for name in wanted} == wanted
    assert "not the recipe's" in printed
    assert (project / "params.yaml").read_bytes() == before
    # What was made is removed.
    assert list((project / "scratch").iterdir()) == []


def test_all_models_of_the_parameters_are_tried(project: Path, run: Callable[..., str]) -> None:
    found = rows_of(run("--global-batch", "4"))
    assert [row["model"] for row in found] == ["sample-rn", "sample-classifier"]
    assert [row["tried"] for row in found] == ["4, fp32"] * 2
    assert [row["recipe"] for row in found] == ["64, fp32"] * 2
    assert [row["steps/epoch"] for row in found] == ["-", "-"]
    assert found[1]["architecture"] == "sample-RN, classifier"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "tny"], "error: presets: unknown preset 'tny'; did you mean 'tiny'?"),
        (["--model", "rn"], "error: params.yaml: models: unknown model 'rn'; "),
        (["--preset", "tiny", "--model", "rn50"], "unknown model 'rn50'; "),
        (["--global-batch", "0"], "error: --global-batch 0: allowed: 1 or more"),
        (["--images", "0"], "error: --images 0: allowed: 1 or more"),
        (["--train-images", "-5"], "error: --train-images -5: allowed: 1 or more"),
    ],
)
def test_mistakes_are_one_line(
    project: Path,
    run: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(project.glob("scratch/*")) == []


def test_a_preset_is_about_its_own_models_and_those_it_runs(
    project: Path,
) -> None:
    _, keys = stage._models("tiny", None)
    assert keys == ["tiny", "sample-rn", "sample-classifier"]
    _, keys = stage._models(None, None)
    assert keys == ["sample-rn", "sample-classifier"]


@pytest.mark.parametrize(
    ("wanted", "processes", "device", "batch"),
    [
        (None, 1, "cpu", 8),
        (None, 3, "cpu", 9),
        (None, 1, "cuda", 64),
        (None, 4, "cuda", 64),
        (100, 4, "cuda", 100),
        (100, 4, "cpu", 100),
    ],
)
def test_the_batch_is_the_recipes_but_on_a_cpu(
    project: Path, wanted: int | None, processes: int, device: str, batch: int
) -> None:
    model = load_experiment().model("sample-rn")
    several = Processes(0, processes, torch.device(device))
    assert stage._batch(wanted, model, several) == batch


def test_a_batch_that_processes_cannot_share_is_refused(project: Path) -> None:
    model = load_experiment().model("sample-rn")
    several = Processes(0, 4, torch.device("cpu"))
    with pytest.raises(UserError, match=r"--global-batch 10: 4 processes.* multiple of 4"):
        stage._batch(10, model, several)


def test_precision_is_the_recipes_but_on_a_cpu(project: Path) -> None:
    model = load_experiment().model("sample-rn")
    half = dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, precision="amp"))
    gpu = Processes(0, 1, torch.device("cuda"))
    assert stage._tried(half, None, gpu) == half
    assert stage._tried(half, None, ALONE).recipe.precision == "fp32"
    assert stage._tried(half, "amp_bf16", ALONE).recipe.precision == "amp_bf16"
    assert stage._tried(half, "fp32", gpu).recipe.precision == "fp32"


def test_the_report_says_what_was_seen() -> None:
    seen = DryRun(
        architecture="RN50", is_supervised=False, parameters=102_000_000, image_size=224,
        precision="amp", global_batch=1024, process_batch=256, device_batch=128, pieces=2,
        seconds=0.5, input_seconds=0.25, workers=4, peak_bytes=30_500_000_000,
        checkpoint_bytes=408_300_000, loss_before=6.93147, loss_after=6.9, accuracy=0.03125,
    )  # fmt: skip
    recipe = dataclasses.replace(CLIP, global_batch_size=1024, precision="amp")
    gpus = Processes(0, 4, torch.device("cuda"))
    printed = stage.report({"rn50": seen}, {"rn50": recipe}, gpus, 592_735)
    assert printed.startswith("4 process(es) on cuda; ")
    assert "not the recipe's" not in printed
    (row,) = rows_of(printed)
    assert row == {
        "model": "rn50", "architecture": "RN50", "weights": "102.0 M", "image": "224 px",
        "recipe": "1,024, amp", "steps/epoch": "578", "tried": "1,024, amp", "a process": "256",
        "at a time": "128 x 2", "step": "0.50 s", "images/s": "2,048.0",
        "input/s (workers)": "4,096 (4)", "peak memory": "30.50 GB", "checkpoint": "408.3 MB",
        "loss before": "6.9315", "after": "6.9000", "top-1": "3.1 %",
    }  # fmt: skip
