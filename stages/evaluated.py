"""What was found in the evaluation of a cell, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_mixtures.errors import UserError
from experiment import BUILD, Cell

# Images of held-out classes, with the answers of every run.
EXAMPLES = BUILD / "examples"
# What data.dvc pins, which no stage may depend on: recorded by one that depends on the data.
PINNED = "data.json"


def last_answers(cell: Cell, domain: str) -> pd.DataFrame:
    """Return what the last checkpoint of a cell answered on the test images of a domain.

    Returns:
        ``row`` (of the index), ``class_id`` and ``prediction``.

    Raises:
        UserError: when the cell is not evaluated.
    """
    path = existing(evaluation_of(cell) / "predictions-domains.parquet")
    last = pc.max(pq.read_table(path, columns=["epoch"])["epoch"]).as_py()
    of_domain = [("epoch", "==", last), ("domain", "==", domain)]
    table = pq.read_table(path, columns=["row", "class_id", "prediction"], filters=of_domain)
    frame: pd.DataFrame = table.to_pandas()
    return frame


def evaluation_of(cell: Cell) -> Path:
    """Return the folder of a cell's evaluation."""
    return BUILD / "evaluation" / cell.run


def training_of(cell: Cell) -> Path:
    """Return the folder with what its evaluation keeps of a cell's training."""
    return evaluation_of(cell) / "training"


def existing(path: Path) -> Path:
    """Return a file that is there.

    Raises:
        UserError: when it is not.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; `dvc repro` makes it (or leave its cell out of `run`)")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: when the file is missing.
    """
    value: dict[str, Any] = json.loads(existing(path).read_text(encoding="utf-8"))
    return value
