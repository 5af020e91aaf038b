"""Compare the cells that params.yaml names: tables, figures, one page and its Markdown twin.

python stages/compare.py
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd

import explained
from clip_mixtures.errors import reports_user_errors
from clip_mixtures.files import atomic_write_bytes, atomic_write_json, atomic_write_text
from clip_mixtures.report import tables
from clip_mixtures.report.drawings import save_drawings
from clip_mixtures.report.markdown import write_markdown
from clip_mixtures.report.page import write_page
from evaluated import EXAMPLES, existing
from experiment import METRICS, REPORT, load_experiment, no_arguments
from finished import forget_finished
from mechanism_params import load_mechanisms
from sections import FIGURES, IMAGES, held_out_frame, report_document, study_drawings
from steady import steady
from study import Study
from timed import timed


@reports_user_errors
@steady
@timed
def main() -> None:
    """Write metrics/ and report/."""
    experiment = load_experiment()
    mechanisms = load_mechanisms(experiment)
    study = Study(experiment)
    measured = explained.measures(experiment, mechanisms)
    _write_metrics(study, measured)

    drawings = study_drawings(study)
    inside = explained.drawings(experiment, mechanisms)
    measures = None if measured.empty else explained.measures_table(measured)
    # What is missing shows here, before the figures take their time.
    document = report_document(study, drawings, inside, measures)
    everything = itertools.chain(*drawings.values(), *inside.values())
    save_drawings(list(everything), REPORT / FIGURES)
    for file in study.examples["file"].unique():
        atomic_write_bytes(REPORT / IMAGES / file, existing(EXAMPLES / file).read_bytes())
    write_page(REPORT / "index.html", document)
    write_markdown(REPORT / "report.md", document)
    forget_finished()
    print(
        f"{len(study.cells)} cells compared: {REPORT / 'index.html'}, {METRICS / 'comparison.md'}"
    )


def _write_metrics(study: Study, measured: pd.DataFrame) -> None:
    summary = study.summary
    atomic_write_json(METRICS / "summary.json", summary)
    atomic_write_json(
        METRICS / "headline.json",
        tables.headline(summary, study.kinds, study.held_out, study.informed),
    )
    comparison = tables.comparison_markdown(summary, classes=study.classes)
    atomic_write_text(METRICS / "comparison.md", comparison)
    for name, frame in {
        "cells": tables.cells_frame(summary),
        "mixtures": study.counts,
        "held_out": held_out_frame(study),
        "robustness": study.robustness,
        "differences": study.differences,
        "mechanisms": measured,
    }.items():
        _write_csv(METRICS / f"{name}.csv", frame)


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    atomic_write_text(path, frame.to_csv(index=False, lineterminator="\n"))


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
