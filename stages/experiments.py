"""Compare experiments: what each of them changed, and what that did to the accuracy.

python stages/experiments.py                       # the experiments of this commit, and the commit
python stages/experiments.py only-low faster       # two of them
python stages/experiments.py --rev main --measure held-out --measure imagenet

Reads what every experiment has in git, params.yaml and metrics/summary.json, so nothing is pulled
and nothing is run. Accuracies are averaged over seeds and stand beside their difference to the
commit that the experiments began from, both with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from typing import Any

import dvc.api
from dvc.exceptions import DvcException
from ruamel.yaml import YAML
from scmrepo.exceptions import SCMError

from clip_mixtures.errors import UserError, reports_user_errors, unknown
from clip_mixtures.report.experiments import (
    Experiment,
    changes_table,
    experiments_table,
    flat,
)
from clip_mixtures.report.markdown import table_markdown
from experiment import DATA, METRICS, PARAMS

MEASURES = {"held-out": "Held-out", "seen": "Seen", "imagenet": "ImageNet"}
_WORKSPACE = "workspace"


@reports_user_errors
def main() -> None:
    """Print a table of accuracies and one of parameters, in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="experiments; all of the commit by default")
    parser.add_argument("--rev", default="HEAD", help="commit that they began from")
    parser.add_argument(
        "--measure",
        action="append",
        choices=MEASURES,
        help="what to show, any number of times; held-out and seen by default",
    )
    args = parser.parse_args()
    experiments = _experiments(args.rev)
    chosen = _chosen(experiments, args.names, args.rev)
    measures = [MEASURES[name] for name in args.measure or ("held-out", "seen")]
    for table in (experiments_table(chosen, measures), changes_table(chosen)):
        if table.rows:
            print(f"{table.caption}\n\n{table_markdown(table)}\n")


def _experiments(rev: str) -> list[Experiment]:
    """Return a commit, and the experiments that began from it, in DVC's order."""
    try:
        rows = dvc.api.exp_show(revs=rev)
    except (DvcException, SCMError) as error:
        raise UserError(f"--rev {rev}: {error}") from error
    base: list[Experiment] = []
    others = []
    for row in rows:
        if row["rev"] == _WORKSPACE:
            continue
        if row["typ"] == "baseline":
            base.append(_read(row["rev"], row["rev"], ""))
        else:
            others.append(_read(row["Experiment"] or row["rev"], row["rev"], row["State"] or ""))
    return base + others


def _chosen(experiments: list[Experiment], names: list[str], rev: str) -> list[Experiment]:
    there = {one.name: one for one in experiments[1:]}
    if not there:
        raise UserError(
            f"{rev}: no experiment began from this commit; `dvc exp run -n NAME -S KEY=VALUE` "
            "makes one, `dvc exp list --all` knows those of others"
        )
    for name in names:
        if name not in there:
            raise unknown("experiment", name, there, f"experiments of {rev}")
    return [experiments[0], *(there[name] for name in names or there)]


def _read(name: str, rev: str, state: str) -> Experiment:
    params = _file(rev, PARAMS.as_posix())
    summary = _file(rev, (METRICS / "summary.json").as_posix())
    # What waits or failed is a commit of its inputs; its metrics would be the baseline's.
    is_done = state in ("", "Success")
    values: Mapping[str, Any] = YAML(typ="safe", pure=True).load(params) if params else {}
    cells = json.loads(summary) if summary and is_done else None
    return Experiment(name, state, flat(values), cells, _file(rev, DATA.as_posix() + ".dvc"))


def _file(rev: str, path: str) -> str:
    """Return a file as a commit has it; nothing where it has none."""
    command = ["git", "show", f"{rev}:{path}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


if __name__ == "__main__":
    main()
