"""Keep the compare stage's list of files in step with the cells that params.yaml names.

DVC cannot expand a matrix inside one stage's dependencies, so the list is written out. After a
change of `run` in params.yaml:

python stages/cells.py
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from clip_mixtures.errors import UserError, reports_user_errors
from clip_mixtures.files import atomic_write_text
from experiment import BUILD, Experiment, load_experiment

PIPELINE = Path("dvc.yaml")
_GENERATED = tuple(f"{BUILD}/{folder}/" for folder in ("evaluation", "runs", "mixtures"))


def cell_files(experiment: Experiment) -> list[str]:
    """Return the files that the comparison reads, cell by cell."""
    files = []
    for cell in experiment.cells:
        files.append(f"{BUILD}/evaluation/{cell.run}/metrics.json")
        files.append(f"{BUILD}/runs/{cell.run}/training.json")
        files.append(f"{BUILD}/runs/{cell.run}/curves")
    files += [f"{BUILD}/mixtures/{key}/counts.csv" for key in _mixtures(experiment)]
    return files


def check_cells(experiment: Experiment, pipeline: Path = PIPELINE) -> None:
    """Refuse a pipeline whose comparison lists other cells than params.yaml.

    Raises:
        UserError: saying how to bring them in step.
    """
    listed = [dep for dep in _compare(_load(pipeline))["deps"] if dep.startswith(_GENERATED)]
    wanted = cell_files(experiment)
    if sorted(listed) != sorted(wanted):
        differing = sorted(set(listed) ^ set(wanted))
        raise UserError(
            f"{pipeline}: compare's deps and run in params.yaml name different cells, first "
            f"{differing[0] if differing else listed[0]!r}; run `python stages/cells.py`"
        )


def write_cells(experiment: Experiment, pipeline: Path = PIPELINE) -> bool:
    """Write the list into the pipeline; return whether it changed."""
    document = _load(pipeline)
    stage = _compare(document)
    kept = [dep for dep in stage["deps"] if not dep.startswith(_GENERATED)]
    wanted = kept + cell_files(experiment)
    if list(stage["deps"]) == wanted:
        return False
    stage["deps"] = wanted
    text = io.StringIO()
    _yaml().dump(document, text)
    atomic_write_text(pipeline, text.getvalue())
    return True


def _mixtures(experiment: Experiment) -> list[str]:
    return list(dict.fromkeys(cell.mixture for cell in experiment.cells))


def _compare(document: Any) -> Any:
    return document["stages"]["compare"]


def _load(pipeline: Path) -> Any:
    return _yaml().load(pipeline.read_text(encoding="utf-8"))


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


@reports_user_errors
def main() -> None:
    """Bring dvc.yaml in step with params.yaml."""
    changed = write_cells(load_experiment())
    print(f"{PIPELINE}: compare's deps {'rewritten' if changed else 'are in step'}")


if __name__ == "__main__":
    main()
