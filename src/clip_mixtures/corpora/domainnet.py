"""DomainNet in its own download layout: ``<domain>.zip`` beside ``<domain>_{train,test}.txt``.

A list has one line an image, ``<domain>/<Class_name>/<file> <label>``. The images are read in
place from the zip; an unpacked ``<domain>/`` folder serves as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from clip_mixtures.archives import Member, list_files
from clip_mixtures.corpora.captions import (
    SPLIT_ORDER,
    Lists,
    caption_lists,
    class_name_of,
    ordered_domains,
)
from clip_mixtures.errors import UserError
from clip_mixtures.files import read_text
from clip_mixtures.index import SCHEMA, Index, placed

CORPUS = "domainnet"
# More would not fit the index, and no corpus has as many classes.
_LABEL_DIGITS = 9


def read_lists(root: Path, domains: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Read the split lists of ``domains``.

    Returns:
        (domain, "train" | "test") to lines, in published order.

    Raises:
        UserError: for an absent list or a line that is not ``<domain>/<class>/<file> <label>``.
    """
    lists: dict[tuple[str, str], list[str]] = {}
    for domain in ordered_domains(domains):
        for split in SPLIT_ORDER:
            path = root / f"{domain}_{split}.txt"
            if not path.is_file():
                found = sorted(file.name for file in root.glob("*_train.txt"))
                raise UserError(
                    f"{path}: no such list; domain {domain!r} is not in the corpus at {root} "
                    f"(lists found: {', '.join(found) or 'none'})"
                )
            text = read_text(path)
            # Not splitlines: it would also split at the rarer line ends that a name may contain.
            lines = text.removesuffix("\n").split("\n") if text else []
            for number, line in enumerate(lines, start=1):
                _check_line(path, number, line, domain)
            lists[domain, split] = lines
    return lists


def _check_line(path: Path, number: int, line: str, domain: str) -> None:
    name, _, label = line.rpartition(" ")
    if (
        not (label.isascii() and label.isdecimal() and len(label) <= _LABEL_DIGITS)
        or name.count("/") != 2
        or not name.startswith(f"{domain}/")
    ):
        raise UserError(f"{path}:{number}: {line[:80]!r} is not '{domain}/<class>/<file> <label>'")


def index_domainnet(root: Path, domains: Sequence[str], images: bool = True) -> Index:
    """Index the images of ``domains``, captioned as published.

    Args:
        root: the folder with the lists and archives.
        domains: which domains to take.
        images: find each image in its archive or folder; without, the lists alone are indexed.

    Raises:
        UserError: for an absent or damaged list or archive, an image that a list names and the
            archive lacks, or labels and class names that do not go one to one.
    """
    if not domains:
        raise UserError(f"{root}: no domains asked for")
    return index_lists(root, read_lists(root, domains), images)


def index_lists(root: Path, lists: Lists, images: bool = True) -> Index:
    """Index the images of lists; see :func:`index_domainnet`.

    Args:
        root: the folder with the archives.
        lists: (domain, "train" | "test") to checked lines.
        images: find each image in its archive or folder.
    """
    parts: dict[str, list[pd.DataFrame]] = {}
    captions = zip(caption_lists(lists), caption_lists(lists, aligned=True), strict=True)
    for (key, standard), (_, aligned) in captions:
        parts.setdefault(key[0], []).append(_list_frame(key, lists[key], standard, aligned))
    frames = [
        _with_places(root, domain, pd.concat(rows, ignore_index=True), images)
        for domain, rows in parts.items()
    ]
    frame = pd.concat(frames, ignore_index=True)
    _check_labels(root, frame)
    return Index(frame[SCHEMA.names], root)


def _check_labels(root: Path, frame: pd.DataFrame) -> None:
    """Refuse a label with two class names, and a class name with two labels."""
    for key, value in (("class_id", "class_name"), ("class_name", "class_id")):
        several = frame.groupby(key)[value].nunique() > 1
        if several.any():
            first = several.index[several][0]
            clash = ", ".join(map(str, frame.loc[frame[key] == first, value].unique()))
            if key == "class_id":
                raise UserError(f"{root}: label {first} stands for several classes: {clash}")
            raise UserError(f"{root}: class {first!r} has several labels: {clash}")


def _list_frame(
    key: tuple[str, str], lines: Sequence[str], standard: list[str], aligned: list[str]
) -> pd.DataFrame:
    domain, split = key
    pairs = [line.rsplit(" ", 1) for line in lines]
    paths = [path for path, _ in pairs]
    return pd.DataFrame(
        {
            "path": pd.Series(paths, dtype="str"),
            "corpus": CORPUS,
            "domain": domain,
            "class_id": pd.array([int(label) for _, label in pairs], dtype="Int32"),
            "class_name": pd.Series([class_name_of(path) for path in paths], dtype="str"),
            "caption": pd.Series(standard, dtype="str"),
            "aligned_caption": pd.Series(aligned, dtype="str"),
            "split": split,
        }
    )


def _with_places(root: Path, domain: str, frame: pd.DataFrame, images: bool) -> pd.DataFrame:
    """Add where the bytes of a domain's images are, in its zip or its folder."""
    paths = frame["path"]
    if not images:
        return frame.assign(**placed([Member("")] * len(frame), None))
    archive = root / f"{domain}.zip"
    source = archive if archive.is_file() else root / domain
    if not source.exists():
        raise UserError(
            f"{root}: neither {domain}.zip nor a folder {domain}/ is there; --no-images indexes "
            "the lists alone"
        )
    there = {member.name: member for member in list_files(source)}
    missing = sorted(path for path in paths if path not in there)
    if missing:
        raise UserError(
            f"{source}: {len(missing)} of {len(paths)} listed images are not in it, "
            f"first {missing[0]!r}; fetch or build the archive again"
        )
    members = [there[path] for path in paths]
    return frame.assign(**placed(members, archive.name if source is archive else None))
