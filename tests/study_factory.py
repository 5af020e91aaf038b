"""A study that was never trained: the files that the comparison reads, with made-up answers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from corpora_factory import make_domainnet
from ruamel.yaml import YAML

from clip_mixtures.corpora.indexing import index_domains
from clip_mixtures.corpora.sources import Domains
from clip_mixtures.evaluation.cell import class_table, confusion_table, history_of
from clip_mixtures.index import Index, write_index

ROOT = Path(__file__).parent.parent
DOMAINS = ["clipart", "painting", "real", "sketch"]
CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox"]
HELD_OUT = ["ant", "cat", "eel"]

Params = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """A folder with params.yaml, data, data.dvc and build/, all but the examples."""

    folder: Path
    runs: tuple[str, ...]


def make_study(
    folder: Path,
    mixtures: Params,
    models: Sequence[str] = ("rn",),
    seeds: Sequence[int] = (0,),
    epochs: Sequence[int] = (0, 2),
) -> MadeUp:
    """Make up a study whose later mixtures do better.

    Args:
        folder: which is the project's.
        mixtures: as in params.yaml.
        models: names; all are CLIP models.
        seeds: of the runs.
        epochs: of the checkpoints that were evaluated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_params(folder, mixtures, models, seeds)
    make_domainnet(folder / "data" / "domains", DOMAINS, CLASSES, train=3, test=4, size=24)
    pin = {"outs": [{"md5": "0123456789abcdef.dir", "size": 1234, "nfiles": 8, "path": "data"}]}
    with (folder / "data.dvc").open("w") as file:
        YAML().dump(pin, file)
    index = index_domains(Domains(folder / "data" / "domains", tuple(DOMAINS)))
    build = folder / "build"
    write_index(build / "index" / "domains.parquet", index)
    _write_json(
        build / "verification" / "summary.json",
        {"domains": {"images": len(index), "unreadable": 0, "remarks": {"alpha": 0}}},
    )
    runs = []
    for place, key in enumerate(mixtures):
        _write_mixture(build / "mixtures" / key, key, mixtures[key])
        for model in models:
            for seed in seeds:
                run = f"{key}-{model}-s{seed}"
                facts = {"run": run, "mixture": key, "model": model, "seed": seed}
                _write_evaluation(build / "evaluation" / run, index, facts, place, epochs)
                _write_training(build / "evaluation" / run / "training", facts)
                runs.append(run)
    return MadeUp(folder, tuple(runs))


def _write_params(
    folder: Path, mixtures: Params, models: Sequence[str], seeds: Sequence[int]
) -> None:
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text())
    params["run"] = {"mixtures": list(mixtures), "models": list(models), "seeds": list(seeds)}
    params["mixtures"] = {key: dict(value) for key, value in mixtures.items()}
    params["models"] = {model: {"architecture": "sample-RN"} for model in models}
    params["corpus"]["domains"] = DOMAINS
    params["test"]["held_out"] = HELD_OUT
    params["evaluate"]["bootstrap_resamples"] = 100
    params["mechanisms"] |= {"models": [], "seeds": [], "circuit_models": [], "circuit_seeds": []}
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(params, file)


def _write_mixture(folder: Path, key: str, definition: Mapping[str, Any]) -> None:
    _write_json(
        folder / "mixture.json",
        {"mixture": {"key": key, **definition}, "indices": {"domains": {"sha256": "ab12"}}},
    )
    _write_json(
        folder / "audit.json",
        {
            "held_out_pairs": {"images": 0},
            "duplicates": {"compared": False},
            "captions": {},
            "leaks": [],
        },
    )
    counts = pd.DataFrame(
        [("base", "base", 20), ("real", "seen", 40), ("real", "held_out", 10)],
        columns=["domain", "group", "images"],
    )
    counts.to_csv(folder / "counts.csv", index=False)


def _write_evaluation(
    folder: Path, index: Index, facts: Mapping[str, Any], place: int, epochs: Sequence[int]
) -> None:
    folder.mkdir(parents=True)
    test = index.frame[index.frame["split"] == "test"]
    held_out = [CLASSES.index(name) for name in HELD_OUT]
    # The same in every process, unlike a hash of the run's name.
    random = np.random.default_rng([place, len(str(facts["model"])), int(facts["seed"])])
    parts = []
    for epoch in epochs:
        labels = test["class_id"].to_numpy(dtype=np.int32)
        is_right = random.random(len(test)) < (0.15 + 0.03 * place) * epoch
        others = (labels + random.integers(1, len(CLASSES), len(test))) % len(CLASSES)
        parts.append(
            pd.DataFrame(
                {
                    "epoch": np.int32(epoch),
                    "row": test.index.to_numpy(dtype=np.int64),
                    "domain": test["domain"].to_numpy(),
                    "class_id": labels,
                    "prediction": np.where(is_right, labels, others).astype(np.int32),
                    "rank": np.where(is_right, 0, -1).astype(np.int8),
                }
            )
        )
    predictions = pd.concat(parts, ignore_index=True)
    predictions.to_parquet(folder / "predictions-domains.parquet", index=False)
    class_table(predictions, CLASSES, held_out).to_parquet(folder / "classes.parquet", index=False)
    confusion_table(predictions, CLASSES, held_out).to_csv(folder / "confusions.csv", index=False)
    history = history_of(predictions, held_out, resamples=100, seed=0)
    whole = {**facts, "test_domain": "sketch", "classes": len(CLASSES), "checkpoints": history}
    _write_json(folder / "metrics.json", whole)


def _write_training(folder: Path, facts: Mapping[str, Any]) -> None:
    recipe = {"epochs": 2, "global_batch_size": 8, "learning_rate": 1e-3}
    _write_json(
        folder / "training.json",
        {
            **{key: facts[key] for key in ("mixture", "model", "seed")},
            "processes": 1, "device": "cpu", "device_batch": 8, "versions": {"torch": "2.15.0"},
            "train_images": 70, "steps": 16, "images_seen": 128,
            "loss": 1.25, "recipe": recipe,
        },
    )  # fmt: skip
    curve = folder / "curves" / "plots" / "metrics" / "loss.tsv"
    curve.parent.mkdir(parents=True)
    losses = pd.DataFrame({"step": range(1, 17), "loss": np.linspace(3, 1.25, 16)})
    losses.to_csv(curve, sep="\t", index=False)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def copied(study: MadeUp, folder: Path) -> MadeUp:
    """Copy a study, to spoil the copy."""
    shutil.copytree(study.folder, folder)
    return MadeUp(folder, study.runs)
