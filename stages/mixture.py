"""Choose the rows of one mixture, audit them, and count them.

python stages/mixture.py --mixture cg-low
"""

from __future__ import annotations

import argparse

from clip_mixtures.errors import reports_user_errors
from clip_mixtures.index import read_index
from clip_mixtures.mixtures.make import make_mixture
from experiment import BUILD, INDEX, VERIFICATION, load_experiment
from steady import steady
from timed import timed


@reports_user_errors
@steady
@timed
def main() -> None:
    """Write build/mixtures/<mixture>/: rows, definition, counts and audit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mixture", required=True, help="key under `mixtures` in params.yaml")
    args = parser.parse_args()
    classes = read_index(INDEX / "domains.parquet", columns=["class_id", "class_name"])
    experiment = load_experiment(class_names=classes.class_names())
    mixture = experiment.mixture(args.mixture)
    out = BUILD / "mixtures" / mixture.key
    made = make_mixture(INDEX, mixture, out, VERIFICATION, experiment.checks)
    print(made.counts.to_string(index=False))
    for reason, count in made.dropped.items():
        print(f"left out: {count} {reason}")


if __name__ == "__main__":
    main()
