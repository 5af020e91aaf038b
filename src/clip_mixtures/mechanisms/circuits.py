"""Circuits of a class: which neurons matter to its score, and which neurons feed them.

``node_attributions`` gives the effect of every neuron on the cosine between an image's feature and
the embedding of its class, ``top_units`` selects the strongest tenth of every submodule, and
``edge_attributions`` gives the strength of the connections between the selected neurons of
neighbouring submodules. How they are defined and computed is said where they live:
:mod:`attribution`, :mod:`edges`. For example::

    effects = node_attributions(model.visual, text_features, images, label)
    units = top_units(effects)
    edges = edge_attributions(model.visual, text_features, images, label, units=units)
    edges["resblock8", "resblock9"]  # (103, 103) in a ResNet-50

Single precision is enough and half precision is not: without loss scaling its gradients vanish in
early layers (docs/benchmarks.md). On CUDA, torch rounds the inputs of convolutions to TF32 unless
``torch.backends.cudnn.allow_tf32`` is False, which is the caller's to set.

Source: the study, section 6 (circuits).
"""

from clip_mixtures.mechanisms.attribution import (
    NodeAttributions,
    attribute_nodes,
    node_attributions,
    top_units,
)
from clip_mixtures.mechanisms.edges import Pair, edge_attributions
from clip_mixtures.mechanisms.graph_memory import MEMORY_BYTES
from clip_mixtures.mechanisms.integration import PROTOCOLS, RULES, Path, integration_path

__all__ = [
    "MEMORY_BYTES",
    "PROTOCOLS",
    "RULES",
    "NodeAttributions",
    "Pair",
    "Path",
    "attribute_nodes",
    "edge_attributions",
    "integration_path",
    "node_attributions",
    "top_units",
]
