"""Train a sparse autoencoder on a cell's features of the training images.

python stages/sae.py --mixture cg-low --model sample-rn --seed 0
"""

from __future__ import annotations

import shutil

from clip_mixtures.errors import reports_user_errors
from clip_mixtures.evaluation.predictions import evaluation_set
from clip_mixtures.files import atomic_write_json
from clip_mixtures.index import base_sets, read_index
from clip_mixtures.mechanisms.activations import read_features
from clip_mixtures.mechanisms.sae_training import train_sae
from clip_mixtures.mechanisms.training_features import (
    features_fingerprint,
    features_of_tests,
    training_features,
)
from clip_mixtures.scratch import exclusive
from clip_mixtures.training.checkpoints import list_checkpoints
from clip_mixtures.training.data import fingerprint
from clip_mixtures.training.layout import CURVES
from clip_mixtures.training.processes import decoding_workers
from experiment import (
    ACTIVATIONS,
    BUILD,
    FACTS,
    INDEX,
    MECHANISMS,
    VERIFICATION,
    cell_of_arguments,
    load_experiment,
    scratch_root,
)
from looked_into import checkpoint_of, code_version
from mechanism_params import load_mechanisms
from steady import steady
from timed import timed


@reports_user_errors
@steady
@timed
def main() -> None:
    """Write build/mechanisms/sae/<run>/: the autoencoder, its curves and facts."""
    cell, experiment = cell_of_arguments(__doc__), load_experiment()
    settings = load_mechanisms(experiment)
    indices = [INDEX / "domains.parquet"]
    indices += base_sets(INDEX).values() if settings.features.bases else []
    weights = list(list_checkpoints(BUILD / "runs" / cell.run / "checkpoints").values())[-1]
    made_from = features_fingerprint(weights, indices, VERIFICATION, code_version())
    scratch = scratch_root() / "sae" / f"{cell.run}-{made_from}"
    out = MECHANISMS / "sae" / cell.run
    found = read_features(ACTIVATIONS / cell.run)
    settings.sae.check_width(found.features.shape[1])
    with exclusive(scratch):
        classes = len(read_index(indices[0], columns=["class_id", "class_name"]).class_names())
        checkpoint = checkpoint_of(experiment, cell, classes)
        features = training_features(
            scratch / f"features-{settings.features.dtype}",
            checkpoint,
            [evaluation_set(path.stem, path, VERIFICATION, "train") for path in indices],
            dtype=settings.features.dtype,
            workers=max(decoding_workers(), 1),
        )
        tests = features_of_tests(scratch / "tests", found.features, settings.features.dtype)
        # Tried again with another recipe, it starts anew, from the same features.
        recipe = fingerprint(settings.sae, features.fingerprint, tests.fingerprint)
        training = scratch / f"training-{recipe}"
        facts = train_sae(
            features,
            settings.sae,
            cell.seed,
            training,
            out / "sae.safetensors",
            tests,
            checkpoint.normalisation.device,
        )
        shutil.copytree(training / CURVES, out / CURVES, dirs_exist_ok=True)
        atomic_write_json(out / FACTS, {"features": len(features), **facts})
        # Features and autoencoder stay until DVC has it on record.
        atomic_write_json(scratch / FACTS, {"features": len(features), **facts})
    print(f"{cell.run}: {facts}")


if __name__ == "__main__":
    main()
