"""Write a mixture as the published two-column text, for tools that want one.

The first line is ``filepath<TAB>title``, then one line an image: its path and its caption. A field
with a tab, a quote or a line break in it is quoted, quotes doubled, so that readers of quoted text
(pandas, the csv module, open_clip's) see as many rows as there are; the published DomainNet
captions have no such characters and come out byte for byte. One thing no file can mend: pandas
reads captions such as "NA" or "None" as missing unless told ``keep_default_na=False``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from clip_mixtures.errors import unknown
from clip_mixtures.files import replacing
from clip_mixtures.index import read_chunks
from clip_mixtures.mixtures.captions import COLUMNS, captions_of
from clip_mixtures.mixtures.store import StoredMixture

HEADER = "filepath\ttitle\n"
_SPECIAL = r'[\t\n\r"]'


def export(
    stored: StoredMixture,
    split: str,
    out: Path,
    roots: Mapping[str, str] | None = None,
    progress: str | None = None,
) -> int:
    """Write one split of a mixture as published text, a chunk of rows at a time.

    Args:
        stored: the mixture.
        split: "train" or "val".
        out: the file, replaced when it is whole.
        roots: index name to what its paths begin with; "" stands for every index not named.
            Without, paths are relative to the corpus root.
        progress: label of the progress bar; no bar if None.

    Returns:
        The number of rows.

    Raises:
        UserError: for an unknown split or index name.
    """
    if split not in ("train", "val"):
        raise unknown("split", split, ("train", "val"), "split")
    rows = stored.rows("train" if split == "train" else "validation")
    prefixes = {name: _prefix(roots or {}, name) for name in rows}
    for name in roots or {}:
        if name and name not in stored.indices:
            raise unknown("index", name, stored.indices, "root")
    total = sum(map(len, rows.values()))
    written = 0
    with (
        replacing(out) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
        tqdm(total=total, desc=progress, unit="row", disable=progress is None) as bar,
    ):
        file.write(HEADER)
        for name, numbers in rows.items():
            for frame in read_chunks(stored.indices[name], numbers, COLUMNS):
                captions = captions_of(name, frame, stored.mixture)
                file.write(_lines(prefixes[name] + frame["path"], pd.Series(captions, dtype="str")))
                written += len(captions)
                bar.update(len(captions))
        if written != total:
            raise AssertionError(f"{out}: {written} rows of {total} were written")
    return written


def _prefix(roots: Mapping[str, str], name: str) -> str:
    root = roots.get(name, roots.get("", ""))
    return root if not root or root.endswith("/") else f"{root}/"


def _lines(paths: pd.Series, captions: pd.Series) -> str:
    both = _quoted(paths) + "\t" + _quoted(captions.set_axis(paths.index))
    return "".join(line + "\n" for line in both)


def _quoted(texts: pd.Series) -> pd.Series:
    special = texts.str.contains(_SPECIAL)
    if not special.any():
        return texts
    return texts.where(~special, '"' + texts.str.replace('"', '""') + '"')
