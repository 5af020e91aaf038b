"""params.yaml is checked before any work starts, and every mistake is answered in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from clip_mixtures.corpora.classes import published_held_out
from clip_mixtures.corpora.sources import Domains, Sources
from clip_mixtures.errors import UserError
from clip_mixtures.mixtures.spec import Checks
from clip_mixtures.mixtures.store import write_rows
from experiment import Cell, load_experiment
from mechanism_params import load_mechanisms

ROOT = Path(__file__).parent.parent
PARAMS = ROOT / "params.yaml"

Change = Callable[[Any], None]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Change], Path]:
    def change_params(change: Change) -> Path:
        yaml = YAML()
        params = yaml.load(PARAMS.read_text())
        change(params)
        path = tmp_path / "params.yaml"
        with path.open("w") as file:
            yaml.dump(params, file)
        return path

    return change_params


def setting(*keys: str, to: Any) -> Change:
    def change(params: Any) -> None:
        for key in keys[:-1]:
            params = params[key]
        params[keys[-1]] = to

    return change


def test_the_shipped_experiment_is_the_four_mixtures() -> None:
    experiment = load_experiment(PARAMS)
    kinds = {experiment.mixture(cell.mixture).kind for cell in experiment.cells}
    assert kinds == {"natural_only", "leave_out_domain", "cg_low_diversity", "cg_high_diversity"}
    assert Cell("cg-low", "sample-rn", 0).run == "cg-low-sample-rn-s0"
    assert {cell.run for cell in experiment.cells} >= {"cg-low-sample-rn-s0"}


def both(*changes: Change) -> Change:
    def change(params: Any) -> None:
        for one in changes:
            one(params)

    return change


def without(*keys: str) -> Change:
    def change(params: Any) -> None:
        for key in keys[:-1]:
            params = params[key]
        del params[keys[-1]]

    return change


def test_corpus_and_audit_are_what_the_file_says(changed: Callable[[Change], Path]) -> None:
    base = {"format": "imagenet_captions"}
    base |= {"captions": "data/in/captions.json", "images": "data/in.tar"}
    corpus = {
        "layout": "domainnet",
        "domains_root": "data/dn",
        "domains": ["sketch", "real"],
        "bases": {"in": base},
    }
    audit = {"unreadable_share": 0.25, "duplicates": "report", "near_bits": 7}
    experiment = load_experiment(
        changed(both(setting("corpus", to=corpus), setting("audit", to=audit)))
    )
    paths = {"captions": Path("data/in/captions.json"), "images": Path("data/in.tar")}
    assert experiment.domains == Domains(Path("data/dn"), ("sketch", "real"), "domainnet")
    assert experiment.sources == Sources(experiment.domains, {"in": {**base, **paths}})
    assert experiment.checks == Checks(duplicates="report", near_bits=7)
    assert experiment.unreadable_share == 0.25


def test_every_corpus_that_can_be_named_is_taken(changed: Callable[[Change], Path]) -> None:
    paths = ["imagenet_sketch", "imagenet_train", "imagenet_validation", "imagenet_labels"]
    cc = {"format": "tsv", "train": "data/cc/train.tsv", "quoted": True}
    path = changed(
        both(
            *(setting("corpus", name, to=f"data/in/{name}") for name in paths),
            setting("corpus", "bases", "cc3m", to=cc),
            setting("audit", to={"unreadable_share": 0, "duplicates": "remove", "near_bits": 0}),
        )
    )
    experiment = load_experiment(path)
    assert [getattr(experiment.sources, name) for name in paths] == [
        Path("data/in") / name for name in paths
    ]
    assert list(experiment.sources.bases) == ["sample", "cc3m"]
    assert experiment.sources.bases["cc3m"] == {**cc, "train": Path("data/cc/train.tsv")}
    assert experiment.checks == Checks(duplicates="remove", near_bits=0)
    assert experiment.unreadable_share == 0


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_corpus_may_have_no_base_set(changed: Callable[[Change], Path], nothing: Any) -> None:
    experiment = load_experiment(changed(setting("corpus", "bases", to=nothing)))
    assert experiment.sources.bases == {}


def test_folders_of_ones_own_say_which_share_tests(changed: Callable[[Change], Path]) -> None:
    in_folders = setting("corpus", "layout", to="folders")
    assert load_experiment(changed(in_folders)).domains.test_share == Domains(Path()).test_share
    domains = load_experiment(
        changed(both(in_folders, setting("corpus", "test_share", to=0.25)))
    ).domains
    assert (domains.layout, domains.test_share) == ("folders", 0.25)


def test_the_studys_classes_need_not_be_listed(changed: Callable[[Change], Path]) -> None:
    experiment = load_experiment(changed(setting("test", "held_out", to="published")))
    for mixture in experiment.mixtures.values():
        assert mixture.held_out == published_held_out()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("run", "mixtures", to=["cg-hihg"]), r"run\.mixtures.*'cg-hihg'.*'cg-high'"),
        (setting("run", "models", to=["RN50"]), r"run\.models.*'RN50'"),
        (setting("run", "seeds", to=[0, 0]), r"run\.seeds: .*whole numbers, such as \[0\]"),
        (setting("run", "seeds", to=["a"]), r"run\.seeds: is \['a'\]"),
        (setting("run", "models", to=[]), r"run\.models: is \[\]; .* names, such as \[sample-rn\]"),
        (
            setting("mixtures", "cg-low", "add_sketches", to=True),
            r"mixtures\.cg-low: takes ImageNet-Sketch; say under corpus\.imagenet_sketch",
        ),
        (setting("audit", "near_bits", to=65), r"^audit\.near_bits: is 65; allowed: 0 to 64"),
        (setting("run", "mixture", to=[]), r"run: unknown key 'mixture'"),
        (setting("run", "seeds", to=[[0]]), r"run\.seeds"),
        (setting("run", "seeds", to=[2**40]), r"run\.seeds"),
        (setting("run", "mixtures", to=[{"a": 1}]), r"run\.mixtures"),
        (setting("mixtures", "-x", to={"kind": "natural_only"}), "a hyphen not first"),
        (setting("corpus", "domains", to=["sketch", "clipart"]), "one domain must be 'real'"),
        (setting("corpus", "domains", to=[["real"], "sketch"]), r"corpus\.domains"),
        (setting("corpus", "domains", to=["real"]), r"corpus\.domains"),
        (setting("corpus", "domains_root", to=3), r"corpus\.domains_root: is 3"),
        (setting("test", "test_domain", to="sketsh"), r"test_domain.*'sketsh'.*'sketch'"),
        (setting("models", "sample-rn", "architecture", to="RN51"), r"models\.sample-rn.*'RN50'"),
        (setting("mixtures", "a.b", to={"kind": "natural_only"}), r"'a\.b' must be letters"),
        (setting("evaluate", "bootstrap_resamples", to=3), "from 100"),
        (setting("trian", to={}), "'trian'; did you mean 'train'"),
        (without("evaluate"), "evaluate missing"),
        # The corpus
        (setting("corpus", to=["data"]), r"^corpus: is \['data'\], not a mapping"),
        (without("corpus", "bases"), "^corpus: bases missing"),
        (without("corpus", "layout"), "^corpus: layout missing"),
        (setting("corpus", "images", to="x"), "^corpus: unknown key 'images'"),
        (setting("corpus", "test_shar", to=0.3), "'test_shar'; did you mean 'test_share'"),
        (
            setting("corpus", "layout", to="folder"),
            r"^corpus\.layout: unknown layout 'folder'; did you mean 'folders'",
        ),
        (setting("corpus", "layout", to=["folders"]), r"^corpus\.layout: unknown layout \["),
        (setting("corpus", "imagenet_sketch", to=3), r"^corpus\.imagenet_sketch: is 3, not a path"),
        (setting("corpus", "imagenet_train", to=None), r"^corpus\.imagenet_train: is None"),
        (
            setting("corpus", "imagenet_labels", to="data/devkit.tar.gz"),
            r"^corpus\.imagenet_labels: belongs to imagenet_validation",
        ),
        (
            setting("corpus", "domains_root", to="/elsewhere/domains"),
            r"^corpus\.domains_root: /elsewhere/domains is not under data/",
        ),
        (
            setting("corpus", "imagenet_train", to="data/../x.tar"),
            r"^corpus\.imagenet_train: .* is not under data/",
        ),
        (
            setting("mixtures", "cg-low", "base", to="cc3m"),
            r"^mixtures\.cg-low\.base: unknown base set 'cc3m'",
        ),
        (setting("corpus", "bases", to=["cc3m"]), r"^corpus\.bases: is \['cc3m'\], not a mapping"),
        (setting("corpus", "bases", "a/b", to={}), r"^corpus\.bases: 'a/b' must be letters"),
        (setting("corpus", "bases", "cc", to="x.tsv"), r"^corpus\.bases\.cc: is 'x\.tsv'"),
        (
            setting("corpus", "bases", "sample", "format", to="imagenet-captions"),
            r"^corpus\.bases\.sample\.format: .* did you mean 'imagenet_captions'",
        ),
        (
            without("corpus", "bases", "sample", "captions"),
            r"^corpus\.bases\.sample: captions missing",
        ),
        (
            setting("corpus", "bases", "sample", "train_files", to="x"),
            r"^corpus\.bases\.sample: unknown key 'train_files'",
        ),
        (setting("corpus", "test_share", to=0.3), r"^corpus\.test_share: means nothing beside"),
        *(
            (
                both(
                    setting("corpus", "layout", to="folders"),
                    setting("corpus", "test_share", to=share),
                ),
                rf"^corpus\.test_share: is {share!r}; allowed: a share",
            )
            for share in (0, 1, 1.5, -0.1, "0.3", True, None)
        ),
        # The audit
        (without("audit"), "audit missing"),
        (setting("audit", to=None), "^audit: is None, not a mapping"),
        (without("audit", "near_bits"), "^audit: near_bits missing"),
        (
            setting("audit", "near_bit", to=4),
            "^audit: unknown key 'near_bit'; did you mean 'near_b",
        ),
        (
            setting("audit", "duplicates", to="removed"),
            r"^audit\.duplicates: unknown duplicates 'removed'; did you mean 'remove'",
        ),
        *(
            (
                setting("audit", "unreadable_share", to=share),
                rf"^audit\.unreadable_share: is {share}",
            )
            for share in (1, -0.001, float("nan"), True, None)
        ),
        (setting("audit", "unreadable_share", to="1 %"), r"^audit\.unreadable_share: is '1 %'"),
        *(
            (
                setting("audit", "near_bits", to=bits),
                rf"^audit\.near_bits: is {bits}; allowed: a whole",
            )
            for bits in (-1, 2.5, True, None)
        ),
        # What holds for every mixture is named there, not under the first mixture.
        (setting("test", to=["sketch"]), r"^test: is \['sketch'\], not a mapping"),
        (without("test", "held_out"), "^test: held_out missing"),
        (
            setting("test", "held-out", to=["ant"]),
            "^test: unknown key 'held-out'; did you mean 'hel",
        ),
        (
            setting("test", "test_domain", to="sketsh"),
            r"^test\.test_domain: .*did you mean 'sketch'",
        ),
        (setting("test", "test_domain", to="real"), r"^test\.test_domain: 'real' is the natural"),
        (setting("test", "test_domain", to="infograph"), r"^test\.test_domain: unknown"),
        (setting("test", "held_out", to=[]), r"^test\.held_out: is \[\]; allowed: a list of"),
        (setting("test", "held_out", to="ant"), r"^test\.held_out: is 'ant'; .*'published'"),
        (setting("test", "held_out", to=None), r"^test\.held_out: is None"),
        (
            setting("test", "held_out", to=["ant", "bee", "ant"]),
            r"^test\.held_out: class 'ant' is listed twice",
        ),
        # A mixture's own are named under the mixture.
        (
            setting("mixtures", "cg-low", "held_out", to=["ant", "ant"]),
            r"^mixtures\.cg-low\.held_out: class 'ant' is listed twice",
        ),
        (
            setting("mixtures", "cg-low", "captions", to="neutral"),
            r"^mixtures\.cg-low\.captions: unknown captions 'neutral'",
        ),
    ],
)
def test_a_mistake_is_named(
    changed: Callable[[Change], Path], change: Change, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_experiment(changed(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            setting("mechanisms", "models", to=[["sample-rn"]]),
            r"mechanisms\.models: is \[\['sample-rn'\]\], not a list of some of",
        ),
        (
            setting("run", "models", to=["sample-classifier"]),
            r"mechanisms\.circuit_models: model sample-rn is not among those of run\.models "
            r"\(sample-classifier\); put it there, or leave it out here",
        ),
        (
            setting("mechanisms", "circuit_seeds", to=[3]),
            r"mechanisms\.circuit_seeds: seed 3 is not among those of run\.seeds \(0\)",
        ),
        (
            setting("mechanisms", "circuit_models", to=["sample-classifier"]),
            r"mechanisms\.circuit_models: 'sample-classifier' is a classifier",
        ),
        (
            setting("mechanisms", "cka", "kernels", to=["poly"]),
            r"^mechanisms\.cka\.kernels: unknown",
        ),
    ],
)
def test_a_mistake_in_what_is_looked_into_is_named(
    changed: Callable[[Change], Path], change: Change, message: str
) -> None:
    path = changed(change)
    with pytest.raises(UserError, match=message):
        load_mechanisms(load_experiment(path), path)


def test_nothing_need_be_looked_into(changed: Callable[[Change], Path]) -> None:
    path = changed(
        both(setting("mechanisms", "models", to=[]), setting("mechanisms", "circuit_models", to=[]))
    )
    found = load_mechanisms(load_experiment(path), path)
    assert (found.cells, found.circuit_cells) == ((), ())


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NPROC", "two", "NPROC: is 'two'; allowed: a number of processes from 1"),
        ("NPROC", "0", "NPROC: is '0'"),
        ("NPROC", "3", "global_batch_size of model sample-rn (models.sample-rn.train or train): "),
        ("WORKERS", "-1", "WORKERS: is '-1'; allowed: a number of workers from 0"),
        ("DEVICE_BATCH", "x", "DEVICE_BATCH: is 'x'; allowed: a number of images from 1"),
        ("MEMORY_MIB", "lots", "MEMORY_MIB: is 'lots'; allowed: a number of MiB from 1"),
    ],
)
def test_numbers_of_the_environment_are_checked_before_any_work(
    variable: str, value: str, message: str
) -> None:
    result = subprocess.run(
        [sys.executable, "stages/check.py"], cwd=ROOT, env={**os.environ, variable: value},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_a_held_out_class_must_be_in_the_corpus() -> None:
    with pytest.raises(UserError, match=r"^test\.held_out: unknown class 'ambulance'"):
        load_experiment(PARAMS, class_names=["cat", "dog"])


def test_a_class_that_one_mixture_holds_out_must_be_in_the_corpus(
    changed: Callable[[Change], Path],
) -> None:
    path = changed(
        both(
            setting("test", "held_out", to=["cat"]),
            setting("mixtures", "cg-high", "held_out", to=["dogg"]),
        )
    )
    with pytest.raises(UserError, match=r"^mixtures\.cg-high\.held_out: .*did you mean 'dog'"):
        load_experiment(path, class_names=["cat", "dog"])


def test_some_classes_must_be_seen(changed: Callable[[Change], Path]) -> None:
    path = changed(setting("test", "held_out", to=["dog", "cat"]))
    with pytest.raises(UserError, match=r"^test\.held_out: names all 2 classes of the corpus"):
        load_experiment(path, class_names=["cat", "dog"])
    assert load_experiment(path, class_names=["cat", "dog", "eel"]).mixtures


def test_no_file_no_yaml_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match=r"params\.yaml: No such file"):
        load_experiment(path)
    path.write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        load_experiment(path)
    path.write_text("a: 2024-02-30")
    with pytest.raises(UserError, match="not valid YAML"):
        load_experiment(path)
    path.write_text("- 1")
    with pytest.raises(UserError, match="not a mapping"):
        load_experiment(path)


def test_a_stage_answers_a_mistake_in_one_line_without_a_traceback(
    changed: Callable[[Change], Path],
) -> None:
    folder = changed(setting("run", "mixtures", to=["cg-hihg"])).parent
    result = subprocess.run(
        [sys.executable, str(ROOT / "stages" / "check.py")],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("error: run.mixtures: unknown mixture 'cg-hihg'")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(("images", "refused"), [(63, True), (64, False)])
def test_a_batch_larger_than_its_mixture_is_refused_before_training(
    changed: Callable[[Change], Path], images: int, refused: bool
) -> None:
    folder = changed(setting("train", "global_batch_size", to=64)).parent
    write_rows(folder / "build/mixtures/cg-low/train.parquet", {"domains": np.arange(images)})
    command = [sys.executable, str(ROOT / "stages" / "check.py"), "--model", "sample-rn"]

    def check(*mixture: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *mixture], cwd=folder, capture_output=True, text=True, check=False
        )

    found = check("--mixture", "cg-low")
    assert found.returncode == (2 if refused else 0)
    message = (
        "error: global_batch_size of model sample-rn (models.sample-rn.train or train): 64 is more "
        "than the 63 training images of mixture cg-low"
    )
    assert found.stderr.startswith(message) == refused
    # What is not built cannot be trained on, and no mixture is no cell.
    assert "no such mixture" in check("--mixture", "cg-high").stderr
    assert check().stderr == "error: --mixture and --model: give both, or neither\n"
