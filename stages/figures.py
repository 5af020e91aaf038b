"""Write figures of the report for a paper: any of them, as PDF.

python stages/figures.py                                   # lists them
python stages/figures.py robustness 'mechanisms/circuits_*'
python stages/figures.py 'training_*' --format png --out paper/figures

Drawn from the evaluations and analyses that are in build/, as the comparison draws them.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

import explained
from clip_mixtures.errors import UserError, reports_user_errors, unknown
from clip_mixtures.report.drawings import Drawing
from clip_mixtures.report.style import FORMATS, save_figure
from experiment import load_experiment, scratch_root
from mechanism_params import load_mechanisms
from sections import study_drawings
from study import Study


@reports_user_errors
def main() -> None:
    """List the figures, or write those whose names match."""
    args = _arguments()
    experiment = load_experiment()
    inside = explained.drawings(experiment, load_mechanisms(experiment))
    of_study = study_drawings(Study(experiment))
    every = [*itertools.chain(*of_study.values(), *inside.values())]
    if not args.names:
        for drawing in every:
            print(f"{drawing.name:60} {drawing.heading}")
        return
    out = args.out or scratch_root() / "figures"
    for drawing in tqdm(chosen(every, args.names), desc="figures", unit="figure"):
        for path in save_figure(drawing.draw(), out / drawing.name, (args.format,)):
            tqdm.write(str(path))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of figures; * stands for any")
    parser.add_argument("--format", choices=FORMATS, default="pdf", help="pdf (default) or png")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: scratch/figures")
    return parser.parse_args()


def chosen(every: Sequence[Drawing], names: Sequence[str]) -> list[Drawing]:
    """Return the drawings that any of some names or patterns match, each once, in their order.

    Raises:
        UserError: for a name that is none, or a pattern that matches none.
    """
    known = [drawing.name for drawing in every]
    wanted: set[str] = set()
    for name in names:
        found = fnmatch.filter(known, name)
        if not found and any(sign in name for sign in "*?["):
            raise UserError(f"figure {name!r}: matches none; python stages/figures.py lists them")
        if not found:
            raise unknown("figure", name, known, "stages/figures.py")
        wanted |= set(found)
    return [drawing for drawing in every if drawing.name in wanted]


if __name__ == "__main__":
    main()
