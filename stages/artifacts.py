"""Name the last checkpoint of a cell as an artifact, which others fetch by name and version.

python stages/artifacts.py cg-low-sample-rn-0                 # named cg-low-sample-rn-s0
python stages/artifacts.py cg-low-sample-rn-0 --name sketch-model
git commit -m "Model" dvc.yaml && gto register sketch-model   # a version is a git tag
dvc push && git push --tags
dvc artifacts get https://github.com/you/project sketch-model --rev v0.0.1     # anywhere else

Writes `artifacts` in dvc.yaml: the path, which DVC resolves to the object on the remote, and what
the cell is as labels. Names are letters, digits and hyphens, as for gto.
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from clip_mixtures.errors import UserError, reports_user_errors, unknown
from clip_mixtures.files import atomic_write_text
from clip_mixtures.training.checkpoints import list_checkpoints
from clip_mixtures.training.layout import CHECKPOINTS
from experiment import BUILD, Cell, Experiment, load_experiment

PIPELINE = Path("dvc.yaml")
_NAME = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")


@reports_user_errors
def main() -> None:
    """Write one artifact into dvc.yaml."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cell", help="as DVC names it, such as cg-low-sample-rn-0")
    parser.add_argument("--name", help="of the artifact; the name of the run by default")
    parser.add_argument("--description", default="", help="in words")
    args = parser.parse_args()
    experiment = load_experiment()
    cell = _cell(experiment, args.cell)
    name = args.name or cell.run.lower()
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--name {name!r}: must be small letters, digits and hyphens, a letter first and no "
            "hyphen last"
        )
    epoch, path = list(list_checkpoints(BUILD / "runs" / cell.run / CHECKPOINTS).items())[-1]
    artifact = {
        "path": path.as_posix(),
        "type": "model",
        "desc": args.description or _description(experiment, cell, epoch),
        "labels": [cell.mixture, cell.model, f"seed-{cell.seed}"],
    }
    _write(PIPELINE, name, artifact)
    print(f"{PIPELINE}: artifact {name} is {path}; commit it, then `gto register {name}`")


def _cell(experiment: Experiment, name: str) -> Cell:
    cells = {f"{cell.mixture}-{cell.model}-{cell.seed}": cell for cell in experiment.cells}
    if name not in cells:
        raise unknown("cell", name, cells, "run in params.yaml")
    return cells[name]


def _description(experiment: Experiment, cell: Cell, epoch: int) -> str:
    model = experiment.model(cell.model)
    kind = "classifier" if model.is_supervised else "CLIP"
    return f"{kind} {model.architecture} on {cell.mixture}, seed {cell.seed}, epoch {epoch}"


def _write(pipeline: Path, name: str, artifact: dict[str, Any]) -> None:
    yaml = YAML()
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(pipeline.read_text(encoding="utf-8"))
    document.setdefault("artifacts", {})[name] = artifact
    text = io.StringIO()
    yaml.dump(document, text)
    atomic_write_text(pipeline, text.getvalue())


if __name__ == "__main__":
    main()
