"""What is looked into, and how, as values; none of them needs torch to be read."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.integration import RULES
from clip_mixtures.mixtures.spec import PROTOCOLS
from clip_mixtures.settings import (
    BelowOne,
    NaturalInt,
    NotNegative,
    OneOf,
    Positive,
    PositiveInt,
    Range,
    Share,
    check_settings,
)

Protocol = Annotated[str, OneOf(PROTOCOLS)]

# relu: the published autoencoder; batch_topk: as many active units as a batch may have, not more.
SAE_KINDS = ("relu", "batch_topk")
KERNELS = ("linear", "rbf")
CIRCUIT_CLASSES = ("held_out", "all")
RULE_OF_PROTOCOL = "protocol"
FILLS = ("mean", "zero")
FEATURE_DTYPES = ("float16", "float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """How the embedding is mapped and measured.

    Attributes:
        per_domain: images of each domain on a map.
        neighbours: of an image that a map keeps near.
        min_dist: smallest distance of two images on a map.
        densmap: whether a map keeps the density, too.
        seed: of the draw of images and of the maps.
        purity_neighbours: nearest images whose domains and classes are counted.
    """

    per_domain: PositiveInt = 2000
    neighbours: Annotated[int, Range(2)] = 15
    min_dist: NotNegative = 0.1
    densmap: bool = True
    seed: NaturalInt = 42
    purity_neighbours: PositiveInt = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class CkaConfig:
    """How layers of two domains are compared.

    Attributes:
        kernels: some of :data:`KERNELS`.
        protocol: which classes a pair is compared on.
    """

    kernels: tuple[str, ...] = KERNELS
    protocol: Protocol = "corrected"

    def __post_init__(self) -> None:
        """Refuse values out of range with a UserError."""
        for kernel in self.kernels:
            OneOf(KERNELS).check(kernel, "mechanisms.cka.kernels")
        if not self.kernels or len(set(self.kernels)) < len(self.kernels):
            raise UserError(
                f"mechanisms.cka.kernels: is {list(self.kernels)}; allowed: "
                f"{' or '.join(KERNELS)} or both"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeConfig:
    """The recipe of a sparse autoencoder; values are checked where it is made.

    Attributes:
        epochs: passes over the features.
        batch_size: features a step; the last batch of an epoch may be short.
        learning_rate: of Adam, constant.
        l1: coefficient of the codes; 0 is usual for ``batch_topk``.
        expansion: units an input.
        kind: one of :data:`SAE_KINDS`.
        k: mean number of units an input may use; ``batch_topk`` only.
        protocol: of the initial weights.
        beta1: of Adam.
        beta2: of Adam.
        epsilon: of Adam.
        resample_every: steps after which units that never fired are made anew; 0 for never. The
            last such interval of a run is left to settle.
        resample_rows: features whose losses decide what they become.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: Positive
    l1: NotNegative
    expansion: PositiveInt = 4
    kind: Annotated[str, OneOf(SAE_KINDS)] = "relu"
    k: PositiveInt = 32
    protocol: Protocol = "corrected"
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999
    epsilon: Positive = 1e-8
    resample_every: NaturalInt = 0
    resample_rows: PositiveInt = 819_200

    def __post_init__(self) -> None:
        """Refuse values out of range with a UserError."""
        check_settings(self, "sae")

    def check_width(self, width: int) -> None:
        """Refuse more active units than there are for features of so many numbers.

        Raises:
            UserError: naming what is allowed.
        """
        units = self.expansion * width
        if self.kind == "batch_topk" and self.k > units:
            raise UserError(f"sae.k: is {self.k}; allowed: 1 to the number of units, {units}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Which features an autoencoder is trained on.

    Attributes:
        bases: whether the images of base sets are among them, as in the study, or the domains'
            alone.
        dtype: of the features on disk.
    """

    bases: bool = True
    dtype: Annotated[str, OneOf(FEATURE_DTYPES)] = "float16"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharingConfig:
    """How shared units are counted and named.

    Attributes:
        protocol: what counts as shared, and which domain's score is given.
        vocabulary: a file of words to name units by, one a line; ``classes`` for the names of the
            classes, ``none`` for no names.
    """

    protocol: Protocol = "corrected"
    vocabulary: str = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitsConfig:
    """How circuits are traced, compared and ablated.

    Attributes:
        classes: which classes; the held-out ones come first.
        most_classes: so many of them; 0 for all.
        images_per_class: at most, of each class in each domain: to trace on, and to ablate on.
        steps: of the integration.
        protocol: of the choice of images, attributions, graphs and their comparison.
        rule: of the integration; ``protocol`` for the one that belongs to the protocol.
        share: of a layer's units that make up its part of the circuit.
        edges_per_unit: edges into a unit from each layer before it.
        fill: what ablated units become.
        draws: random sets of units that are ablated beside a circuit.
        each_layer: whether layers are ablated one by one as well.
        seed: of the choice of images and of the random units.
    """

    classes: Annotated[str, OneOf(CIRCUIT_CLASSES)] = "held_out"
    most_classes: NaturalInt = 0
    images_per_class: PositiveInt = 50
    steps: PositiveInt = 10
    protocol: Protocol = "corrected"
    rule: Annotated[str, OneOf((RULE_OF_PROTOCOL, *RULES))] = RULE_OF_PROTOCOL
    share: Share = 0.1
    edges_per_unit: PositiveInt = 3
    fill: Annotated[str, OneOf(FILLS)] = "mean"
    draws: NaturalInt = 5
    each_layer: bool = False
    seed: NaturalInt = 42

    def __post_init__(self) -> None:
        """Refuse a rule that the protocol does not have."""
        if self.protocol == "published" and self.rule not in (RULE_OF_PROTOCOL, "left"):
            raise UserError(
                f"mechanisms.circuits.rule: is {self.rule!r}; protocol 'published' integrates by "
                "the left rule alone"
            )
