"""The curves that the training of a sparse autoencoder leaves, as a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from clip_mixtures.errors import UserError


def read_curves(folder: Path) -> pd.DataFrame:
    """Read the curves that :func:`sae_training.train_sae` left, a row a point.

    Args:
        folder: ``curves`` in the scratch folder of the run, or a copy of it.

    Returns:
        ``step`` (int64, rising) and a column for each metric, see :func:`sae_training.evaluate`;
        NaN in those of the validation where a point has none.

    Raises:
        UserError: when there are no curves, or a file is damaged.
    """
    paths = sorted((folder / "plots" / "metrics").glob("*.tsv"))
    if not paths:
        raise UserError(f"{folder}: no curves of a sparse autoencoder; train it first")
    columns = []
    for path in paths:
        try:
            points = pd.read_csv(path, sep="\t").astype({"step": np.int64, path.stem: np.float64})
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}: no curve ({error}); train again") from error
        columns.append(points.set_index("step")[path.stem])
    return pd.concat(columns, axis=1).sort_index().reset_index()
