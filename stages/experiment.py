"""Read params.yaml: the one place where parameters enter, each of them checked before work starts.

The library takes values; the stages get theirs from here. The file is loaded without torch, so a
mistake in it is answered in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from clip_mixtures.errors import UserError, unknown
from clip_mixtures.files import read_text
from clip_mixtures.mixtures.spec import NATURAL_DOMAIN, Mixture, mixture_from_params
from clip_mixtures.training.architectures import check_architecture
from clip_mixtures.training.config import TrainConfig, train_config_from_params

PARAMS = Path("params.yaml")
BUILD = Path("build")
INDEX = BUILD / "index"
METRICS = Path("metrics")
REPORT = Path("report")

_SECTIONS = ("run", "corpus", "test", "mixtures", "models", "train", "evaluate")
_RUN_KEYS = ("mixtures", "models", "seeds")
_CORPUS_KEYS = ("domains_root", "domains", "base_captions", "base_images")
_TEST_KEYS = ("test_domain", "held_out")
_EVALUATE_KEYS = ("bootstrap_resamples", "bootstrap_seed")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
# What numpy and torch take for a seed.
_LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Where the corpora lie: a folder in DomainNet's layout and a captioned base set."""

    domains_root: Path
    domains: tuple[str, ...]
    base_captions: Path
    base_images: Path


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
class Experiment:
    """All of params.yaml, checked."""

    corpus: Corpus
    mixtures: dict[str, Mixture]
    models: dict[str, str]
    train: TrainConfig
    bootstrap_resamples: int
    bootstrap_seed: int
    cells: tuple[Cell, ...]

    def mixture(self, key: str) -> Mixture:
        """Return a mixture by its key."""
        if key not in self.mixtures:
            raise unknown("mixture", key, self.mixtures, f"{PARAMS}: mixtures")
        return self.mixtures[key]

    def architecture(self, key: str) -> str:
        """Return the architecture of a model by its key."""
        if key not in self.models:
            raise unknown("model", key, self.models, f"{PARAMS}: models")
        return self.models[key]


def load_experiment(path: Path = PARAMS, class_names: Sequence[str] | None = None) -> Experiment:
    """Read and check a parameter file.

    Args:
        path: the file.
        class_names: the classes of the corpus, where they are known already.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    params = _read(path)
    _only(params, _SECTIONS, str(path))
    corpus = _corpus(_section(params, "corpus", _CORPUS_KEYS))
    defaults = _section(params, "test", _TEST_KEYS)
    mixtures = {
        _checked_key(key, "mixtures"): mixture_from_params(
            key, value, defaults, corpus.domains, class_names
        )
        for key, value in _mapping(params["mixtures"], "mixtures").items()
    }
    models = {
        _checked_key(key, "models"): _architecture(key, value)
        for key, value in _mapping(params["models"], "models").items()
    }
    evaluate = _section(params, "evaluate", _EVALUATE_KEYS)
    return Experiment(
        corpus=corpus,
        mixtures=mixtures,
        models=models,
        train=train_config_from_params(params["train"]),
        bootstrap_resamples=_integer(evaluate, "bootstrap_resamples", "evaluate", minimum=100),
        bootstrap_seed=_integer(evaluate, "bootstrap_seed", "evaluate"),
        cells=_cells(_section(params, "run", _RUN_KEYS), mixtures, models),
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        params = YAML(typ="safe").load(read_text(path))
    # The YAML reader answers an impossible date with a plain ValueError.
    except (YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    return _mapping(params, str(path))


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
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


def _section(params: Mapping[str, Any], name: str, keys: Sequence[str]) -> Mapping[str, Any]:
    section = _mapping(params[name], name)
    _only(section, keys, name)
    return section


def _corpus(params: Mapping[str, Any]) -> Corpus:
    domains = params["domains"]
    if not _are_different(domains, str) or len(domains) < 2:
        raise UserError(f"corpus.domains: is {domains!r}, not a list of two or more domains")
    if NATURAL_DOMAIN not in domains:
        raise UserError(
            f"corpus.domains: is {domains!r}; one domain must be {NATURAL_DOMAIN!r}, the natural "
            "images that every mixture is compared with"
        )
    for key in ("domains_root", "base_captions", "base_images"):
        if not isinstance(params[key], str):
            raise UserError(f"corpus.{key}: is {params[key]!r}, not a path")
    return Corpus(
        domains_root=Path(params["domains_root"]),
        domains=tuple(domains),
        base_captions=Path(params["base_captions"]),
        base_images=Path(params["base_images"]),
    )


def _checked_key(key: Any, section: str) -> str:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise UserError(
            f"{section}: key {key!r} must be letters, digits and hyphens, a hyphen not first"
        )
    return key


def _architecture(key: str, params: Any) -> str:
    _only(_mapping(params, f"models.{key}"), ("architecture",), f"models.{key}")
    return check_architecture(params["architecture"], f"models.{key}.architecture")


def _integer(params: Mapping[str, Any], name: str, where: str, minimum: int = 0) -> int:
    value = params[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{where}.{name}: is {value!r}; allowed: a whole number from {minimum}")
    return value


def _cells(
    run: Mapping[str, Any], mixtures: Mapping[str, Any], models: Mapping[str, Any]
) -> tuple[Cell, ...]:
    for name in _RUN_KEYS:
        values = run[name]
        if not _are_different(values, int if name == "seeds" else str):
            raise UserError(f"run.{name}: is {values!r}, not a list of different entries")
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


def _are_different(values: Any, kind: type) -> bool:
    """Whether ``values`` is a list of one or more different values of a kind."""
    if not isinstance(values, list) or not values:
        return False
    if any(not isinstance(value, kind) or isinstance(value, bool) for value in values):
        return False
    return len(set(values)) == len(values)
