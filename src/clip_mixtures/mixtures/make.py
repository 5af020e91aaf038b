"""Make a mixture from a folder of indices: choose its rows, audit them, count them, store them.

The folder holds ``domains.parquet``, one ``base-<name>.parquet`` for each base set, and
``imagenet_sketch.parquet`` where there is one. The base set's rows come first, then the domains',
then those of ImageNet-Sketch, as in the published files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clip_mixtures.corpora.captions import DOMAIN_ORDER
from clip_mixtures.corpora.imagenet_sketch import without_counterpart
from clip_mixtures.corpora.sources import NO_BASE
from clip_mixtures.errors import UserError, unknown
from clip_mixtures.files import atomic_write_json, atomic_write_text
from clip_mixtures.index import BASE_PREFIX, Index, Rows, base_sets, read_index
from clip_mixtures.mixtures.audit import (
    audit,
    check_report,
    duplicate_rows,
)
from clip_mixtures.mixtures.build import count_table, select_rows
from clip_mixtures.mixtures.published import identifier_of
from clip_mixtures.mixtures.sketches import exchange
from clip_mixtures.mixtures.spec import DOMAINS, SKETCHES, Checks, Mixture
from clip_mixtures.mixtures.store import FACTS, write_mixture
from clip_mixtures.verification import verification_of

COUNTS = "counts.csv"
AUDIT = "audit.json"
_BASE_SPLITS = {"train": "train", "validation": "test"}


@dataclasses.dataclass(frozen=True)
class Made:
    """What was made of a mixture.

    Attributes:
        counts: of the training rows, by domain and class group; see :func:`build.count_table`.
        audit: the audit's report.
        dropped: reason to number of rows left out after the choice.
    """

    counts: pd.DataFrame
    audit: dict[str, Any]
    dropped: dict[str, int]


def make_mixture(
    index_folder: Path,
    mixture: Mixture,
    out: Path,
    verification: Path | None = None,
    checks: Checks | None = None,
) -> Made:
    """Make a mixture and write its folder.

    Args:
        index_folder: the indices.
        mixture: what to make.
        out: its folder: rows, ``mixture.json``, ``counts.csv`` and ``audit.json``.
        verification: folder with what was found when every image was opened. Rows of images that
            cannot be read are then left out, and duplicates looked for.
        checks: how strict the audit is.

    Raises:
        UserError: when an index is missing, there are too few images, or the audit finds a leak
            (``audit.json`` is written first).
    """
    checks = checks or Checks()
    if checks.duplicates == "remove" and verification is None:
        raise UserError(
            "audit.duplicates: remove needs to know the images; verify them first, and say where "
            "with --verification"
        )
    # What is not made in the end must not look like what was made before.
    (out / FACTS).unlink(missing_ok=True)
    columns = ["path", "domain", "class_name", "split"]
    frame = read_index(index_folder / f"{DOMAINS}.parquet", columns=columns).frame
    indices, splits = _choose(index_folder, frame, mixture)
    dropped: dict[str, int] = {}
    if verification is not None:
        splits, unreadable = _without_unreadable(indices, splits, verification)
        dropped |= unreadable
        if checks.duplicates == "remove":
            twins = duplicate_rows(mixture, indices, splits["train"], verification)
            splits["train"] = {
                name: rows[~np.isin(rows, twins[name])] for name, rows in splits["train"].items()
            }
            count = sum(map(len, twins.values()))
            dropped |= {"duplicates of held-out test images": count} if count else {}
    report = audit(mixture, indices, splits["train"], verification, checks)
    report["dropped"] = dropped
    atomic_write_json(out / AUDIT, report)
    check_report(report)
    counts = _counts(frame, mixture, splits["train"])
    atomic_write_text(out / COUNTS, counts.to_csv(index=False, lineterminator="\n"))
    facts = {"identifier": _identifier(mixture, frame), "dropped": dropped}
    write_mixture(out, mixture, splits, indices, facts)
    return Made(counts, report, dropped)


def _choose(
    index_folder: Path, frame: pd.DataFrame, mixture: Mixture
) -> tuple[dict[str, Path], dict[str, dict[str, Rows]]]:
    """Return the indices of a mixture and, for each split, its rows of them."""
    indices: dict[str, Path] = {}
    splits: dict[str, dict[str, Rows]] = {"train": {}, "validation": {}}
    base = _base_of(index_folder, mixture)
    if base is not None:
        indices[base.stem] = base
        of_base = read_index(base, columns=["split"]).frame["split"]
        for split, name in _BASE_SPLITS.items():
            splits[split][base.stem] = np.flatnonzero((of_base == name).to_numpy(dtype=bool))
    indices[DOMAINS] = index_folder / f"{DOMAINS}.parquet"
    chosen = select_rows(frame, mixture)
    splits["train"][DOMAINS], splits["validation"][DOMAINS] = chosen.train, chosen.validation
    if mixture.takes_sketches:
        path = index_folder / f"{SKETCHES}.parquet"
        if not path.is_file():
            raise UserError(
                f"{path}: absent, and mixtures.{mixture.key} takes ImageNet-Sketch; index it first"
            )
        indices[SKETCHES] = path
        added = np.flatnonzero(_fitting(read_index(path), mixture))
        train = splits["train"]
        train[DOMAINS], train[SKETCHES] = exchange(frame, chosen.train, mixture, added)
    return indices, splits


def _fitting(sketches: Index, mixture: Mixture) -> npt.NDArray[np.bool_]:
    """Tell which sketches of ImageNet a mixture may take, (N,)."""
    fitting = without_counterpart(sketches, mixture.protocol)
    if mixture.include_test_classes or mixture.allow:
        return fitting
    # Classes of domains other than DomainNet's have counterparts that the filter does not know.
    held_out = {name.lower() for name in mixture.held_out}
    return fitting & ~sketches.frame["class_name"].str.lower().isin(held_out).to_numpy(dtype=bool)


def _base_of(index_folder: Path, mixture: Mixture) -> Path | None:
    """Return the index of a mixture's base set; None for none."""
    there = base_sets(index_folder)
    if mixture.base == NO_BASE or (mixture.base is None and not there):
        return None
    if mixture.base is None:
        if len(there) > 1:
            raise UserError(
                f"mixtures.{mixture.key}: there are several base sets ({', '.join(there)}); say "
                "which with `base`"
            )
        return next(iter(there.values()))
    if mixture.base not in there:
        raise unknown("base set", mixture.base, [*there, NO_BASE], f"mixtures.{mixture.key}.base")
    return there[mixture.base]


def _without_unreadable(
    indices: Mapping[str, Path], splits: Mapping[str, Mapping[str, Rows]], verification: Path
) -> tuple[dict[str, dict[str, Rows]], dict[str, int]]:
    """Leave out rows whose image cannot be read, and count them."""
    kept: dict[str, dict[str, Rows]] = {split: {} for split in splits}
    dropped = dict.fromkeys(splits, 0)
    for name, path in indices.items():
        table = verification_of(path, verification)
        readable = table["readable"].to_numpy(dtype=bool)
        for split, rows in splits.items():
            if name in rows:
                kept[split][name] = rows[name][readable[rows[name]]]
                dropped[split] += len(rows[name]) - len(kept[split][name])
    names = {"train": "unreadable", "validation": "unreadable, of the validation set"}
    return kept, {names[split]: count for split, count in dropped.items() if count}


def _counts(frame: pd.DataFrame, mixture: Mixture, train: Mapping[str, Rows]) -> pd.DataFrame:
    """Count the training rows: those of the base set, of the domains, of ImageNet-Sketch."""
    tables = []
    for name, rows in train.items():
        if name == DOMAINS:
            tables.append(count_table(frame, rows, mixture))
        else:
            is_base = name.startswith(BASE_PREFIX)
            what = {"domain": "base" if is_base else name, "group": "base" if is_base else "seen"}
            row = {**what, "images": len(rows), "classes": 0}
            tables.append(pd.DataFrame([row]))
    return pd.concat(tables, ignore_index=True)


def _identifier(mixture: Mixture, frame: pd.DataFrame) -> str | None:
    """Return the published name of a mixture, if it has one; its captions depend on all domains."""
    if set(frame["domain"].unique()) != set(DOMAIN_ORDER):
        return None
    try:
        return identifier_of(mixture)
    except UserError:
        return None
