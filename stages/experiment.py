"""Read params.yaml: the one place where parameters enter, each of them checked before work starts.

The library takes values; the stages get theirs from here. The file is loaded without torch, so a
mistake in it is answered in a fraction of a second.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_mixtures.corpora.sources import (
    LAYOUTS,
    NO_BASE,
    Domains,
    Sources,
    base_source,
    check_name,
)
from clip_mixtures.errors import UserError, unknown
from clip_mixtures.evaluation.config import PROMPTS, EvaluationConfig
from clip_mixtures.files import read_yaml
from clip_mixtures.mixtures.spec import (
    DUPLICATE_POLICIES,
    NATURAL_DOMAIN,
    PROTOCOLS,
    Checks,
    Mixture,
    check_defaults,
    mixture_from_params,
)
from clip_mixtures.training.architectures import check_architecture
from clip_mixtures.training.config import (
    PRECISIONS,
    SupervisedConfig,
    TrainConfig,
    recipe_from_params,
    train_config_from_params,
)

PARAMS = Path("params.yaml")
PRESETS = Path("presets")
# What data.dvc pins, and every corpus lies under: a corpus elsewhere would change unseen.
DATA = Path("data")
BUILD = Path("build")
INDEX = BUILD / "index"
# Facts of an analysis, beside what it found.
FACTS = "facts.json"
VERIFICATION = BUILD / "verification"
ACTIVATIONS = BUILD / "activations"
MECHANISMS = BUILD / "mechanisms"
METRICS = Path("metrics")
REPORT = Path("report")

_SECTIONS = (
    "run",
    "corpus",
    "audit",
    "test",
    "mixtures",
    "models",
    "train",
    "evaluate",
    "mechanisms",
)
_MODEL_KEYS = ("architecture", "train", "supervised")
_RUN_KEYS = ("mixtures", "models", "seeds")
_CORPUS_PATHS = ("imagenet_sketch", "imagenet_train", "imagenet_validation", "imagenet_labels")
_CORPUS_KEYS = ("domains_root", "domains", "layout", "bases")
_CORPUS_EXTRAS = ("test_share", *_CORPUS_PATHS)
_AUDIT_KEYS = ("unreadable_share", "duplicates", "near_bits")
_TEST_KEYS = ("test_domain", "held_out")
_EVALUATE_KEYS = ("prompts", "protocol", "precision", "bootstrap_resamples", "bootstrap_seed")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
# What numpy and torch take for a seed.
_LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    mixture: str
    model: str
    seed: int

    @property
    def run(self) -> str:
        """Name of the run and of its folders."""
        return f"{self.mixture}-{self.model}-s{self.seed}"


@dataclasses.dataclass(frozen=True)
class Model:
    """What is trained: CLIP, or a supervised classifier with CLIP's visual tower.

    Attributes:
        architecture: a model of open_clip or of this project.
        recipe: of a classifier, or of CLIP: `train`, with what the model says otherwise.
    """

    architecture: str
    recipe: TrainConfig | SupervisedConfig

    @property
    def is_supervised(self) -> bool:
        """Whether it is a classifier."""
        return isinstance(self.recipe, SupervisedConfig)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All of params.yaml, checked."""

    domains: Domains
    sources: Sources
    checks: Checks
    unreadable_share: float
    mixtures: dict[str, Mixture]
    models: dict[str, Model]
    train: TrainConfig
    evaluate: EvaluationConfig
    cells: tuple[Cell, ...]

    def mixture(self, key: str) -> Mixture:
        """Return a mixture by its key."""
        if key not in self.mixtures:
            raise unknown("mixture", key, self.mixtures, f"{PARAMS}: mixtures")
        return self.mixtures[key]

    def model(self, key: str) -> Model:
        """Return a model by its key."""
        if key not in self.models:
            raise unknown("model", key, self.models, f"{PARAMS}: models")
        return self.models[key]


def scratch_root() -> Path:
    """Return the folder for what is not finished: SCRATCH, or `scratch` here."""
    return Path(os.environ.get("SCRATCH") or "scratch")


def running_stage() -> str | None:
    """Return DVC's name of the stage that it runs here, None where it runs none.

    Such as ``pipeline/sae/dvc.yaml:sae@cg-low-sample-rn-0``; those of dvc.yaml go without a file.
    """
    return os.environ.get("DVC_STAGE")


def load_experiment(path: Path = PARAMS, class_names: Sequence[str] | None = None) -> Experiment:
    """Read and check a parameter file.

    Args:
        path: the file.
        class_names: the classes of the corpus, where they are known already.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    params = read_yaml(path)
    _only(params, _SECTIONS, str(path))
    corpus = mapping(params["corpus"], "corpus")
    domains = _domains(corpus)
    sources = _sources(corpus, domains)
    audit = section(params, "audit", _AUDIT_KEYS)
    defaults = section(params, "test", _TEST_KEYS)
    # Checked as a mixture of its own, so that a mistake is reported under its own key.
    check_defaults(defaults, domains.names or (), class_names)
    mixtures = {
        _checked_key(key, "mixtures"): mixture_from_params(
            key, value, defaults, domains.names or (), class_names
        )
        for key, value in mapping(params["mixtures"], "mixtures").items()
    }
    for key, mixture in mixtures.items():
        if mixture.takes_sketches and sources.imagenet_sketch is None:
            raise UserError(
                f"mixtures.{key}: takes ImageNet-Sketch; say under corpus.imagenet_sketch where it "
                "is, or leave out add_sketches and mix_sketches"
            )
        if mixture.base not in (None, NO_BASE, *sources.bases):
            names = [*sources.bases, NO_BASE]
            raise unknown("base set", mixture.base, names, f"mixtures.{key}.base")
    train = train_config_from_params(params["train"])
    models = {
        _checked_key(key, "models"): _model(key, value, params["train"])
        for key, value in mapping(params["models"], "models").items()
    }
    return Experiment(
        domains=domains,
        sources=sources,
        checks=Checks(
            duplicates=_one_of(audit, "duplicates", DUPLICATE_POLICIES, "audit"),
            near_bits=_integer(audit, "near_bits", "audit"),
        ),
        unreadable_share=_share(audit, "unreadable_share", "audit"),
        mixtures=mixtures,
        models=models,
        train=train,
        evaluate=_evaluation(section(params, "evaluate", _EVALUATE_KEYS)),
        cells=_cells(section(params, "run", _RUN_KEYS), mixtures, models),
    )


def cell_of_arguments(description: str | None) -> Cell:
    """Return the cell that the command line names with --mixture, --model and --seed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mixture", required=True, help="key under `mixtures` in params.yaml")
    parser.add_argument("--model", required=True, help="key under `models` in params.yaml")
    parser.add_argument("--seed", type=int, required=True, help="one of run.seeds, a whole number")
    args = parser.parse_args()
    return Cell(args.mixture, args.model, args.seed)


def no_arguments(description: str | None) -> None:
    """Answer --help, and refuse arguments, of a script that takes none."""
    argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Return a value that is a mapping.

    Raises:
        UserError: when it is none.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: is {value!r}, not a mapping of keys to values")
    return value


def _only(params: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in params:
        if key not in keys:
            raise unknown("key", key, keys, where)
    missing = [key for key in keys if key not in params]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing")


def section(params: Mapping[str, Any], name: str, keys: Sequence[str]) -> Mapping[str, Any]:
    """Return a section that has all of the keys and no other.

    Raises:
        UserError: naming the key.
    """
    section = mapping(params[name], name)
    _only(section, keys, name)
    return section


def _domains(params: Mapping[str, Any]) -> Domains:
    for key in params:
        if key not in (*_CORPUS_KEYS, *_CORPUS_EXTRAS):
            raise unknown("key", key, (*_CORPUS_KEYS, *_CORPUS_EXTRAS), "corpus")
    missing = [key for key in _CORPUS_KEYS if key not in params]
    if missing:
        raise UserError(f"corpus: {', '.join(missing)} missing")
    domains = params["domains"]
    if not are_different(domains, str) or len(domains) < 2:
        raise UserError(f"corpus.domains: is {domains!r}, not a list of two or more domains")
    if NATURAL_DOMAIN not in domains:
        raise UserError(
            f"corpus.domains: is {domains!r}; one domain must be {NATURAL_DOMAIN!r}, the natural "
            "images that every mixture is compared with"
        )
    layout = _one_of(params, "layout", LAYOUTS, "corpus")
    if "test_share" in params and layout != "folders":
        raise UserError("corpus.test_share: means nothing beside split lists; layout: folders")
    found = Domains(_path(params, "domains_root"), tuple(domains), layout)
    if "test_share" not in params:
        return found
    return dataclasses.replace(found, test_share=_inner_share(params, "test_share", "corpus"))


def _sources(params: Mapping[str, Any], domains: Domains) -> Sources:
    if "imagenet_labels" in params and "imagenet_validation" not in params:
        raise UserError("corpus.imagenet_labels: belongs to imagenet_validation, which is missing")
    bases = {
        check_name(key, "corpus.bases"): base_source(key, value, f"corpus.bases.{key}")
        for key, value in mapping(params["bases"] or {}, "corpus.bases").items()
    }
    for key, source in bases.items():
        for name, value in source.items():
            if isinstance(value, Path):
                under_data(value, f"corpus.bases.{key}.{name}")
    return Sources(
        domains=domains,
        bases=bases,
        **{key: _path(params, key) for key in _CORPUS_PATHS if key in params},
    )


def _path(params: Mapping[str, Any], key: str) -> Path:
    if not isinstance(params[key], str):
        raise UserError(f"corpus.{key}: is {params[key]!r}, not a path")
    return under_data(Path(params[key]), f"corpus.{key}")


def under_data(path: Path, where: str) -> Path:
    """Return a path that data.dvc pins.

    Raises:
        UserError: for a path elsewhere, whose changes nobody would see.
    """
    if path.parts[:1] != DATA.parts or ".." in path.parts:
        raise UserError(
            f"{where}: {path} is not under {DATA}/, which data.dvc pins; put it there, or a link "
            "to it"
        )
    return path


def _one_of(params: Mapping[str, Any], name: str, allowed: Sequence[str], where: str) -> str:
    if params[name] not in allowed:
        raise unknown(name, params[name], allowed, f"{where}.{name}")
    return str(params[name])


def _inner_share(params: Mapping[str, Any], name: str, where: str) -> float:
    share = _share(params, name, where)
    if share == 0:
        raise UserError(f"{where}.{name}: is {params[name]!r}; allowed: a share between 0 and 1")
    return share


def _share(params: Mapping[str, Any], name: str, where: str) -> float:
    value = params[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{where}.{name}: is {value!r}; allowed: a share from 0, below 1")
    return float(value)


def _checked_key(key: Any, section: str) -> str:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise UserError(
            f"{section}: key {key!r} must be letters, digits and hyphens, a hyphen not first"
        )
    return key


def _model(key: str, params: Any, train: Any) -> Model:
    where = f"models.{key}"
    for name in mapping(params, where):
        if name not in _MODEL_KEYS:
            raise unknown("key", name, _MODEL_KEYS, where)
    if "architecture" not in params:
        raise UserError(f"{where}: architecture missing")
    architecture = check_architecture(params["architecture"], f"{where}.architecture")
    if "supervised" in params:
        if "train" in params:
            raise UserError(f"{where}: train is for CLIP, supervised for a classifier; give one")
        recipe = recipe_from_params(SupervisedConfig, params["supervised"], f"{where}.supervised")
        return Model(architecture, recipe)
    changes = mapping(params.get("train") or {}, f"{where}.train")
    recipe_of_clip = recipe_from_params(TrainConfig, {**train, **changes}, f"{where}.train")
    return Model(architecture, recipe_of_clip)


def _evaluation(params: Mapping[str, Any]) -> EvaluationConfig:
    return EvaluationConfig(
        prompts=_one_of(params, "prompts", PROMPTS, "evaluate"),
        protocol=_one_of(params, "protocol", PROTOCOLS, "evaluate"),
        precision=_one_of(params, "precision", PRECISIONS, "evaluate"),
        resamples=_integer(params, "bootstrap_resamples", "evaluate", minimum=100),
        seed=_integer(params, "bootstrap_seed", "evaluate"),
    )


def _integer(params: Mapping[str, Any], name: str, where: str, minimum: int = 0) -> int:
    value = params[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{where}.{name}: is {value!r}; allowed: a whole number from {minimum}")
    return value


def _cells(
    run: Mapping[str, Any], mixtures: Mapping[str, Any], models: Mapping[str, Any]
) -> tuple[Cell, ...]:
    examples = {"mixtures": next(iter(mixtures), ""), "models": next(iter(models), ""), "seeds": 0}
    for name, example in examples.items():
        if not are_different(run[name], type(example)):
            what = "whole numbers" if name == "seeds" else "names"
            raise UserError(
                f"run.{name}: is {run[name]!r}; allowed: a list of one or more different {what}, "
                f"such as [{example}]"
            )
    for key in run["mixtures"]:
        if key not in mixtures:
            raise unknown("mixture", key, mixtures, "run.mixtures")
    for key in run["models"]:
        if key not in models:
            raise unknown("model", key, models, "run.models")
    for seed in run["seeds"]:
        if not 0 <= seed <= _LARGEST_SEED:
            raise UserError(f"run.seeds: {seed} is not from 0 to {_LARGEST_SEED}")
    cells = [Cell(*cell) for cell in itertools.product(*(run[name] for name in _RUN_KEYS))]
    runs = [cell.run for cell in cells]
    for name in runs:
        if runs.count(name) > 1:
            raise UserError(f"run: two cells have the name {name!r}; rename a mixture or a model")
    return tuple(cells)


def are_different(values: Any, kind: type) -> bool:
    """Whether ``values`` is a list of one or more different values of a kind."""
    if not isinstance(values, list) or not values:
        return False
    if any(not isinstance(value, kind) or isinstance(value, bool) for value in values):
        return False
    return len(set(values)) == len(values)
