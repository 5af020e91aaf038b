"""The pipeline as DVC sees it: what re-runs after which change, and what survives a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from corpora_factory import make_base, make_domainnet, replace_in_zip
from ruamel.yaml import YAML

from clip_mixtures.index import read_index
from code_versions import SCRIPTS

ROOT = Path(__file__).parent.parent
CLASSES = ["ant", "bee", "cat", "dog"]
DOMAINS = ["clipart", "real", "sketch"]
# Some of the images cannot be read, as in every large corpus: two of 108.
UNREADABLE = {
    "real/cat/train_0.png": (b"", "zero_byte"),
    "real/bee/test_0.png": (b"x", "not_an_image"),
}


def test_every_stage_depends_on_the_code_that_it_runs() -> None:
    found = {}
    for path in (ROOT / "dvc.yaml", *ROOT.glob("pipeline/*/dvc.yaml")):
        for stage, definition in YAML(typ="safe").load(path)["stages"].items():
            command = " ".join(
                definition["cmd"] if isinstance(definition["cmd"], list) else [definition["cmd"]]
            )
            assert f"stages/{SCRIPTS.get(stage, 'code_versions.py')}" in command
            found[stage] = [dep for dep in definition["deps"] if dep.startswith("build/code/")]
    assert found.pop("code") == []
    assert found == {stage: [f"build/code/{stage}.txt"] for stage in SCRIPTS}


class Project:
    """A copy of the pipeline with a corpus so small that a cell trains in seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("stages", "pipeline", "dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / name)
        # Those of the repository's own runs.
        for lock in folder.glob("pipeline/*/dvc.lock"):
            lock.unlink()
        # The installed package is the one in src; the copy only serves DVC to hash.
        shutil.copytree(ROOT / "src", folder / "src")
        make_domainnet(folder / "data" / "domains", DOMAINS, CLASSES, train=6, test=3, size=16)
        unreadable = {path: data for path, (data, _) in UNREADABLE.items()}
        replace_in_zip(folder / "data" / "domains" / "real.zip", unreadable)
        make_base(folder / "data" / "base")
        self.edit(
            run={"mixtures": ["cg-low", "cg-high"], "models": ["sample-rn"]},
            corpus={"domains": DOMAINS},
            audit={"unreadable_share": 0.02},
            test={"held_out": ["ant"]},
            train={"epochs": 2, "global_batch_size": 8, "warmup_steps": 2, "checkpoint_every": 1},
            evaluate={"bootstrap_resamples": 100},
            mechanisms={
                "embedding": {"per_domain": 10, "neighbours": 3, "densmap": False},
                "sae": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "l1": 1e-3},
            },
        )
        self.run("git", "init", "-q")
        self.run("dvc", "init", "-q")
        self.run("dvc", "add", "-q", "data")
        self.commit()

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "-q", "-m", "as it is")

    def edit(self, **sections: dict[str, Any]) -> None:
        yaml = YAML()
        path = self.folder / "params.yaml"
        params = yaml.load(path.read_text())
        for section, values in sections.items():
            params[section].update(values)
        with path.open("w") as file:
            yaml.dump(params, file)

    @property
    def environment(self) -> dict[str, str]:
        tools = str(Path(sys.executable).parent)
        return {
            **os.environ,
            "PATH": os.pathsep.join([tools, os.environ["PATH"]]),
            "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1", "NPROC": "1",
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org",
        }  # fmt: skip

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            command, cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        if check and result.returncode:
            raise AssertionError(f"{command}: {result.stdout[-2000:]}\n{result.stderr[-2000:]}")
        return result

    def changed_stages(self) -> set[str]:
        status = json.loads(self.run("dvc", "status", "--json").stdout)
        return {name for name, changes in status.items() if changes}

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch" / "runs"

    def wait_until_it_trains(self, process: subprocess.Popen[Any]) -> None:
        deadline = time.monotonic() + 300
        while not list(self.scratch.glob("*/checkpoints/epoch_000.safetensors")):
            assert process.poll() is None, "the training ended before anything could be done to it"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def checkpoint(self, run: str, epoch: int) -> bytes:
        folder = self.folder / "build" / "runs" / run / "checkpoints"
        return (folder / f"epoch_{epoch:03d}.safetensors").read_bytes()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("project"))
    project.run("dvc", "repro")
    return project


def test_one_command_goes_from_archives_to_the_comparison(project: Project) -> None:
    summary = json.loads((project.folder / "metrics" / "summary.json").read_text())
    assert [cell["mixture"] for cell in summary] == ["cg-low", "cg-high"]
    for cell in summary:
        held_out = cell["accuracies"]["sketch"]["held_out"]["balanced"]
        assert held_out["low"] <= held_out["estimate"] <= held_out["high"]
        assert held_out["n"] == 3
    page = (project.folder / "report" / "index.html").read_text()
    # Four of the comparison, and of what was looked into maps, distances, layers and units.
    assert page.count("data:image/png;base64,") >= 4 + 8
    mechanisms = pd.read_csv(project.folder / "metrics" / "mechanisms.csv")
    assert set(mechanisms["run"]) == {"cg-low-sample-rn-s0", "cg-high-sample-rn-s0"}
    assert set(mechanisms["measure"]) == {
        "silhouette", "neighbour_purity", "linear_probe", "sharing", "completeness error",
    }  # fmt: skip
    assert "cg-low" in (project.folder / "metrics" / "comparison.md").read_text()
    assert project.changed_stages() == set()


def test_unreadable_images_are_listed_and_the_pipeline_runs_without_them(project: Project) -> None:
    build = project.folder / "build"
    index = read_index(build / "index" / "domains.parquet").frame
    rows = {path: int(index.index[index["path"] == path][0]) for path in UNREADABLE}
    listed = pd.read_csv(build / "verification" / "quarantine.csv")
    found = {
        row["path"]: (row["index"], row["row"], row["archive"], row["reason"])
        for row in listed.to_dict("records")
    }
    assert found == {
        path: ("domains", rows[path], "real.zip", reason)
        for path, (_, reason) in UNREADABLE.items()
    }
    summary = json.loads((build / "verification" / "summary.json").read_text())
    counts = {name: (part["images"], part["unreadable"]) for name, part in summary.items()}
    assert counts == {"domains": (108, 2), "base-sample": (12, 0)}
    # Left out of training, and counted ...
    for key in ("cg-low", "cg-high"):
        facts = json.loads((build / "mixtures" / key / "mixture.json").read_text())
        assert facts["dropped"] == {"unreadable": 1, "unreadable, of the validation set": 1}
        run = build / "runs" / f"{key}-sample-rn-s0"
        trained = json.loads((run / "training.json").read_text())["train_images"]
        assert trained == sum(facts["images"]["train"].values())
        audit = json.loads((build / "mixtures" / key / "audit.json").read_text())
        assert audit["duplicates"]["compared"]
        assert audit["leaks"] == []
    # ... and out of the evaluation.
    for key in ("cg-low", "cg-high"):
        evaluation = build / "evaluation" / f"{key}-sample-rn-s0"
        predictions = pd.read_parquet(evaluation / "predictions-domains.parquet")
        tested = index.index[index["split"] == "test"]
        for _, of_epoch in predictions.groupby("epoch"):
            assert set(of_epoch["row"]) == set(tested) - set(rows.values())
        last = json.loads((evaluation / "metrics.json").read_text())["checkpoints"][-1]
        assert last["accuracies"]["real"]["seen"]["micro"]["n"] == 3 * 3 - 1
        assert last["accuracies"]["real"]["held_out"]["micro"]["n"] == 3


def test_too_many_unreadable_images_end_it_before_anything_is_trained(project: Project) -> None:
    before = (project.folder / "params.yaml").read_text()
    quarantine = project.folder / "build" / "verification" / "quarantine.csv"
    listed = quarantine.read_bytes()
    project.edit(audit={"unreadable_share": 0.01})
    try:
        result = project.run("dvc", "repro", check=False)
        listed_again = quarantine.read_bytes()
    finally:
        (project.folder / "params.yaml").write_text(before)
        project.run("dvc", "repro", "verify")
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: build/verification/quarantine.csv: domains: 2 of 108 images (1.85 %) cannot be "
        "read, allowed are 1 % (1 zero_byte, 1 not_an_image); mend the corpus or raise the "
        "allowed share"
    ]
    assert "Traceback" not in result.stderr
    assert "Running stage 'verify'" in result.stdout
    assert "Running stage" not in result.stdout.partition("Running stage 'verify'")[2]
    # Whoever mends the corpus has the list.
    assert listed_again == listed
    assert project.changed_stages() == set()


def test_nothing_to_do_is_quick_and_says_so(project: Project) -> None:
    assert "up to date" in project.run("dvc", "repro").stdout


def test_an_edit_of_one_mixture_concerns_its_cells_alone(project: Project) -> None:
    before = (project.folder / "params.yaml").read_text()
    project.edit(mixtures={"cg-low": {"kind": "cg_low_diversity", "captions": "aligned"}})
    try:
        changed = project.changed_stages()
    finally:
        (project.folder / "params.yaml").write_text(before)
    # What comes after it changes when it has run.
    assert changed == {"mixture@cg-low", "examples", "compare"}
    assert not {stage for stage in changed if "cg-high" in stage}


@pytest.mark.parametrize(
    ("change", "concerned"),
    [
        ({"unreadable_share": 0.03}, {"verify", "mixture@cg-low", "mixture@cg-high"}),
        ({"near_bits": 5}, {"mixture@cg-low", "mixture@cg-high"}),
    ],
)
def test_an_edit_of_the_audit_verifies_no_image_again_unless_it_must(
    project: Project, change: dict[str, Any], concerned: set[str]
) -> None:
    before = (project.folder / "params.yaml").read_text()
    project.edit(audit=change)
    try:
        changed = project.changed_stages()
    finally:
        (project.folder / "params.yaml").write_text(before)
    assert changed == concerned


def test_a_killed_training_is_finished_by_the_next_repro(project: Project) -> None:
    run, stage = "cg-low-sample-rn-s0", "train@cg-low-sample-rn-0"
    whole = project.checkpoint(run, 2)
    command = ["dvc", "repro", "--force", "--single-item", stage]
    process = subprocess.Popen(
        command, cwd=project.folder, env=project.environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    project.wait_until_it_trains(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (project.folder / "build" / "runs" / run).exists()
    # Without force DVC would take the earlier result from its cache, and prove nothing.
    project.run(*command)
    assert project.checkpoint(run, 2) == whole
    # Until it is evaluated, for DVC might have been killed before it recorded the training.
    assert [folder.name.rpartition("-")[0] for folder in project.scratch.iterdir()] == [run]
    project.run("dvc", "repro", "--force", "--single-item", "evaluate@cg-low-sample-rn-0")
    assert not list(project.scratch.iterdir())
    assert project.changed_stages() == set()


def test_changed_data_is_refused_and_named(project: Project) -> None:
    archive = project.folder / "data" / "domains" / "sketch.zip"
    whole = archive.read_bytes()
    archive.unlink()
    archive.write_bytes(whole[: len(whole) // 2])
    try:
        check = project.run(sys.executable, "stages/check.py", "--data", check=False)
        corpus = project.run(sys.executable, "stages/corpus.py", check=False)
    finally:
        archive.unlink()
        archive.write_bytes(whole)
    assert check.returncode == 2
    assert "differs from what data.dvc pins" in check.stderr
    assert corpus.returncode == 2
    assert corpus.stderr.startswith("error: data/domains/sketch.zip: damaged or truncated archive")
    assert corpus.stderr.count("\n") == 1


def test_a_batch_that_the_processes_cannot_share_is_refused_before_training(
    project: Project,
) -> None:
    result = subprocess.run(
        [sys.executable, "stages/check.py"], cwd=project.folder, capture_output=True, text=True,
        env={**project.environment, "NPROC": "3"}, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert "train): 8 cannot be shared by 3 processes; run with NPROC=2" in result.stderr


def test_data_that_params_name_and_that_are_not_there_are_refused(project: Project) -> None:
    before = (project.folder / "params.yaml").read_text()
    sharing = {"protocol": "corrected", "vocabulary": "data/words.txt"}
    try:
        project.edit(mechanisms={"sharing": sharing})
        check = project.run(sys.executable, "stages/check.py", "--data", check=False)
    finally:
        (project.folder / "params.yaml").write_text(before)
    assert check.returncode == 2
    said = "error: mechanisms.sharing.vocabulary: data/words.txt is not there; "
    assert check.stderr.startswith(said), check.stderr


def test_another_autoencoder_trains_no_network_again(project: Project) -> None:
    before = (project.folder / "params.yaml").read_text()
    recipe = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-3, "l1": 1e-3}
    project.edit(mechanisms={"sae": recipe})
    try:
        changed = project.changed_stages()
    finally:
        (project.folder / "params.yaml").write_text(before)
    families = {stage.partition(":")[0] for stage in changed}
    assert families == {"pipeline/sae/dvc.yaml"}


def test_an_edit_of_comments_runs_nothing_and_one_of_code_what_it_can_change(
    project: Project,
) -> None:
    script = project.folder / "stages" / "sharing.py"
    before = script.read_text()
    said = before.replace('"""', '"""Said otherwise. ', 1) + "# A comment.\n"
    try:
        for text, stages in ((said, set()), (said + "CHANGED = 1\n", {"sharing"})):
            script.write_text(text)
            project.run("dvc", "repro", "code")
            changed = {
                stage.rpartition(":")[2].partition("@")[0] for stage in project.changed_stages()
            }
            assert changed == stages
    finally:
        script.write_text(before)
        project.run("dvc", "repro", "code")
    assert project.changed_stages() == set()


def test_a_selection_of_cells_is_an_experiment_that_trains_nothing(project: Project) -> None:
    project.commit()
    made = project.run(
        "dvc", "exp", "run", "--temp", "-n", "only-low", "-S", "run.mixtures=[cg-low]"
    )  # fmt: skip
    assert "Running stage 'compare'" in made.stdout
    assert "Running stage 'train" not in made.stdout
    names = project.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert names == ["only-low"]
    references = project.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout
    (reference,) = [name for name in references.split() if name.endswith("/only-low")]
    shown = project.run("git", "show", f"{reference}:metrics/summary.json")
    assert [cell["mixture"] for cell in json.loads(shown.stdout)] == ["cg-low"]
    said = project.run(sys.executable, "stages/experiments.py").stdout
    rows = [line for line in said.splitlines() if line.startswith("| only-low | ")]
    # Its one cell has the numbers that it has here.
    assert rows[0].startswith("| only-low | cg-low | sample-rn | 1 | ")
    assert rows[0].count(" | +0.0 [") == 4
    assert rows[1] == "| only-low | run.mixtures | ['cg-low', 'cg-high'] | ['cg-low'] |"
    unknown = project.run(sys.executable, "stages/experiments.py", "only-lov", check=False)
    assert unknown.returncode == 2
    assert "did you mean 'only-low'" in unknown.stderr
    # Nothing of it shows here.
    assert project.changed_stages() == set()
    assert len(json.loads((project.folder / "metrics" / "summary.json").read_text())) == 2


def test_a_parameter_edited_during_a_stage_is_not_recorded_with_its_result(
    project: Project,
) -> None:
    params = project.folder / "params.yaml"
    before, lock = params.read_text(), (project.folder / "dvc.lock").read_text()
    stage = "train@cg-low-sample-rn-0"
    try:
        process = subprocess.Popen(
            ["dvc", "repro", "--force", "--single-item", stage], cwd=project.folder,
            env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        project.wait_until_it_trains(process)
        project.edit(train={"learning_rate": 0.5})
        said, _ = process.communicate(timeout=300)
    finally:
        params.write_text(before)
    assert process.returncode != 0
    assert "error: params.yaml: train changed while this ran" in said
    assert (project.folder / "dvc.lock").read_text() == lock
    # With the old values back, what was trained is taken out of scratch.
    project.run("dvc", "repro", "--force", "--single-item", stage)
    assert (project.folder / "dvc.lock").read_text() == lock
    project.run("dvc", "repro", "--force", "--single-item", "evaluate@cg-low-sample-rn-0")


def test_a_checkpoint_is_an_artifact_that_others_fetch_by_name(
    project: Project, tmp_path: Path
) -> None:
    before = (project.folder / "dvc.yaml").read_text()
    named = [sys.executable, "stages/artifacts.py", "cg-low-sample-rn-0", "--name", "sketch-model"]
    try:
        project.run(*named)
        project.commit()
        project.run("gto", "register", "sketch-model")
        project.run(
            "dvc", "remote", "add", "--default", "--local", "there", str(tmp_path / "there")
        )
        project.run("dvc", "push", "--quiet", "train@cg-low-sample-rn-0")
        fetched = tmp_path / "model.safetensors"
        source = ["dvc", "artifacts", "get", str(project.folder), "sketch-model"]
        project.run(*source, "--rev", "v0.0.1", "--out", str(fetched))
        assert fetched.read_bytes() == project.checkpoint("cg-low-sample-rn-s0", 2)
    finally:
        (project.folder / "dvc.yaml").write_text(before)
    wrong = project.run(*named[:-1], "Sketch_Model", check=False)
    assert wrong.returncode == 2
    assert "small letters, digits and hyphens" in wrong.stderr
