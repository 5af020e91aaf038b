"""Time what DVC costs on the sample's matrix and on the study's, with stages that do nothing.

    python benchmarks/dvc_overhead.py sample
    python benchmarks/dvc_overhead.py paper --cells 12

The pipeline files, sources and parameters of this checkout are copied into a repository of its own,
where every command is replaced by one that writes its outputs as empty files; what is left is DVC.
`paper` is 26 mixtures of a CLIP model with three seeds (78 cells) and every analysis of them;
`--classifiers` puts a classifier of each mixture and seed beside them. The whole matrix is run
once; then single cells are made anew, and what a user types most is timed. Rows for
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from clip_mixtures.presets import apply_preset

ROOT = Path(__file__).resolve().parents[1]
_COPIED = ("dvc.yaml", "pipeline", "params.yaml", "presets", "stages", "src")
_MIXTURES, _SEEDS = 26, 3
# What later stages name of an output.
_FILES = {
    "corpus": ("domains.parquet",),
    "verify": ("summary.json", "domains.parquet"),
    "mixture": ("mixture.json",),
    "activations": ("features.npy", "images.parquet"),
}
_STUB = """\
# stage folder files...: fail on none, write each; what it holds differs by stage and folder.
stage=$1 folder=$2
shift 2
mkdir -p "$folder"
for file in made "$@"; do
  mkdir -p "$folder/$(dirname "$file")"
  echo "$stage $folder" > "$folder/$file"
done
"""


def _yaml() -> Any:
    yaml = YAML()
    yaml.width = 1000
    return yaml


def _prepare(folder: Path, matrix: str, classifiers: bool = False) -> None:
    """Make a repository with the pipeline of this checkout and stages that do nothing."""
    for name in _COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "dvc.lock")
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy(source, target)
    (folder / "data").mkdir()
    (folder / "data" / "archive").write_text("bytes\n")
    (folder / "stub.sh").write_text(_STUB)
    (folder / ".gitignore").write_text(
        "/build/*\n!/build/mechanisms/\n/build/mechanisms/*\n!/build/mechanisms/README.md\n/data\n/report/\n/scratch/\n__pycache__/\n"
    )
    if matrix == "paper":
        _write_study(folder / "params.yaml", folder / "presets", classifiers)
    run = _runner(folder)
    run("git", "init", "--quiet")
    run("dvc", "init", "--quiet")
    _replace_commands(folder)
    run("dvc", "add", "--quiet", "data")
    _commit(run, "begin")


def _write_study(params: Path, presets: Path, classifiers: bool) -> None:
    apply_preset(presets / "imagenet-captions.yaml", params)
    document = _yaml().load(params)
    keys = [f"mixture-{number:02}" for number in range(_MIXTURES)]
    document["mixtures"] = {
        key: {"kind": "cg_high_diversity", "size": 1000 + number} for number, key in enumerate(keys)
    }
    document["run"] = {
        "mixtures": keys,
        "models": ["rn50", "rn50-classifier"] if classifiers else ["rn50"],
        "seeds": list(range(_SEEDS)),
    }
    _yaml().dump(document, params)


def _replace_commands(folder: Path) -> None:
    for path in (folder / "dvc.yaml", *folder.glob("pipeline/*/dvc.yaml")):
        document = _yaml().load(path)
        for stage, definition in document["stages"].items():
            outs = [out if isinstance(out, str) else next(iter(out)) for out in definition["outs"]]
            if stage == "code":
                continue
            if stage == "compare":
                files = " ".join(out for out in outs if out.startswith("metrics/"))
                definition["cmd"] = (
                    f"mkdir -p metrics report && touch report/made {files} "
                    "&& echo '{\"cells\": 1}' > metrics/headline.json"
                )
            else:
                names = " ".join(_FILES.get(stage, ()))
                definition["cmd"] = " && ".join(f"sh stub.sh {stage} {out} {names}" for out in outs)
        _yaml().dump(document, path)


def _runner(folder: Path) -> Callable[..., float]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent.absolute()}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(str(folder / name) for name in ("src", "stages")),
        "DVC_NO_ANALYTICS": "1",
    }

    def run(*command: str) -> float:
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}{done.stdout}")
        return time.perf_counter() - start

    return run


def _commit(run: Callable[..., float], message: str) -> None:
    run("git", "add", "--all")
    who = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    run("git", *who, "commit", "--quiet", "--message", message)


def _stages(folder: Path) -> dict[str, int]:
    """Return the number of finished stages in every lock file."""
    locks = [folder / "dvc.lock", *sorted(folder.glob("pipeline/*/dvc.lock"))]
    return {
        lock.parent.name if lock.parent != folder else "top": len(_yaml().load(lock)["stages"])
        for lock in locks
    }


def measure(folder: Path, matrix: str, classifiers: bool, rounds: int, cells: int) -> None:
    """Run the matrix once, then time what users type, and print a table."""
    _prepare(folder, matrix, classifiers)
    run = _runner(folder)
    whole = run("dvc", "repro", "--quiet")
    _commit(run, "made")
    counts = _stages(folder)
    total = sum(counts.values())
    print(f"{matrix}: {total} stages ({', '.join(f'{k} {n}' for k, n in counts.items())})\n")
    print("| command | time | a stage |\n| --- | ---: | ---: |", flush=True)
    _row(f"`dvc repro`, all {total} stages run", whole, total)
    for title, command in (
        ("`dvc repro`, nothing to do", ("dvc", "repro")),
        ("`dvc status`", ("dvc", "status")),
        ("`dvc exp show --md`", ("dvc", "exp", "show", "--md")),
    ):
        _row(title, statistics.median(run(*command) for _ in range(rounds)))
    _row(*_cells(folder, run, cells))


def _cells(folder: Path, run: Callable[..., float], cells: int) -> tuple[str, float, int]:
    """Make the stages of some cells anew, as stages/work.py does, a command a cell."""
    sys.path.insert(0, str(ROOT / "stages"))
    import work
    from experiment import load_experiment
    from mechanism_params import load_mechanisms

    params = folder / "params.yaml"
    document = _yaml().load(params)
    models = document["models"]
    # Another recipe changes every network of a model.
    for model in models.values():
        recipe = model.setdefault("supervised" if "supervised" in model else "train", {})
        recipe["learning_rate"] = 0.0123
    _yaml().dump(models and document, params)
    experiment = load_experiment(params)
    mechanisms = load_mechanisms(experiment, params)
    spent, count = 0.0, 0
    for cell in experiment.cells[:cells]:
        stages = work.stages_of(cell, mechanisms)
        spent += run("dvc", "--wait-for-lock", "repro", "--force", "--single-item", *stages)
        count += len(stages)
    return f"{cells} cells one by one, {count} stages run", spent, count


def _row(title: str, seconds: float, stages: int | None = None) -> None:
    each = f"{seconds / stages:.2f} s" if stages else ""
    print(f"| {title} | {seconds:.1f} s | {each} |", flush=True)


def main() -> None:
    """Measure one matrix."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("matrix", choices=("sample", "paper"))
    parser.add_argument("--classifiers", action="store_true", help="of the study, too")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--cells", type=int, default=4, metavar="N", help="to make one by one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), args.matrix, args.classifiers, args.rounds, args.cells)


if __name__ == "__main__":
    main()
