"""Nothing that is tested as unseen may have been seen: the check every mixture passes.

A held-out (class, test domain) pair is looked for twice, by the label in the index and by the
folders in the path, so that a wrong label cannot hide a leak.
"""

from __future__ import annotations

import pandas as pd

from clip_mixtures.errors import UserError
from clip_mixtures.mixtures.build import Rows
from clip_mixtures.mixtures.spec import Mixture


def held_out_leaks(frame: pd.DataFrame, rows: Rows, mixture: Mixture) -> list[str]:
    """Return the paths of chosen training images that show a held-out class in the test domain.

    Args:
        frame: rows of a domain index.
        rows: the chosen row numbers.
        mixture: what is held out, and where.
    """
    chosen = frame.iloc[rows]
    names = {name.lower() for name in mixture.held_out}
    by_label = (chosen["domain"] == mixture.test_domain) & (
        chosen["class_name"].str.lower().isin(names)
    )
    parts = chosen["path"].str.split("/")
    by_path = (parts.str[-3] == mixture.test_domain) & (
        parts.str[-2].str.replace("_", " ").str.lower().isin(names)
    )
    return [str(path) for path in chosen.loc[by_label | by_path, "path"]]


def check_held_out(frame: pd.DataFrame, rows: Rows, mixture: Mixture) -> None:
    """Refuse a training set that contains what it must hold out.

    Natural-only mixtures are checked as well: they never contain the test domain.

    Raises:
        UserError: naming the mixture, how many images leak and the first.
    """
    if mixture.include_test_classes or mixture.allow > 0:
        return
    leaks = held_out_leaks(frame, rows, mixture)
    if leaks:
        raise UserError(
            f"mixtures.{mixture.key}: {len(leaks)} training images show a held-out class in test "
            f"domain {mixture.test_domain!r}, first {leaks[0]!r}; correct the corpus' lists"
        )


def check_split(train: pd.DataFrame, test: pd.DataFrame) -> None:
    """Refuse an index whose training and test rows name the same file.

    Raises:
        UserError: naming the first file on both sides.
    """
    shared = sorted(set(train["path"]) & set(test["path"]))
    if shared:
        raise UserError(f"{len(shared)} images are in train and test lists, first {shared[0]!r}")
