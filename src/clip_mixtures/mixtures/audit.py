"""Nothing that is tested as unseen may have been seen: the audit that every mixture passes.

Four things are looked for. *Held-out pairs*, a held-out class in the test domain, by the label in
the index and by the folders in the path, so that a wrong label cannot hide one. *Exact duplicates*,
training images with the very bytes of a test image. *Near duplicates* of held-out test images, by
perceptual hash. And *captions* of the base set that name a held-out class together with the test
domain. The first two are leaks; the others are for a person to look at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from clip_mixtures.corpora.captions import DOMAIN_TERMS
from clip_mixtures.errors import UserError
from clip_mixtures.index import Rows, read_index
from clip_mixtures.mixtures.spec import DOMAINS, Checks, Mixture
from clip_mixtures.verification import verification_of

# A report names this many of each kind; it counts them all.
_EXAMPLES = 100
_CAPTION_EXAMPLES = 3
_PAIRS_AT_ONCE = 1 << 24

Hashes = npt.NDArray[np.uint64]


def _pair_flags(chosen: pd.DataFrame, mixture: Mixture) -> tuple[pd.Series, pd.Series]:
    names = {name.lower() for name in mixture.held_out}
    by_label = (chosen["domain"] == mixture.test_domain) & (
        chosen["class_name"].str.lower().isin(names)
    )
    # A pattern over whole paths: splitting half a million of them takes seconds.
    folders = "|".join(re.escape(name).replace(r"\ ", "[ _]") for name in names)
    pattern = rf"(?:^|.*/){re.escape(mixture.test_domain)}/(?:{folders})/[^/]*"
    by_path = chosen["path"].str.fullmatch(pattern, case=False)
    return by_label, by_path


def _tests_unseen(mixture: Mixture) -> bool:
    return not mixture.include_test_classes and mixture.allow == 0


def audit(
    mixture: Mixture,
    indices: Mapping[str, Path],
    rows: Mapping[str, Rows],
    verification: Path | None = None,
    checks: Checks | None = None,
) -> dict[str, Any]:
    """Look for everything that a training set should not contain.

    Args:
        mixture: its definition.
        indices: index name to index file; "domains" is the one that is tested on.
        rows: index name to the training rows.
        verification: folder with ``<index name>.parquet``, what was found when every image was
            opened; without it no image is compared.
        checks: how strict.

    Returns:
        A report for JSON: counts and examples of every kind, and under "leaks" one line for each
        kind of leak; an empty list is a clean mixture.
    """
    checks = checks or Checks()
    frame = read_index(indices[DOMAINS], columns=["path", "domain", "class_name", "split"]).frame
    report: dict[str, Any] = {
        "mixture": mixture.key,
        "test_domain": mixture.test_domain,
        "held_out": list(mixture.held_out),
        "train_images": {name: len(chosen) for name, chosen in rows.items()},
        "held_out_pairs": _pairs_report(frame, rows[DOMAINS], mixture),
        "duplicates": _duplicates_report(frame, mixture, indices, rows, verification, checks),
        "captions": {
            name: _captions_report(path, rows[name], mixture)
            for name, path in indices.items()
            if name != DOMAINS and name in rows
        },
    }
    report["leaks"] = _leaks(report, mixture, checks)
    return report


def check_report(report: Mapping[str, Any]) -> None:
    """Refuse a mixture whose audit found a leak.

    Raises:
        UserError: naming the mixture and the first leak.
    """
    if report["leaks"]:
        raise UserError(f"mixtures.{report['mixture']}: {report['leaks'][0]}")


def _leaks(report: Mapping[str, Any], mixture: Mixture, checks: Checks) -> list[str]:
    leaks = []
    pairs = report["held_out_pairs"]
    if pairs["images"] and _tests_unseen(mixture):
        leaks.append(
            f"{pairs['images']} training images show a held-out class in test domain "
            f"{mixture.test_domain!r}, first {pairs['examples'][0]!r}; correct the corpus' lists"
        )
    duplicates = report["duplicates"]
    if checks.duplicates == "error" and duplicates["exact_held_out"]:
        first = duplicates["exact_held_out_examples"][0]
        leaks.append(
            f"{duplicates['exact_held_out']} training images have the bytes of held-out test "
            f"images, first {first['train']!r} of {first['test']!r}; say audit.duplicates: remove "
            "to leave them out, or report to keep them"
        )
    return leaks


def _pairs_report(frame: pd.DataFrame, rows: Rows, mixture: Mixture) -> dict[str, Any]:
    chosen = frame.iloc[rows]
    by_label, by_path = _pair_flags(chosen, mixture)
    found = chosen.loc[by_label | by_path, "path"]
    return {
        "images": len(found),
        "by_label": int(by_label.sum()),
        "by_path": int(by_path.sum()),
        "examples": [str(path) for path in found.iloc[:_EXAMPLES]],
    }


def duplicate_rows(
    mixture: Mixture,
    indices: Mapping[str, Path],
    rows: Mapping[str, Rows],
    verification: Path,
) -> dict[str, Rows]:
    """Return, for each index, the training rows with the bytes of a held-out test image."""
    frame = read_index(indices[DOMAINS], columns=["domain", "class_name", "split"]).frame
    tested = _held_out_test_rows(frame, mixture)
    wanted = set(verification_of(indices[DOMAINS], verification)["digest"].iloc[tested].dropna())
    found = {}
    for name, chosen in rows.items():
        digests = verification_of(indices[name], verification)["digest"].iloc[chosen]
        found[name] = chosen[digests.isin(wanted).to_numpy(dtype=bool)]
    return found


def _held_out_test_rows(frame: pd.DataFrame, mixture: Mixture) -> Rows:
    tested = (
        (frame["split"] == "test")
        & (frame["domain"] == mixture.test_domain)
        & frame["class_name"].isin(mixture.held_out)
    )
    return np.flatnonzero(tested.to_numpy(dtype=bool))


def _duplicates_report(
    frame: pd.DataFrame,
    mixture: Mixture,
    indices: Mapping[str, Path],
    rows: Mapping[str, Rows],
    verification: Path | None,
    checks: Checks,
) -> dict[str, Any]:
    if verification is None:
        return {"compared": False, "exact_held_out": 0, "exact_held_out_examples": []}
    tables = {
        name: verification_of(path, verification) for name, path in indices.items() if name in rows
    }
    domain_table = tables[DOMAINS]
    test_rows = np.flatnonzero((frame["split"] == "test").to_numpy(dtype=bool))
    held_out = _held_out_test_rows(frame, mixture)
    test_of = _first_by_digest(domain_table["digest"], test_rows)
    held_out_of = _first_by_digest(domain_table["digest"], held_out)
    exact: list[tuple[str, str]] = []
    exact_held_out: list[tuple[str, str]] = []
    near: list[tuple[int, str, str]] = []
    for name, chosen in rows.items():
        paths = read_index(indices[name], columns=["path"]).frame["path"]
        digests = tables[name]["digest"].iloc[chosen]
        for found, known in ((exact, test_of), (exact_held_out, held_out_of)):
            same = digests[digests.isin(known.keys())]
            found += [
                (paths.iloc[row], frame["path"].iloc[known[digest]])
                for row, digest in zip(same.index, same, strict=True)
            ]
        near += [
            (distance, paths.iloc[row], frame["path"].iloc[test])
            for distance, row, test in _near(
                tables[name], chosen, domain_table, held_out, checks.near_bits
            )
        ]
    # Images with the same bytes have the same hash; they are counted once, as exact.
    same_bytes = {train for train, _ in exact_held_out}
    near = sorted(pair for pair in near if pair[1] not in same_bytes)
    return {
        "compared": True,
        "exact": len(exact),
        "exact_examples": _examples(exact),
        "exact_held_out": len(exact_held_out),
        "exact_held_out_examples": _examples(exact_held_out),
        "near_bits": checks.near_bits,
        "near_held_out": len({train for _, train, _ in near}),
        "near_held_out_examples": [
            {"bits": bits, "train": train, "test": test} for bits, train, test in near[:_EXAMPLES]
        ],
    }


def _examples(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"train": train, "test": test} for train, test in sorted(pairs)[:_EXAMPLES]]


def _first_by_digest(digests: pd.Series, rows: Rows) -> dict[str, int]:
    chosen = digests.iloc[rows].dropna()
    chosen = chosen[~chosen.duplicated()]
    return dict(zip(chosen, chosen.index, strict=True))


def _near(
    table: pd.DataFrame, chosen: Rows, tested: pd.DataFrame, held_out: Rows, bits: int
) -> list[tuple[int, int, int]]:
    """Return (distance in bits, training row, nearest held-out test row) of near duplicates."""
    train = table["perceptual_hash"].iloc[chosen].dropna()
    test = tested["perceptual_hash"].iloc[held_out].dropna()
    if train.empty or test.empty:
        return []
    distances, nearest = nearest_hashes(
        train.to_numpy(dtype=np.uint64), test.to_numpy(dtype=np.uint64)
    )
    rows, tests = train.index.to_numpy(), test.index.to_numpy()
    return [
        (int(distances[place]), int(rows[place]), int(tests[nearest[place]]))
        for place in np.flatnonzero(distances <= bits)
    ]


def nearest_hashes(hashes: Hashes, among: Hashes) -> tuple[npt.NDArray[np.uint8], Rows]:
    """Find for each 64-bit hash the nearest of others.

    Args:
        hashes: (n,) uint64.
        among: (m,) uint64, at least one.

    Returns:
        The number of differing bits (n,) uint8, and the position of the nearest (n,) int64, the
        first of several.
    """
    distances = np.empty(len(hashes), dtype=np.uint8)
    nearest = np.empty(len(hashes), dtype=np.int64)
    step = max(_PAIRS_AT_ONCE // len(among), 1)
    for start in range(0, len(hashes), step):
        part = slice(start, start + step)
        counts = np.bitwise_count(hashes[part, None] ^ among[None, :])
        nearest[part] = counts.argmin(axis=1)
        distances[part] = np.take_along_axis(counts, nearest[part, None], axis=1)[:, 0]
    return distances, nearest


def _captions_report(path: Path, rows: Rows, mixture: Mixture) -> dict[str, Any]:
    """Count the captions of a set that name a held-out class, and the test domain beside it."""
    frame = read_index(path, columns=["path", "caption"]).frame
    captions = pa.array(frame["caption"].iloc[rows])
    own_terms = DOMAIN_TERMS.get(mixture.test_domain, ())
    terms = tuple(dict.fromkeys((mixture.test_domain, *own_terms)))
    speaks_of_domain = _mentions(captions, terms)
    classes = {}
    for name in mixture.held_out:
        named = _mentions(captions, (name,))
        both = np.flatnonzero(named & speaks_of_domain)
        if named.any():
            classes[name] = {
                "captions": int(named.sum()),
                "with_the_domain": len(both),
                "examples": [
                    {"path": frame["path"].iloc[rows[place]], "caption": captions[place].as_py()}
                    for place in both[:_CAPTION_EXAMPLES]
                ],
            }
    return {"terms": list(terms), "classes": classes}


def _mentions(captions: pa.Array, names: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Mark the captions (n,) that contain one of some names as words, plurals included."""
    words = "|".join(r"[\s_-]+".join(map(re.escape, name.split())) for name in names)
    found = pc.match_substring_regex(captions, rf"(?i)\b(?:{words})(?:e?s)?\b")
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=bool)
