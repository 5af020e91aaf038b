"""See which units of a cell's sparse autoencoder the domains share for the held-out classes.

python stages/sharing.py --mixture cg-low --model sample-rn --seed 0
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from clip_mixtures.errors import reports_user_errors
from clip_mixtures.files import atomic_write_json, atomic_write_text, replacing
from clip_mixtures.images import thumbnails
from clip_mixtures.index import read_index
from clip_mixtures.mechanisms.activations import read_features
from clip_mixtures.mechanisms.concepts import encode_words, name_units, read_vocabulary
from clip_mixtures.mechanisms.sae import SparseAutoencoder, load_sae
from clip_mixtures.mechanisms.shared_units import share_units
from clip_mixtures.mixtures.store import definition_of
from experiment import (
    ACTIVATIONS,
    BUILD,
    INDEX,
    MECHANISMS,
    Cell,
    Experiment,
    cell_of_arguments,
    load_experiment,
)
from finished import forget_finished
from looked_into import checkpoint_of
from mechanism_params import load_mechanisms
from steady import steady
from timed import timed

# Units of which examples are shown, images of each in a domain, and their side in pixels.
SHOWN, EXAMPLES, THUMBNAIL = 8, 3, 64


@reports_user_errors
@steady
@timed
def main() -> None:
    """Write build/mechanisms/sharing/<run>/: sharing by class, score, shared units, examples."""
    cell = cell_of_arguments(__doc__)
    index = read_index(INDEX / "domains.parquet")
    class_names = index.class_names()
    experiment = load_experiment(class_names=class_names)
    settings = load_mechanisms(experiment).sharing
    mixture = definition_of(BUILD / "mixtures" / cell.mixture)
    found = read_features(ACTIVATIONS / cell.run)
    sae = load_sae(MECHANISMS / "sae" / cell.run / "sae.safetensors")
    shared = share_units(
        sae,
        found,
        [class_names.index(name) for name in mixture.held_out],
        mixture.test_domain,
        protocol=settings.protocol,
        resamples=experiment.evaluate.resamples,
        seed=experiment.evaluate.seed,
        shown=SHOWN,
        examples=EXAMPLES,
    )
    units = shared.units
    names = _unit_names(settings.vocabulary, experiment, cell, sae, class_names)
    if names is not None:
        units = units.merge(names, on="unit", how="left")
    out = MECHANISMS / "sharing" / cell.run
    for name, table in (("sharing", shared.table), ("units", units)):
        named = table.assign(**{"class": [class_names[place] for place in table["class"]]})
        text = named.to_csv(index=False, lineterminator="\n", float_format="%.6f")
        atomic_write_text(out / f"{name}.csv", text)
    rows = found.images["row"].to_numpy()
    with replacing(out / "examples.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            units=units["unit"].to_numpy()[: len(shared.examples)],
            images=thumbnails(index.frame, index.root, rows, shared.examples, THUMBNAIL),
        )
    with replacing(out / "histograms.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, classes=shared.classes, counts=shared.counts)
    facts = {
        "test_domain": mixture.test_domain,
        "score": shared.score.as_dict(),
        # A single class has no others to share with; JSON has no NaN.
        "chance": None if math.isnan(shared.chance) else shared.chance,
        "classes": len(shared.classes),
        "left_out": [class_names[class_id] for class_id in shared.left_out],
    }
    atomic_write_json(out / "score.json", facts)
    forget_finished("sae")
    print(f"{cell.run}: {facts}")


def _unit_names(
    vocabulary: str,
    experiment: Experiment,
    cell: Cell,
    sae: SparseAutoencoder,
    class_names: list[str],
) -> pd.DataFrame | None:
    """Name units by the words of the vocabulary; a classifier has no text tower to do it with."""
    if vocabulary == "none":
        return None
    checkpoint = checkpoint_of(experiment, cell, len(class_names))
    if not checkpoint.has_text:
        return None
    words = class_names if vocabulary == "classes" else read_vocabulary(Path(vocabulary))
    return name_units(sae.dictionary, encode_words(checkpoint.model, words), words)


if __name__ == "__main__":
    main()
