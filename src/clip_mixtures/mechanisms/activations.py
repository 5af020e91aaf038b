"""What one pass over the test images of a checkpoint leaves for the analyses, and its files.

*Features* are the embedding of every image. *Class means* are the mean activation of every class in
every domain, for every layer, averaged over positions first (paper, section 6: CKA).

A folder holds ``features.npy``, ``images.parquet``, ``class_means.safetensors`` and
``activations.json``, which is written last.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import load_file, save_file

from clip_mixtures.errors import UserError, unknown
from clip_mixtures.files import atomic_write_json, read_text, replacing

FACTS = "activations.json"
_FEATURES, _IMAGES, _MEANS = "features.npy", "images.parquet", "class_means.safetensors"

FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Features:
    """Embeddings of images.

    Attributes:
        features: (N, D) float32, as the network gives them, not normalised.
        images: N rows with ``row`` (of the index), ``domain`` and ``class_id``.
    """

    features: FloatArray
    images: pd.DataFrame

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, in order of first appearance."""
        return tuple(str(name) for name in self.images["domain"].unique())


@dataclasses.dataclass(frozen=True)
class Activations:
    """Embeddings of images and class means of layers.

    Attributes:
        features: (N, D) float32, as the network gives them, not normalised.
        images: N rows with ``row`` (of the index), ``domain`` and ``class_id``.
        domains: names along the first axis of the means.
        class_means: layer, in network order, to (domains, classes, channels) float32; NaN where a
            domain has no images of a class.
        epoch: of the checkpoint.
    """

    features: FloatArray
    images: pd.DataFrame
    domains: tuple[str, ...]
    class_means: dict[str, FloatArray]
    epoch: int

    def means_of(self, layers: Sequence[str] | None) -> dict[str, FloatArray]:
        """Return the class means of some layers, in network order; of all if it is None.

        Raises:
            UserError: for a layer that the network does not have.
        """
        for name in layers or ():
            if name not in self.class_means:
                raise unknown("layer", name, self.class_means, "mechanisms.cka.layers")
        means = self.class_means.items()
        return {name: found for name, found in means if layers is None or name in layers}


def write_activations(folder: Path, activations: Activations) -> None:
    """Write a folder of activations; it is whole when its facts are there."""
    (folder / FACTS).unlink(missing_ok=True)
    with replacing(folder / _FEATURES) as temporary, open(temporary, "wb") as file:
        np.save(file, activations.features, allow_pickle=False)
    with replacing(folder / _IMAGES) as temporary:
        activations.images.to_parquet(temporary, compression="zstd", index=False)
    with replacing(folder / _MEANS) as temporary:
        save_file(activations.class_means, temporary)
    facts = {
        "epoch": activations.epoch,
        "images": len(activations.images),
        "domains": list(activations.domains),
        # The file keeps its arrays by name; their order is the network's.
        "layers": list(activations.class_means),
    }
    atomic_write_json(folder / FACTS, facts)


def read_activations(folder: Path) -> Activations:
    """Read a folder of activations; features are mapped, not read.

    Raises:
        UserError: when it is absent, incomplete or damaged.
    """
    known = read_features(folder)
    path = folder / FACTS
    if not path.is_file():
        raise UserError(f"{path}: absent; `dvc repro` makes it (stage activations)")
    try:
        facts: Mapping[str, Any] = json.loads(read_text(path))
        features, images = known.features, known.images
        means = load_file(folder / _MEANS)
        found = Activations(
            features=features,
            images=images,
            domains=tuple(facts["domains"]),
            class_means={name: means[name] for name in facts["layers"]},
            epoch=int(facts["epoch"]),
        )
    # A damaged file makes each of the readers raise errors of its own.
    except Exception as error:
        raise UserError(f"{folder}: not whole ({error}); delete it and `dvc repro`") from error
    if len(images) != facts["images"]:
        raise UserError(
            f"{folder}: {len(images)} images, not {facts['images']}; delete it and `dvc repro`"
        )
    return found


def read_features(folder: Path) -> Features:
    """Read what a folder of activations has of the embedding alone; features are mapped, not read.

    Raises:
        UserError: when it is absent, incomplete or damaged.
    """
    path = folder / _FEATURES
    if not path.is_file():
        raise UserError(f"{path}: absent; `dvc repro` makes it (stage activations)")
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
        images = pd.read_parquet(folder / _IMAGES)
    # As above.
    except Exception as error:
        raise UserError(f"{folder}: not whole ({error}); delete it and `dvc repro`") from error
    if len(features) != len(images):
        raise UserError(
            f"{folder}: {len(features)} features of {len(images)} images; delete it and `dvc repro`"
        )
    return Features(features, images)
