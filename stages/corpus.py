"""Index the corpora: every image once, with its caption and its place in the archive.

python stages/corpus.py
"""

from __future__ import annotations

from clip_mixtures.corpora.emoji import MANIFEST, verify_sample
from clip_mixtures.corpora.indexing import write_indices
from clip_mixtures.errors import reports_user_errors
from clip_mixtures.index import read_index
from experiment import DATA, INDEX, load_experiment, no_arguments
from steady import steady
from timed import timed


@reports_user_errors
@steady
@timed
def main() -> None:
    """Write build/index/, one file for each corpus."""
    experiment = load_experiment()
    if (DATA / MANIFEST).is_file():
        verify_sample(DATA)
    for line in write_indices(experiment.sources, INDEX):
        print(line)
    domains = read_index(INDEX / "domains.parquet", columns=["class_id", "class_name"])
    load_experiment(class_names=domains.class_names())


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
