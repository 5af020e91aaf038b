"""Everything that the comparison reads of the cells, and the numbers that follow from it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pandas as pd

from clip_mixtures.evaluation.accuracy import HELD_OUT
from clip_mixtures.report.differences import paired_differences
from clip_mixtures.report.interpolation import interpolation_points
from clip_mixtures.report.matrix import averaged_over_seeds
from clip_mixtures.report.robustness import robustness_of_cells
from clip_mixtures.training.layout import CURVES, FACTS
from evaluated import (
    EXAMPLES,
    PINNED,
    evaluation_of,
    existing,
    last_answers,
    read_json,
    training_of,
)
from experiment import BUILD, VERIFICATION, Cell, Experiment


@dataclasses.dataclass(frozen=True)
class Study:
    """The cells that params.yaml names, as far as they were trained and evaluated."""

    experiment: Experiment

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells, in the order of params.yaml."""
        return self.experiment.cells

    @functools.cached_property
    def evaluated(self) -> dict[str, dict[str, Any]]:
        """The metrics of each run."""
        return {cell.run: read_json(evaluation_of(cell) / "metrics.json") for cell in self.cells}

    @functools.cached_property
    def trained(self) -> dict[str, dict[str, Any]]:
        """What is known of each run's training."""
        return {cell.run: read_json(training_of(cell) / FACTS) for cell in self.cells}

    @functools.cached_property
    def summary(self) -> list[dict[str, Any]]:
        """The cells as :mod:`clip_mixtures.report.tables` has them."""
        return [_summary(self.evaluated[cell.run], self.trained[cell.run]) for cell in self.cells]

    @property
    def histories(self) -> dict[str, list[dict[str, Any]]]:
        """The evaluated checkpoints of each run."""
        return {run: found["checkpoints"] for run, found in self.evaluated.items()}

    @property
    def losses(self) -> dict[str, pd.DataFrame]:
        """The loss curve of each run."""
        return {cell.run: _losses(cell) for cell in self.cells}

    @property
    def classes(self) -> int:
        """How many classes a model picks among."""
        return int(next(iter(self.evaluated.values()))["classes"])

    @property
    def mixtures(self) -> list[str]:
        """The mixtures' keys, in the order of params.yaml."""
        return list(dict.fromkeys(cell.mixture for cell in self.cells))

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each mixture."""
        return {key: self.experiment.mixture(key).kind for key in self.mixtures}

    @property
    def held_out(self) -> dict[str, frozenset[int]]:
        """The class ids that each mixture holds out."""
        return {key: self._held_out(key) for key in self.mixtures}

    @property
    def informed(self) -> set[str]:
        """The mixtures that train on held-out images: upper bounds and interpolations."""
        mixtures = {key: self.experiment.mixture(key) for key in self.mixtures}
        return {key for key, one in mixtures.items() if one.include_test_classes or one.allow}

    @functools.cached_property
    def counts(self) -> pd.DataFrame:
        """The training images of each mixture."""
        return pd.concat([_counts(key) for key in self.mixtures], ignore_index=True)

    @functools.cached_property
    def averaged(self) -> pd.DataFrame:
        """Accuracies averaged over seeds."""
        return averaged_over_seeds(self.summary)

    @functools.cached_property
    def robustness(self) -> pd.DataFrame:
        """Every checkpoint against the line of the natural-only ones."""
        natural = {key for key, kind in self.kinds.items() if kind == "natural_only"}
        settings = self.experiment.evaluate
        return robustness_of_cells(
            self.summary,
            self.histories,
            self.held_out,
            natural,
            resamples=settings.resamples,
            seed=settings.seed,
        )

    @functools.cached_property
    def differences(self) -> pd.DataFrame:
        """Differences between mixtures, pair by pair."""
        cells = {cell.run: cell for cell in self.cells}
        domains = {key: self.experiment.mixture(key).test_domain for key in self.mixtures}
        settings = self.experiment.evaluate

        @functools.cache
        def answers(run: str) -> pd.DataFrame:
            return last_answers(cells[run], domains[cells[run].mixture])

        return paired_differences(
            self.summary,
            self.kinds,
            self.held_out,
            answers,
            resamples=settings.resamples,
            seed=settings.seed,
        )

    @functools.cached_property
    def interpolations(self) -> pd.DataFrame:
        """The mixtures that lie on a curve."""
        mixtures = {key: self.experiment.mixture(key) for key in self.mixtures}
        return interpolation_points(self.averaged, mixtures)

    @functools.cached_property
    def class_tables(self) -> dict[str, pd.DataFrame]:
        """The right answers of each run, class by class."""
        return {
            cell.run: pd.read_parquet(existing(evaluation_of(cell) / "classes.parquet"))
            for cell in self.cells
        }

    @property
    def confusions(self) -> dict[str, pd.DataFrame]:
        """What each run takes held-out classes for."""
        names = {"class_name": str, "predicted": str}
        return {
            cell.run: pd.read_csv(
                existing(evaluation_of(cell) / "confusions.csv"), dtype=names, keep_default_na=False
            )
            for cell in self.cells
        }

    @property
    def examples(self) -> pd.DataFrame:
        """Images of held-out classes with the answers of every run."""
        names = {"class_name": str, "answer": str, "file": str}
        return pd.read_csv(existing(EXAMPLES / "examples.csv"), dtype=names, keep_default_na=False)

    @property
    def audits(self) -> dict[str, dict[str, Any]]:
        """The audit of each mixture."""
        return {key: read_json(BUILD / "mixtures" / key / "audit.json") for key in self.mixtures}

    @property
    def verification(self) -> dict[str, Any]:
        """What was found when every image was opened."""
        return read_json(VERIFICATION / "summary.json")

    @property
    def definitions(self) -> dict[str, dict[str, Any]]:
        """What each mixture is made by."""
        return {key: read_json(BUILD / "mixtures" / key / "mixture.json") for key in self.mixtures}

    @property
    def data(self) -> dict[str, Any]:
        """What pins the data that the examples, and all else, come from."""
        return read_json(EXAMPLES / PINNED)

    def _held_out(self, key: str) -> frozenset[int]:
        run = next(cell.run for cell in self.cells if cell.mixture == key)
        found = self.class_tables[run]
        return frozenset(found.loc[found["group"] == HELD_OUT, "class_id"].tolist())


def _summary(evaluated: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    last = evaluated["checkpoints"][-1]
    facts = {
        **{key: evaluated[key] for key in ("run", "mixture", "model", "seed", "test_domain")},
        "epoch": last["epoch"],
        "train_images": trained["train_images"],
        "accuracies": last["accuracies"],
    }
    return {**facts, "imagenet": last["imagenet"]} if "imagenet" in last else facts


def _losses(cell: Cell) -> pd.DataFrame:
    path = existing(training_of(cell) / CURVES / "plots" / "metrics" / "loss.tsv")
    return pd.read_csv(path, sep="\t")[["step", "loss"]]


def _counts(key: str) -> pd.DataFrame:
    counts = pd.read_csv(existing(BUILD / "mixtures" / key / "counts.csv"))
    counts.insert(0, "mixture", key)
    return counts
