"""How well the effects of circuits add up, in a few numbers; no network is needed for it."""

from __future__ import annotations

import pandas as pd

# Which quantile of the errors each number is.
_QUANTILES = {"estimate": 0.5, "low": 0.25, "high": 0.75}


def completeness_quartiles(completeness: pd.DataFrame) -> dict[str, float]:
    """Return the median and the quartiles of the error of completeness, over layers and circuits.

    The last layer is left out: a cosine does not change along the feature's ray, so that effects
    sum to zero there and the error is 1 however well the rule integrates (:mod:`attribution`).

    Args:
        completeness: a row a layer of a circuit, its layers in network order: ``layer`` and
            ``error``, as of :class:`class_circuits.ClassCircuits`, of one network.

    Returns:
        ``estimate``, the median, and ``low`` and ``high``, the quartiles; fractions of the change
        that the effects should sum to.

    Raises:
        ValueError: fewer than two layers.
    """
    layers = completeness["layer"].unique()
    if len(layers) < 2:
        raise ValueError(
            f"errors of completeness of {len(layers)} layers; the last layer does not count, so "
            "give two or more"
        )
    errors = completeness.loc[completeness["layer"] != layers[-1], "error"]
    return {name: float(errors.quantile(share)) for name, share in _QUANTILES.items()}
