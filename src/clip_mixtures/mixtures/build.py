"""Choose a mixture's rows by the published rule (paper section 3.2, appendix B).

All mixtures of a test domain but the natural-only one are cut to one size, that of its
low-diversity mixture, so that they differ in what they contain and not in how much.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from clip_mixtures.errors import UserError
from clip_mixtures.files import replacing
from clip_mixtures.mixtures.spec import NATURAL_DOMAIN, Mixture

# The published trimming goes round the domains in this order.
TRIM_ORDER = ("real", "quickdraw", "painting", "sketch", "infograph", "clipart")

Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class MixtureRows:
    """Row numbers of a domain index.

    Attributes:
        train: (n,) int64, in training order: domain, then class, then the lists' order.
        validation: (m,) int64, of the test lists; never subsampled.
    """

    train: Rows
    validation: Rows


def select_rows(frame: pd.DataFrame, mixture: Mixture) -> MixtureRows:
    """Choose the rows of a domain index that make a mixture.

    Args:
        frame: rows of a domain index (columns domain, class_name, split), numbered 0..n-1.
        mixture: what to choose.

    Raises:
        UserError: when there are fewer images than the low-diversity mixture has.
    """
    held_out = _is_held_out(frame, mixture)
    taken = frame["domain"].isin(mixture.domains).to_numpy()
    kept = taken & ~held_out if mixture.holds_out else taken
    in_train = (frame["split"] == "train").to_numpy()
    validation = np.flatnonzero(kept & ~in_train)
    pool = np.flatnonzero(kept & in_train)
    if not mixture.subsample:
        return MixtureRows(pool, validation)
    pair = frame["domain"].isin([NATURAL_DOMAIN, mixture.test_domain]).to_numpy()
    target = int((pair & in_train & ~held_out).sum())
    if target > len(pool):
        raise UserError(
            f"mixtures.{mixture.key}: {len(pool)} images in domains {', '.join(mixture.domains)}, "
            f"fewer than the {target} to cut to; add domains or say subsample: false"
        )
    protected = held_out if mixture.allow > 0 else np.zeros(len(frame), dtype=bool)
    return MixtureRows(_subsample(frame, pool, target, protected, mixture.allow), validation)


def _is_held_out(frame: pd.DataFrame, mixture: Mixture) -> npt.NDArray[np.bool_]:
    """Mark the rows that are a held-out class in the test domain."""
    pairs = (frame["domain"] == mixture.test_domain) & frame["class_name"].isin(mixture.held_out)
    return np.asarray(pairs.to_numpy(), dtype=bool)


def _subsample(
    frame: pd.DataFrame, pool: Rows, target: int, protected: npt.NDArray[np.bool_], allow: float
) -> Rows:
    """Keep the first share of every (domain, class), then trim class by class to ``target``.

    Protected rows (held-out pairs under ``allow``) keep their own share and are never trimmed.
    """
    share = target / len(pool)
    rows = frame.iloc[pool]
    groups: dict[tuple[str, str], Rows] = dict(
        rows.groupby(["domain", "class_name"], sort=False).indices  # type: ignore[arg-type]
    )
    counts = {key: len(members) for key, members in groups.items()}
    shielded = {key for key, members in groups.items() if protected[pool[members]].any()}
    quota = {key: math.ceil(allow * share * counts[key]) for key in shielded}
    rest = len(pool) - sum(counts[key] for key in shielded)
    free = target - sum(quota.values())
    if free > rest:
        raise UserError(
            f"{free} more images are needed than the held-out ones let back in, and there are only "
            f"{rest}; add domains to the mixture or say subsample: false"
        )
    free_share = free / rest if rest else 0.0
    quota |= {key: math.ceil(free_share * n) for key, n in counts.items() if key not in shielded}
    _trim(quota, shielded, target)
    chosen = [pool[np.sort(groups[key])[: quota[key]]] for key in groups]
    return np.asarray(np.concatenate(chosen), dtype=np.int64)


def _trim(quota: dict[tuple[str, str], int], shielded: set[tuple[str, str]], target: int) -> None:
    """Take one row from the end of each class, domain by domain, until ``target`` rows are left."""
    surplus = sum(quota.values()) - target
    domains = {domain for domain, _ in quota}
    order = [d for d in TRIM_ORDER if d in domains] + sorted(domains - set(TRIM_ORDER))
    while surplus > 0:
        before = surplus
        for domain in order:
            for key in quota:
                if surplus > 0 and key[0] == domain and key not in shielded and quota[key] > 0:
                    quota[key] -= 1
                    surplus -= 1
        if surplus == before:
            raise ValueError(f"{surplus} rows too many and none left to trim")


def count_table(frame: pd.DataFrame, rows: Rows, mixture: Mixture) -> pd.DataFrame:
    """Count a selection by domain and class group.

    Returns:
        Columns domain, group ("held_out" | "seen" by class name, in whatever domain), images,
        classes; domains in the corpus' order.
    """
    chosen = frame.iloc[rows]
    group = np.where(chosen["class_name"].isin(mixture.held_out), "held_out", "seen")
    table = chosen.assign(group=group).groupby(["domain", "group"], sort=False, observed=True)
    counts = table.agg(images=("class_name", "size"), classes=("class_name", "nunique"))
    return counts.reset_index()


def write_rows(path: Path, rows: Mapping[str, Rows]) -> None:
    """Write a selection as Parquet: columns index (whose rows) and row (int64), in order.

    Args:
        path: the file to write, atomically.
        rows: index name to chosen row numbers, in training order.
    """
    frame = pd.DataFrame(
        {
            "index": np.repeat(list(rows), [len(chosen) for chosen in rows.values()]),
            "row": np.concatenate(list(rows.values())).astype(np.int64),
        }
    )
    with replacing(path) as temporary:
        frame.to_parquet(temporary, compression="zstd", index=False)


def read_rows(path: Path) -> dict[str, Rows]:
    """Read a selection: index name to row numbers, both in the file's order.

    Raises:
        UserError: when the file is absent or no selection.
    """
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable mixture ({error}); build it first") from error
    if list(frame.columns) != ["index", "row"]:
        raise UserError(f"{path}: columns {list(frame.columns)} are not those of a mixture")
    names = [str(name) for name in frame["index"].unique()]
    return {
        name: frame.loc[frame["index"] == name, "row"].to_numpy(dtype=np.int64) for name in names
    }
