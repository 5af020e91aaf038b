"""What all base sets share: images with free text and no label, and how their rows are counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pandas as pd

from clip_mixtures.archives import Member
from clip_mixtures.index import SCHEMA, Index, placed

DOMAIN = "base"


@dataclasses.dataclass(frozen=True)
class BaseIndex:
    """An indexed base set and what was left out of it; counted, never hidden.

    Attributes:
        index: the images that have a caption.
        left_out: reason, such as "without an image", to the number of entries; no zeros.
    """

    index: Index
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)


def base_frame(
    corpus: str,
    members: Sequence[Member],
    captions: Sequence[str],
    splits: Sequence[str],
    archive: str | None,
) -> pd.DataFrame:
    """Return index rows of a base set.

    Args:
        corpus: its name.
        members: the images, all of one archive or folder.
        captions: one an image.
        splits: "train" or "test", one an image.
        archive: the archive's path from the corpus root; None for files of their own.
    """
    count = len(members)
    frame = pd.DataFrame(
        {
            "path": pd.Series([member.name for member in members], dtype="str"),
            "corpus": pd.Series([corpus] * count, dtype="str"),
            "domain": pd.Series([DOMAIN] * count, dtype="str"),
            "class_id": pd.array([pd.NA] * count, dtype="Int32"),
            "class_name": pd.Series([None] * count, dtype="str"),
            "caption": pd.Series(captions, dtype="str"),
            "aligned_caption": pd.Series([None] * count, dtype="str"),
            "split": pd.Series(splits, dtype="str"),
            **placed(members, archive),
        }
    )
    return pd.DataFrame(frame[SCHEMA.names])


def left_out(**counts: int) -> dict[str, int]:
    """Return the reasons that occurred; underscores stand for spaces."""
    return {reason.replace("_", " "): count for reason, count in counts.items() if count}
