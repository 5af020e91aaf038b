"""Compare the cells that params.yaml names: tables, figures and one page.

python stages/compare.py
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pandas as pd

import explained
from clip_mixtures.errors import UserError, reports_user_errors
from clip_mixtures.files import atomic_write_json, atomic_write_text
from clip_mixtures.report import figures, tables
from clip_mixtures.report.page import Drawing, write_page
from clip_mixtures.report.robustness import robustness_markdown, robustness_of_cells
from clip_mixtures.report.robustness_figures import robustness_figure
from clip_mixtures.report.style import save_figure
from clip_mixtures.training.loop import CURVES, FACTS
from experiment import BUILD, METRICS, REPORT, Cell, load_experiment
from mechanism_params import load_mechanisms

FIGURES = REPORT / "figures"


@reports_user_errors
def main() -> None:
    """Write metrics/ and report/."""
    experiment = load_experiment()
    mechanisms = load_mechanisms(experiment)
    evaluated = {cell: _read_json(_evaluation(cell)) for cell in experiment.cells}
    trained = {cell: _read_json(_training(cell) / FACTS) for cell in experiment.cells}
    summary = [_summary(evaluated[cell], trained[cell]) for cell in experiment.cells]
    histories = {cell.run: evaluated[cell]["checkpoints"] for cell in experiment.cells}
    losses = {cell.run: _losses(cell) for cell in experiment.cells}
    keys = list(dict.fromkeys(cell.mixture for cell in experiment.cells))
    counts = pd.concat([_counts(key) for key in keys], ignore_index=True)
    kinds = {key: experiment.mixture(key).kind for key in keys}
    classes = next(iter(evaluated.values()))["classes"]

    comparison = tables.comparison_markdown(summary, classes=classes)
    composition = tables.counts_markdown(counts)
    atomic_write_json(METRICS / "summary.json", summary)
    atomic_write_json(METRICS / "headline.json", tables.headline(summary, kinds))
    _write_csv(METRICS / "cells.csv", tables.cells_frame(summary))
    _write_csv(METRICS / "mixtures.csv", counts)
    _write_csv(METRICS / "held_out.csv", _held_out(summary))
    atomic_write_text(METRICS / "comparison.md", comparison)
    drawn = {
        "held_out_accuracy": figures.held_out_accuracy(summary, classes=classes),
        "learning_curves": figures.learning_curves(histories, summary),
        "training_loss": figures.training_loss(losses, summary),
        "mixture_composition": figures.mixture_composition(counts),
    }
    natural = {key for key, kind in kinds.items() if kind == "natural_only"}
    resamples, seed = experiment.evaluate.resamples, experiment.evaluate.seed
    robust = robustness_of_cells(summary, histories, natural, resamples=resamples, seed=seed)
    _write_csv(METRICS / "robustness.csv", robust)
    drawn["robustness"] = robustness_figure(robust, resamples=resamples, seed=seed)
    drawings = [Drawing(name, *CAPTIONS[name], figure) for name, figure in drawn.items()]
    _write_csv(METRICS / "mechanisms.csv", explained.measures(experiment, mechanisms))
    pictures = []
    for drawing in itertools.chain(drawings, explained.drawings(experiment, mechanisms)):
        png, _ = save_figure(drawing.figure, FIGURES / drawing.name)
        if drawing.on_page:
            pictures.append((drawing.heading, png, drawing.caption))
    write_page(
        REPORT / "index.html",
        title="Mixtures compared",
        tables=[
            ("Accuracy", comparison),
            ("Effective robustness", robustness_markdown(robust)),
            ("Training images", composition),
        ],
        figures=pictures,
        notes=[
            "Intervals are 95 % bootstrap intervals over classes and images of the test set.",
            "Every class of the corpus competes for every image.",
        ],
    )
    print(f"{len(summary)} cells compared: {REPORT / 'index.html'}, {METRICS / 'comparison.md'}")


CAPTIONS = {
    "held_out_accuracy": (
        "Held-out and seen classes of the test domain",
        "Balanced accuracy of the last checkpoint with 95 % intervals; of CLIP, zero-shot.",
    ),
    "learning_curves": (
        "Accuracy over training",
        "Balanced accuracy in the test domain of every checkpoint, epoch 0 first.",
    ),
    "training_loss": (
        "Training loss",
        "Contrastive loss of CLIP, cross entropy of classifiers; smoothed.",
    ),
    "robustness": (
        "Effective robustness",
        "Every checkpoint's accuracy on held-out classes in the test domain against that on seen "
        "classes in natural images, on logit axes, and the line of the natural-only checkpoints.",
    ),
    "mixture_composition": (
        "What the mixtures contain",
        "Training images by domain; hatched: the classes that are held out in the test domain.",
    ),
}


def _evaluation(cell: Cell) -> Path:
    return BUILD / "evaluation" / cell.run / "metrics.json"


def _training(cell: Cell) -> Path:
    return BUILD / "evaluation" / cell.run / "training"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: missing; `dvc repro` makes it (or leave its cell out of `run`)")
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _summary(evaluated: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    last = evaluated["checkpoints"][-1]
    return {
        **{key: evaluated[key] for key in ("run", "mixture", "model", "seed", "test_domain")},
        "epoch": last["epoch"],
        "train_images": trained["train_images"],
        "accuracies": last["accuracies"],
    }


def _losses(cell: Cell) -> pd.DataFrame:
    folder = _training(cell) / CURVES / "plots" / "metrics"
    return pd.read_csv(folder / "loss.tsv", sep="\t")[["step", "loss"]]


def _counts(key: str) -> pd.DataFrame:
    counts = pd.read_csv(BUILD / "mixtures" / key / "counts.csv")
    counts.insert(0, "mixture", key)
    return counts


def _held_out(summary: list[dict[str, Any]]) -> pd.DataFrame:
    """The one number a cell is about, for `dvc plots`."""
    cells = tables.cells_frame(summary)
    rows = (cells["domain"] == cells["test_domain"]) & (cells["average"] == "balanced")
    part = cells[rows].pivot(index="run", columns="group", values="estimate")
    part = part.reindex([cell["run"] for cell in summary])
    return (100 * part).round(2).reset_index()


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    atomic_write_text(path, frame.to_csv(index=False, lineterminator="\n"))


if __name__ == "__main__":
    main()
