"""Map and measure the embedding of a cell, and compare its layers between domains.

python stages/representation.py --mixture cg-low --model sample-rn --seed 0
"""

from __future__ import annotations

import pandas as pd

from clip_mixtures.errors import reports_user_errors
from clip_mixtures.files import atomic_write_text, replacing
from clip_mixtures.index import read_index
from clip_mixtures.mechanisms.activations import read_activations
from clip_mixtures.mechanisms.cka import cka_table
from clip_mixtures.mechanisms.represent import represent
from clip_mixtures.mixtures.store import definition_of
from experiment import ACTIVATIONS, BUILD, INDEX, MECHANISMS, cell_of_arguments, load_experiment
from mechanism_params import load_mechanisms
from steady import steady
from timed import timed


@reports_user_errors
@steady
@timed
def main() -> None:
    """Write build/mechanisms/representation/<run>/."""
    cell = cell_of_arguments(__doc__)
    class_names = read_index(
        INDEX / "domains.parquet", columns=["class_id", "class_name"]
    ).class_names()
    experiment = load_experiment(class_names=class_names)
    settings = load_mechanisms(experiment)
    mixture = definition_of(BUILD / "mixtures" / cell.mixture)
    held_out = [class_names.index(name) for name in mixture.held_out]
    found = read_activations(ACTIVATIONS / cell.run)
    bootstrap = experiment.evaluate
    out = MECHANISMS / "representation" / cell.run
    # Before the long work: names of layers are checked here.
    means = found.means_of(settings.cka_layers)
    tables = represent(
        found, mixture.test_domain, settings.embedding, bootstrap.resamples, bootstrap.seed
    )
    tables["cka"] = cka_table(
        means,
        found.domains,
        held_out,
        kernels=settings.cka.kernels,
        protocol=settings.cka.protocol,
        progress=True,
    )
    tables["maps"]["held_out"] = tables["maps"]["class_id"].isin(held_out)
    for name, table in tables.items():
        if name in ("maps", "top_dimensions"):
            with replacing(out / f"{name}.parquet") as temporary:
                table.to_parquet(temporary, compression="zstd", index=False)
        else:
            atomic_write_text(out / f"{name}.csv", _csv(table))
    print(tables["separation"].to_string(index=False))


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n", float_format="%.6f")


if __name__ == "__main__":
    main()
