"""Choose test images of held-out classes for the report, with the answers of every run.

python stages/examples.py
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from clip_mixtures.errors import reports_user_errors
from clip_mixtures.files import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    read_yaml,
)
from clip_mixtures.images import thumbnails
from clip_mixtures.index import read_index
from clip_mixtures.report.examples import THUMBNAIL, choose_examples, webp
from clip_mixtures.report.provenance import pinned_data
from evaluated import EXAMPLES, PINNED, last_answers
from experiment import DATA, INDEX, load_experiment, no_arguments
from steady import steady
from timed import timed

PIN = DATA.with_suffix(".dvc")


@reports_user_errors
@steady
@timed
def main() -> None:
    """Write build/examples/: thumbnails, examples.csv with the answers, data.json with the pin."""
    pinned = pinned_data(read_yaml(PIN), str(PIN))
    index = read_index(INDEX / "domains.parquet")
    names = np.asarray(index.class_names(), dtype=object)
    experiment = load_experiment(class_names=list(names))
    parts = []
    mixtures = {cell: experiment.mixture(cell.mixture) for cell in experiment.cells}
    for domain in dict.fromkeys(mixture.test_domain for mixture in mixtures.values()):
        cells = [cell for cell, mixture in mixtures.items() if mixture.test_domain == domain]
        answers = []
        for cell in cells:
            found = last_answers(cell, domain)
            is_held_out = np.isin(names[found["class_id"].to_numpy()], mixtures[cell].held_out)
            answers.append(found[is_held_out].assign(run=cell.run))
        parts.append(_chosen(pd.concat(answers, ignore_index=True), len(cells), domain))
    table = pd.concat(parts, ignore_index=True)
    rows = table["row"].drop_duplicates().to_numpy(dtype=np.int64)
    images = thumbnails(index.frame, index.root, rows, np.arange(len(rows)), THUMBNAIL)
    for row, image in zip(rows, images, strict=True):
        atomic_write_bytes(EXAMPLES / f"{row}.webp", webp(image))
    table["file"] = table["row"].astype(str) + ".webp"
    table["class_name"] = names[table["class_id"].to_numpy()]
    table["answer"] = names[table["prediction"].to_numpy()]
    columns = ["test_domain", "row", "file", "class_name", "run", "answer"]
    text = table[columns].to_csv(index=False, lineterminator="\n")
    atomic_write_text(EXAMPLES / "examples.csv", text)
    atomic_write_json(EXAMPLES / PINNED, pinned)
    print(f"{EXAMPLES}: {len(rows)} images with the answers of {table['run'].nunique()} runs")


def _chosen(answers: pd.DataFrame, runs: int, domain: str) -> pd.DataFrame:
    """Return the answers to the chosen images, in their order; every run has one to each."""
    # Where mixtures hold out different classes, an image is an example of all of them or of none.
    everywhere = answers.groupby("row")["run"].transform("size") == runs
    rows = choose_examples(answers[everywhere])
    chosen = answers[answers["row"].isin(rows)].assign(test_domain=domain)
    return chosen.sort_values("row", key=lambda row: row.map(rows.index), kind="stable")


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
