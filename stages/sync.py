"""Keep the lists in dvc.yaml that follow from elsewhere in step with what they follow from.

Two kinds of dependencies are written out, because DVC cannot derive them: the source files that a
stage imports, so that an edit re-runs what it can change and nothing else; and the files of every
cell that the comparison reads, because a matrix cannot be expanded inside one stage. After a
change of `run` in params.yaml, or of an import:

python stages/sync.py
"""

from __future__ import annotations

import ast
import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from clip_mixtures.errors import UserError, reports_user_errors
from clip_mixtures.files import atomic_write_text
from experiment import BUILD, MECHANISMS, Experiment, load_experiment
from mechanism_params import Mechanisms, load_mechanisms

PIPELINE = Path("dvc.yaml")
# A family of stages with a cell for each has a file of its own: DVC rewrites the whole lock file
# beside it after every stage.
FAMILIES = Path("pipeline")
STAGES = Path("stages")
SOURCE = Path("src")
SCRIPTS = {
    "corpus": "corpus.py",
    "verify": "verify.py",
    "mixture": "mixture.py",
    "train": "train_clip.py",
    "evaluate": "evaluate.py",
    "compare": "compare.py",
    "activations": "activations.py",
    "representation": "representation.py",
    "sae": "sae.py",
    "sharing": "sharing.py",
    "circuits": "circuits.py",
}
# What the comparison reads of a cell that was looked into.
MECHANISM_FILES = {
    "representation": (
        "maps.parquet",
        "distances.csv",
        "class_distances.csv",
        "separation.csv",
        "mean_difference.csv",
        "top_dimensions.parquet",
        "cka.csv",
    ),
    "sae": ("curves",),
    "sharing": ("sharing.csv", "score.json", "units.csv", "examples.npz"),
}
CIRCUIT_FILES = (
    "units.parquet",
    "edges.parquet",
    "completeness.parquet",
    "node_similarity.parquet",
    "graph_similarity.parquet",
    "ablation.parquet",
    "examples.npz",
)
_CELL_FOLDERS = tuple(
    f"{BUILD}/{folder}/" for folder in ("evaluation", "runs", "mixtures", MECHANISMS.name)
)


def source_files(script: Path) -> list[str]:
    """Return a script and every file of this project that it imports, directly or not."""
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [target for name in _imports(path) if (target := _module_file(name))]
    return sorted(path.as_posix() for path in found)


def _imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module, `from module import name` a name in it.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _module_file(name: str) -> Path | None:
    relative = Path(*name.split(".")).with_suffix(".py")
    for path in (SOURCE / relative, STAGES / relative):
        if path.is_file():
            return path
    return None


def cell_files(experiment: Experiment, mechanisms: Mechanisms) -> list[str]:
    """Return the files that the comparison reads, cell by cell."""
    files = []
    for cell in experiment.cells:
        files.append(f"{BUILD}/evaluation/{cell.run}/metrics.json")
        files.append(f"{BUILD}/runs/{cell.run}/training.json")
        files.append(f"{BUILD}/runs/{cell.run}/curves")
    for cell in mechanisms.cells:
        for family, names in MECHANISM_FILES.items():
            files += [f"{MECHANISMS}/{family}/{cell.run}/{name}" for name in names]
    for cell in mechanisms.circuit_cells:
        files += [f"{MECHANISMS}/circuits/{cell.run}/{name}" for name in CIRCUIT_FILES]
    mixtures = dict.fromkeys(cell.mixture for cell in experiment.cells)
    return files + [f"{BUILD}/mixtures/{key}/counts.csv" for key in mixtures]


def wanted_deps(
    stage: str, deps: list[str], experiment: Experiment, mechanisms: Mechanisms
) -> list[str]:
    """Return a stage's dependencies as they should be: those written by hand, then the derived."""
    sources = source_files(STAGES / SCRIPTS[stage])
    by_hand = [dep for dep in deps if not dep.endswith(".py")]
    if stage == "compare":
        by_hand = [dep for dep in by_hand if not dep.startswith(_CELL_FOLDERS)]
        by_hand += cell_files(experiment, mechanisms)
    return by_hand + sources


def pipeline_files(pipeline: Path = PIPELINE) -> list[Path]:
    """Return the pipeline's files: the one at the top, and one for each family beside it."""
    return [pipeline, *sorted((pipeline.parent / FAMILIES).glob(f"*/{PIPELINE.name}"))]


def check_pipeline(
    experiment: Experiment, mechanisms: Mechanisms, pipeline: Path = PIPELINE
) -> None:
    """Refuse a pipeline whose derived lists are out of step.

    Raises:
        UserError: naming the stage and the first difference.
    """
    for path in pipeline_files(pipeline):
        stages = _yaml().load(path.read_text(encoding="utf-8"))["stages"]
        for stage, definition in stages.items():
            deps = list(definition["deps"])
            wanted = wanted_deps(stage, deps, experiment, mechanisms)
            if sorted(deps) != sorted(wanted):
                first = sorted(set(deps) ^ set(wanted))[0]
                raise UserError(
                    f"{path}: stage {stage!r} is out of step with params.yaml or the sources, "
                    f"first at {first!r}; run `python stages/sync.py`"
                )


def write_pipeline(
    experiment: Experiment, mechanisms: Mechanisms, pipeline: Path = PIPELINE
) -> list[str]:
    """Bring the derived lists in step; return the stages that changed."""
    changed: list[str] = []
    for path in pipeline_files(pipeline):
        document = _yaml().load(path.read_text(encoding="utf-8"))
        before = len(changed)
        for stage, definition in document["stages"].items():
            wanted = wanted_deps(stage, list(definition["deps"]), experiment, mechanisms)
            if list(definition["deps"]) != wanted:
                definition["deps"] = wanted
                changed.append(stage)
        if len(changed) > before:
            text = io.StringIO()
            _yaml().dump(document, text)
            atomic_write_text(path, text.getvalue())
    return changed


def _yaml() -> Any:
    yaml = YAML()
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


@reports_user_errors
def main() -> None:
    """Bring dvc.yaml in step."""
    experiment = load_experiment()
    changed = write_pipeline(experiment, load_mechanisms(experiment))
    print(f"pipeline: {'rewrote ' + ', '.join(changed) if changed else 'in step'}")


if __name__ == "__main__":
    main()
