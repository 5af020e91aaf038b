"""Choose the rows of one mixture, audit them, and count them.

python stages/mixture.py --mixture cg-low
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import pandas as pd

from clip_mixtures.errors import reports_user_errors
from clip_mixtures.files import atomic_write_json, atomic_write_text
from clip_mixtures.index import read_index
from clip_mixtures.mixtures.audit import check_held_out
from clip_mixtures.mixtures.build import count_table, select_rows, write_rows
from experiment import BUILD, INDEX, load_experiment


@reports_user_errors
def main() -> None:
    """Write build/mixtures/<mixture>/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixture", required=True, help="key under `mixtures` in params.yaml")
    args = parser.parse_args()
    domains = read_index(INDEX / "domains.parquet")
    base = read_index(INDEX / "base.parquet")
    mixture = load_experiment(class_names=domains.class_names()).mixture(args.mixture)
    rows = select_rows(domains.frame, mixture)
    check_held_out(domains.frame, rows.train, mixture)
    out = BUILD / "mixtures" / mixture.key
    # The base set comes first, as in the published files; its own validation part stays its own.
    for split, chosen in (("train", rows.train), ("validation", rows.validation)):
        wanted = "train" if split == "train" else "test"
        of_base = np.flatnonzero((base.frame["split"] == wanted).to_numpy())
        write_rows(out / f"{split}.parquet", {"base": of_base, "domains": chosen})
    counts = count_table(domains.frame, rows.train, mixture)
    base_images = int((base.frame["split"] == "train").sum())
    base_row = pd.DataFrame(
        {"domain": ["base"], "group": ["base"], "images": [base_images], "classes": [0]}
    )
    counts = pd.concat([base_row, counts], ignore_index=True)
    atomic_write_text(out / "counts.csv", counts.to_csv(index=False, lineterminator="\n"))
    atomic_write_json(out / "mixture.json", dataclasses.asdict(mixture))
    print(counts.to_string(index=False))


if __name__ == "__main__":
    main()
