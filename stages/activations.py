"""Read what the last checkpoint of a cell makes of the test images: embedding and class means.

python stages/activations.py --mixture cg-low --model sample-rn --seed 0
"""

from __future__ import annotations

from clip_mixtures.errors import reports_user_errors
from clip_mixtures.evaluation.predictions import decoded, evaluation_set
from clip_mixtures.index import read_index
from clip_mixtures.mechanisms.activations import write_activations
from clip_mixtures.mechanisms.collect import collect
from clip_mixtures.mixtures.spec import DOMAINS
from clip_mixtures.training.processes import decoding_workers
from experiment import ACTIVATIONS, INDEX, VERIFICATION, cell_of_arguments, load_experiment
from looked_into import checkpoint_of
from steady import steady
from timed import timed


@reports_user_errors
@steady
@timed
def main() -> None:
    """Write build/activations/<run>/."""
    cell, experiment = cell_of_arguments(__doc__), load_experiment()
    path = INDEX / "domains.parquet"
    index = read_index(path, columns=["class_id", "class_name", "domain"])
    checkpoint = checkpoint_of(experiment, cell, len(index.class_names()))
    images = evaluation_set(DOMAINS, path, VERIFICATION)
    found = collect(
        checkpoint.tower,
        checkpoint.normalisation,
        images,
        decoded(images, checkpoint.model.image_size, max(decoding_workers(), 1)),
        domains=index.domains(),
        classes=len(index.class_names()),
        epoch=checkpoint.epoch,
    )
    write_activations(ACTIVATIONS / cell.run, found)
    print(f"{cell.run}: {len(found.images)} images, {len(found.class_means)} layers")


if __name__ == "__main__":
    main()
