"""DomainNet in its own download layout: ``<domain>.zip`` beside ``<domain>_{train,test}.txt``.

A list has one line an image, ``<domain>/<Class_name>/<file> <label>``. The images are read in
place from the zip; an unpacked ``<domain>/`` folder serves as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from clip_mixtures.archives import Member, list_members
from clip_mixtures.corpora.captions import (
    SPLIT_ORDER,
    class_name_of,
    ordered_domains,
    published_captions,
)
from clip_mixtures.errors import UserError
from clip_mixtures.files import read_text
from clip_mixtures.index import SCHEMA, Index, nullable_integers

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
    lists = read_lists(root, domains)
    standard = published_captions(lists)
    aligned = published_captions(lists, aligned=True)
    parts = [
        _list_frame(domain, split, lines, standard[domain, split], aligned[domain, split])
        for (domain, split), lines in lists.items()
    ]
    frame = pd.concat(parts, ignore_index=True)
    _check_labels(root, frame)
    places = _locate(root, ordered_domains(domains), frame["path"]) if images else {}
    return Index(_with_places(frame, places), root)


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
    domain: str, split: str, lines: Sequence[str], standard: list[str], aligned: list[str]
) -> pd.DataFrame:
    paths = [line.rsplit(" ", 1)[0] for line in lines]
    return pd.DataFrame(
        {
            "path": paths,
            "corpus": CORPUS,
            "domain": domain,
            "class_id": pd.array([int(line.rsplit(" ", 1)[1]) for line in lines], dtype="Int32"),
            "class_name": [class_name_of(path) for path in paths],
            "caption": standard,
            "aligned_caption": aligned,
            "split": split,
        }
    )


def _locate(root: Path, domains: Sequence[str], paths: pd.Series) -> dict[str, tuple[str, Member]]:
    """Map the paths that lie in a domain's zip to the archive's name and their place in it."""
    places: dict[str, tuple[str, Member]] = {}
    for domain in domains:
        wanted = {path for path in paths if path.startswith(f"{domain}/")}
        archive = root / f"{domain}.zip"
        if archive.is_file():
            members = {member.name: member for member in list_members(archive)}
            missing = sorted(wanted - members.keys())
            places |= {path: (archive.name, members[path]) for path in wanted & members.keys()}
        elif (root / domain).is_dir():
            archive = root / domain
            missing = sorted(path for path in wanted if not (root / path).is_file())
        else:
            raise UserError(f"{root}: neither {domain}.zip nor a folder {domain}/ is there")
        if missing:
            raise UserError(
                f"{archive}: {len(missing)} of {len(wanted)} listed images are not in it, "
                f"first {missing[0]!r}; fetch or build the archive again"
            )
    return places


def _with_places(frame: pd.DataFrame, places: dict[str, tuple[str, Member]]) -> pd.DataFrame:
    # An image that is a file of its own has no place in an archive.
    found = [places.get(path, (None, None)) for path in frame["path"]]
    placed = frame.assign(
        archive=pd.Series([archive for archive, _ in found], dtype=object),
        offset=nullable_integers([member.offset if member else None for _, member in found]),
        length=nullable_integers([member.length if member else None for _, member in found]),
        compression=pd.Series(
            [member.compression if member else None for _, member in found], dtype=object
        ),
    )
    return pd.DataFrame(placed[SCHEMA.names])
