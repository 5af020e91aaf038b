"""Trace the circuits of a cell class by class, compare them between domains, and ablate them.

python stages/circuits.py --mixture cg-low --model sample-rn --seed 0

Classes that are done are kept in the scratch folder, so a run that is killed goes on with the next
one. MEMORY_MIB in the environment bounds what is held at a time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file
from tqdm import tqdm

from clip_mixtures.environment import MEMORY_MIB, number_of
from clip_mixtures.errors import reports_user_errors
from clip_mixtures.evaluation.predictions import evaluation_set
from clip_mixtures.evaluation.zero_shot import prompt_templates, text_classifier
from clip_mixtures.files import atomic_write_json, replacing, sha256_file
from clip_mixtures.index import read_index
from clip_mixtures.mechanisms.ablation import mean_activations
from clip_mixtures.mechanisms.checkpoint import Checkpoint
from clip_mixtures.mechanisms.circuit_tables import compare_circuits
from clip_mixtures.mechanisms.circuits import MEMORY_BYTES
from clip_mixtures.mechanisms.class_circuits import (
    ClassCircuits,
    ClassImages,
    channels_of,
    classes_to_trace,
    node_arrays,
    once,
    trace_class,
)
from clip_mixtures.mechanisms.completeness import completeness_quartiles
from clip_mixtures.mechanisms.config import CircuitsConfig
from clip_mixtures.mixtures.spec import DOMAINS
from clip_mixtures.mixtures.store import definition_of
from clip_mixtures.scratch import exclusive
from clip_mixtures.training.checkpoints import list_checkpoints
from clip_mixtures.training.data import fingerprint
from experiment import (
    BUILD,
    FACTS,
    INDEX,
    MECHANISMS,
    VERIFICATION,
    Cell,
    Experiment,
    cell_of_arguments,
    load_experiment,
    scratch_root,
)
from looked_into import checkpoint_of, code_version
from mechanism_params import check_traceable, load_mechanisms
from steady import steady
from timed import timed

DOMAIN_INDEX = INDEX / "domains.parquet"
# Tables that are kept: what was found of each class, and the comparison.
KEPT = ("units", "edges", "completeness", "node_similarity", "graph_similarity", "ablation")
# Images over which the activations are averaged that ablated units get.
REFERENCE = 256
# Images of the first class in each domain for the figure, and their side in pixels.
EXAMPLES, THUMBNAIL = 4, 64


@reports_user_errors
@steady
@timed
def main() -> None:
    """Write build/mechanisms/circuits/<run>/: circuits, their comparison, ablations, examples."""
    cell = cell_of_arguments(__doc__)
    index = read_index(DOMAIN_INDEX)
    class_names = index.class_names()
    experiment = load_experiment(class_names=class_names)
    check_traceable(experiment, cell.model, "--model")
    config = load_mechanisms(experiment).circuits
    mixture = definition_of(BUILD / "mixtures" / cell.mixture)
    held_out = [class_names.index(name) for name in mixture.held_out]
    images = ClassImages(
        evaluation_set(DOMAINS, DOMAIN_INDEX, VERIFICATION),
        config.images_per_class,
        config.seed,
        config.protocol,
    )
    scratch = _scratch(experiment, cell, config)
    with exclusive(scratch):
        checkpoint = checkpoint_of(experiment, cell, len(class_names))
        texts = _texts(experiment, checkpoint, class_names)
        fills = None
        if config.fill == "mean":
            reference = images.reference(REFERENCE, checkpoint)
            fills = mean_activations(checkpoint.tower, reference.split(64))
        traced: dict[int, ClassCircuits] = {}
        classes = classes_to_trace(config, held_out, len(class_names))
        for label in tqdm(classes, desc="tracing circuits", unit="class"):

            def trace(label: int = label) -> ClassCircuits:
                pixels, others = (
                    images.of_class(label, index.domains(), checkpoint, others=others)
                    for others in (False, True)
                )
                return trace_class(
                    checkpoint.tower, texts, pixels, label, config, others, fills, _memory()
                )

            traced[label] = once(scratch / f"class-{label}", trace)
        tables = {
            name: pd.concat(
                [getattr(found, name).assign(class_id=label) for label, found in traced.items()],
                ignore_index=True,
            )
            for name in ("units", "edges", "completeness", "effects")
        }
        tables |= compare_circuits(
            tables["units"],
            tables["edges"],
            tables["effects"],
            channels_of(traced[classes[0]]),
            held_out,
            protocol=config.protocol,
            resamples=experiment.evaluate.resamples,
            seed=experiment.evaluate.seed,
        )
        out = MECHANISMS / "circuits" / cell.run
        for name in KEPT:
            with replacing(out / f"{name}.parquet") as temporary:
                tables[name].to_parquet(temporary, compression="zstd", index=False)
        with replacing(out / "nodes.safetensors") as temporary:
            save_file({"classes": np.array(classes), **node_arrays(traced)}, temporary)
        with replacing(out / "examples.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                class_name=class_names[classes[0]],
                domains=index.domains(),
                images=images.thumbnails(classes[0], index.domains(), EXAMPLES, THUMBNAIL),
            )
        error = completeness_quartiles(tables["completeness"])["estimate"]
        facts = {"classes": [class_names[label] for label in classes], "median_error": error}
        atomic_write_json(out / FACTS, facts)
        # The classes stay until DVC has it on record.
        atomic_write_json(scratch / FACTS, facts)
    print(
        f"{cell.run}: {len(classes)} classes, error of completeness {error:.1%}, median over "
        "layers but the last"
    )


def _scratch(experiment: Experiment, cell: Cell, config: CircuitsConfig) -> Path:
    """Return a folder that stands for everything that circuits follow from."""
    weights = list(list_checkpoints(BUILD / "runs" / cell.run / "checkpoints").values())[-1]
    files = (weights, DOMAIN_INDEX, VERIFICATION / DOMAIN_INDEX.name)
    texts = (experiment.evaluate.prompts, experiment.evaluate.protocol)
    made_from = fingerprint(*map(sha256_file, files), config, *texts, code_version())
    root = scratch_root() / "circuits"
    return root / f"{cell.run}-{made_from}"


def _texts(experiment: Experiment, checkpoint: Checkpoint, class_names: list[str]) -> torch.Tensor:
    """Return the embedding of every class, (C, D)."""
    settings = experiment.evaluate
    templates = prompt_templates(settings.prompts, settings.protocol)
    model = checkpoint.model
    found = text_classifier(model.network, model.tokenizer, class_names, templates)
    # Gradients flow past it, which tensors of inference mode do not allow.
    return found.clone()


def _memory() -> int:
    wanted = number_of(MEMORY_MIB)
    return MEMORY_BYTES if wanted is None else wanted << 20


if __name__ == "__main__":
    main()
