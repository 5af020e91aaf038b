"""Tabulate how long stages took.

python stages/times.py                 # a table in Markdown, a row a kind of stage
python stages/times.py --price 2.50    # with what its GPUs cost, at so much a GPU hour

Stages note it in scratch/times.jsonl when DVC has run them to their end (timed.py). What was killed
is not among them, nor what came out of the cache or ran with another scratch folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from clip_mixtures.errors import UserError, reports_user_errors
from clip_mixtures.files import read_text
from experiment import scratch_root
from timed import TIMES

_COLUMNS = ("stage", "seconds", "gpus", "ended")


def read_times(path: Path) -> pd.DataFrame:
    """Read what was noted: ``stage``, ``seconds``, ``gpus``, ``ended``, a row for each end.

    A line that a full disk cut short is left out.

    Raises:
        UserError: when nothing was noted there.
    """
    if not path.is_file():
        raise UserError(f"{path}: absent; `dvc repro` notes there how long every stage takes")
    found = []
    for line in read_text(path).splitlines():
        try:
            noted = json.loads(line)
            found.append([noted[name] for name in _COLUMNS])
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return pd.DataFrame(found, columns=list(_COLUMNS))


def times_table(times: pd.DataFrame, price: float | None = None) -> str:
    """Return a table in Markdown: a row a kind of stage, in the order of their first ends.

    Args:
        times: of :func:`read_times`.
        price: of a GPU hour, for a column of costs.
    """
    columns = ["stage", "ran", "median", "longest", "together", "GPU hours"]
    columns += ["cost"] if price is not None else []
    lines = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    kinds = times["stage"].str.rpartition(":")[2].str.partition("@")[0]
    for kind, found in [*times.groupby(kinds, sort=False), ("together", times)]:
        seconds = found["seconds"]
        gpu_hours = float((seconds * found["gpus"]).sum() / 3600)
        cells = [str(kind), str(len(found))]
        cells += [_duration(value) for value in (seconds.median(), seconds.max(), seconds.sum())]
        cells += [f"{gpu_hours:.2f}"]
        cells += [f"{gpu_hours * price:,.2f}"] if price is not None else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@reports_user_errors
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--price", type=float, help="of a GPU hour, in any currency")
    args = parser.parse_args()
    if args.price is not None and not 0 <= args.price < float("inf"):
        raise UserError(f"--price {args.price}: allowed: a price from 0")
    print(times_table(read_times(scratch_root() / TIMES), args.price))


if __name__ == "__main__":
    main()
