"""A small repository with a pipeline like this project's: mixtures, trained and evaluated cells.

Every stage notes outside the repository that it ran. Training goes on from SCRATCH, step by step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_mixtures.scheduling.submissions import CellJob

ROOT = Path(__file__).parents[1]

PIPELINE = """
stages:
  mixture:
    matrix: {mixture: "${run.mixtures}"}
    cmd: python -SE stages/toy.py mixture ${item.mixture}
    deps: [data]
    params: ["mixtures.${item.mixture}"]
    outs: ["build/mixtures/${item.mixture}"]
  train:
    matrix: {mixture: "${run.mixtures}", model: "${run.models}", seed: "${run.seeds}"}
    cmd: TRAIN stages/toy.py train ${item.mixture} ${item.seed}
    deps: ["build/mixtures/${item.mixture}", data, stages/toy.py]
    params: [steps]
    outs: ["build/runs/${item.mixture}-${item.seed}"]
  evaluate:
    matrix: {mixture: "${run.mixtures}", model: "${run.models}", seed: "${run.seeds}"}
    cmd: python -SE stages/toy.py evaluate ${item.mixture} ${item.seed}
    deps: ["build/runs/${item.mixture}-${item.seed}"]
    outs: ["build/evaluation/${item.mixture}-${item.seed}"]
"""

# The stages of this project that cells need, with the same names.
PROJECT = """
stages:
  corpus:
    cmd: mkdir -p build && cp data/images build/index
    deps: [data]
    outs: [build/index]
  verify:
    cmd: cp build/index build/verification
    deps: [build/index]
    outs: [build/verification]
  mixture:
    matrix: {mixture: "${run.mixtures}"}
    cmd: mkdir -p build/mixtures && cp build/verification build/mixtures/${item.mixture}
    deps: [build/verification]
    outs: ["build/mixtures/${item.mixture}"]
  train:
    matrix: {mixture: "${run.mixtures}", model: "${run.models}", seed: "${run.seeds}"}
    cmd:
      - echo train ${item.seed} >> $TOY_LOG
      - mkdir -p build/runs
      - cat build/mixtures/${item.mixture} recipe.txt > build/runs/${item.seed}
    deps: ["build/mixtures/${item.mixture}", build/index, data, recipe.txt]
    outs: ["build/runs/${item.seed}"]
  evaluate:
    matrix: {mixture: "${run.mixtures}", model: "${run.models}", seed: "${run.seeds}"}
    cmd:
      - echo evaluate ${item.seed} >> $TOY_LOG
      - cat build/verification build/runs/${item.seed} > build/evaluation-${item.seed}
    deps: ["build/runs/${item.seed}", build/verification]
    outs: ["build/evaluation-${item.seed}"]
  compare:
    cmd:
      - echo compare >> $TOY_LOG
      - cat build/evaluation-0 build/evaluation-1 > build/compared
    deps: [build/evaluation-0, build/evaluation-1]
    outs: [build/compared]
"""

SCRIPT = """
import json, os, sys, time
from pathlib import Path

stage, mixture, *rest = sys.argv[1:]
seed = rest[0] if rest else ""
cell = "-".join([mixture, *rest])
params = json.loads(Path("params.yaml").read_text())
rank = int(os.environ.get("RANK", "0"))

def note(what):
    line = f"{stage} {cell} {what} rank {rank} of {os.environ.get('WORLD_SIZE', '1')}\\n"
    with open(os.environ["TOY_LOG"], "ab", buffering=0) as log:
        log.write(line.encode())

def write(folder, text):
    path = Path("build", folder, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)

note("began")
settings = params["mixtures"][mixture]
if stage == "mixture":
    write("mixtures", json.dumps([settings, Path("data/images").read_text()]))
elif stage == "train":
    if settings.get("fails"):
        sys.exit(f"error: {cell} has no sense")
    assert Path("data/images").is_file()
    state = Path(os.environ["SCRATCH"], "runs", cell)
    state.parent.mkdir(parents=True, exist_ok=True)
    done = state.read_text().split() if state.is_file() else []
    while rank == 0 and len(done) < params["steps"]:
        time.sleep(float(os.environ.get("TOY_STEP_SECONDS", "0")))
        done.append(str(len(done) * int(seed or 0)))
        part = state.with_name(cell + ".part")
        part.write_text(" ".join(done))
        part.replace(state)
        note(f"step {len(done)}")
    if rank == 0:
        write("runs", Path("build/mixtures", mixture).read_text() + " ".join(done))
        state.unlink()
else:
    write("evaluation", Path("build/runs", cell).read_text().upper())
"""


@dataclasses.dataclass(frozen=True)
class Toy:
    """The repository, and what its stages noted.

    Attributes:
        root: its top folder.
        scratch: for unfinished runs.
        log: what the stages noted.
    """

    root: Path
    scratch: Path
    log: Path

    @property
    def submissions(self) -> Path:
        return self.scratch / "cluster"

    def jobs(self, *mixtures: str, seeds: Sequence[int] = (0,)) -> list[CellJob]:
        """Return the cells of some mixtures and seeds."""
        return [
            CellJob(
                f"{mixture}-toy-s{seed}",
                (f"train@{mixture}-toy-{seed}", f"evaluate@{mixture}-toy-{seed}"),
                ("data.dvc", f"mixture@{mixture}"),
            )
            for mixture in mixtures
            for seed in seeds
        ]

    def run(self, *command: str) -> str:
        found = subprocess.run(
            command,
            cwd=self.root,
            env=environment(self),
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, (command, found.stdout, found.stderr)
        return found.stdout

    def dvc(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def noted(self, words: str = "") -> list[str]:
        """Return the lines that begin with some words."""
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [line for line in lines if line.startswith(words)]

    def status(self) -> Mapping[str, object]:
        found: Mapping[str, object] = json.loads(self.dvc("status", "--json"))
        return found

    def results(self) -> dict[str, str]:
        """Return the hashes of all that cells wrote."""
        files = [path for path in self.root.glob("build/*/*") if path.parent.name != "mixtures"]
        return {
            f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(files)
        }


def environment(toy: Toy) -> dict[str, str]:
    """Return the environment in which the toy's commands are to be run."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PATH": tools, "DVC_NO_ANALYTICS": "1", "SHELL": "/bin/sh", "TOY_LOG": str(toy.log)}
    return {**os.environ, **own, "SCRATCH": str(toy.scratch), "GIT_CONFIG_GLOBAL": "/dev/null"}


def make_toy(
    folder: Path, mixtures: Sequence[str] = ("a",), seeds: int = 1, train: str = "python -SE"
) -> Toy:
    """Make the repository, with its mixtures up to date.

    Args:
        folder: for the repository, its scratch folder and its notes.
        mixtures: keys; one that begins with `bad` cannot be trained.
        seeds: how many.
        train: program that runs the script of the training stage.
    """
    toy = Toy(folder / "toy", folder / "scratch", folder / "log")
    (toy.root / "stages").mkdir(parents=True)
    (toy.root / "data").mkdir()
    (toy.root / "data" / "images").write_text("images")
    (toy.root / "stages" / "toy.py").write_text(SCRIPT)
    (toy.root / "dvc.yaml").write_text(PIPELINE.replace("TRAIN", train))
    (toy.root / ".gitignore").write_text("/build/\n/data\n")
    settings = {name: {"size": 1, "fails": name.startswith("bad")} for name in mixtures}
    run = {"mixtures": list(mixtures), "models": ["toy"], "seeds": list(range(seeds))}
    # JSON is YAML.
    params = {"run": run, "mixtures": settings, "steps": 5}
    (toy.root / "params.yaml").write_text(json.dumps(params, indent=1))
    _begin_repository(toy)
    toy.dvc("repro", "--quiet", "mixture")
    commit(toy)
    return toy


def make_project(folder: Path) -> Toy:
    """Make a repository with this project's parameters, for two cells, and a toy for a pipeline.

    Args:
        folder: for the repository, its scratch folder and its notes.
    """
    toy = Toy(folder / "toy", folder / "scratch", folder / "log")
    (toy.root / "data").mkdir(parents=True)
    (toy.root / "data" / "images").write_text("images")
    text = (ROOT / "params.yaml").read_text()
    for key, value in (("mixtures", "[cg-low]"), ("models", "[sample-rn]"), ("seeds", "[0, 1]")):
        text = re.sub(rf"^  {key}: .*", f"  {key}: {value}", text, count=1, flags=re.M)
    # Nothing is looked into: the pipeline has no such stages.
    text = re.sub(r"(mechanisms:\n  models: |circuit_models: ).*", r"\1[]", text)
    (toy.root / "params.yaml").write_text(text)
    (toy.root / "recipe.txt").write_text("one")
    (toy.root / "dvc.yaml").write_text(PROJECT)
    (toy.root / ".gitignore").write_text("/build/\n/data\n")
    _begin_repository(toy)
    return toy


def _begin_repository(toy: Toy) -> None:
    toy.run("git", "init", "--quiet")
    toy.dvc("init", "--quiet")
    (toy.root / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n[cache]\n    type = hardlink,symlink,copy\n"
    )
    toy.dvc("add", "--quiet", "data")
    commit(toy)


def commit(toy: Toy) -> None:
    """Commit all that there is."""
    toy.run("git", "add", ".")
    identity = ("-c", "user.name=toy", "-c", "user.email=toy@localhost")
    toy.run("git", *identity, "commit", "--quiet", "--message", "toy")


def edit(toy: Toy, **changes: object) -> None:
    """Change top-level values of params.yaml."""
    path = toy.root / "params.yaml"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=1))
