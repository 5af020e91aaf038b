"""A corpus of your own: one folder or zip a domain, in it one folder a class, in it the images.

What DomainNet's downloads bring along, the lists of training and test images, is made here, so that
:func:`clip_mixtures.corpora.domainnet.index_lists` reads such a corpus as it reads DomainNet.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from clip_mixtures.archives import list_files
from clip_mixtures.corpora.captions import class_name_of, ordered_domains
from clip_mixtures.errors import UserError, unknown

# What lies beside images and is none.
_COMPANIONS = (".txt", ".json", ".csv", ".tsv", ".md", ".xml", ".html", ".mat", "thumbs.db")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def lists_from_folders(
    root: Path, domains: Sequence[str] | None = None, test_share: float = 0.3
) -> dict[tuple[str, str], list[str]]:
    """Make the split lists of a corpus laid out as ``<domain>/<class>/<image>``.

    Of a class in a domain, those images test whose paths have the smallest hashes: the share, to
    the nearest number, but of two images and more at least one tests and one trains. So an image
    that is added moves at most one other to the other side. Labels are the places of the class
    names in alphabetical order; a class name is its folder's with spaces for underscores.

    Args:
        root: the folder with the domains, each a folder or a zip ``<domain>.zip``, which goes first
            if both are there.
        domains: which to take; all of them, and at least two, if None.
        test_share: how much of the images is for testing, between 0 and 1.

    Returns:
        (domain, "train" | "test") to lines ``<domain>/<class>/<image> <label>``, by label, then by
        file name.

    Raises:
        UserError: for an unknown domain, one without images, an image at another depth or with a
            line break in its name, two folders that give one class name, or a share out of range.
    """
    if not 0 < test_share < 1:
        raise UserError(f"{root}: test_share is {test_share}; it lies between 0 and 1")
    chosen = _domains(root, domains)
    paths = {domain: _images(root, domain) for domain in chosen}
    labels = _labels(root, [path for of_domain in paths.values() for path in of_domain])
    lists: dict[tuple[str, str], list[str]] = {}
    for domain in chosen:
        ordered = sorted(paths[domain], key=lambda path: (labels[class_name_of(path)], path))
        test = _test_images(ordered, test_share)
        for split in ("train", "test"):
            lists[domain, split] = [
                f"{path} {labels[class_name_of(path)]}"
                for path in ordered
                if (path in test) == (split == "test")
            ]
    return lists


def _domains(root: Path, domains: Sequence[str] | None) -> list[str]:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    entries = [path for path in root.iterdir() if not _is_hidden(path.name)]
    there = {path.name for path in entries if path.is_dir()}
    there |= {path.stem for path in entries if path.is_file() and path.suffix == ".zip"}
    if domains is None:
        if len(there) < 2:
            raise UserError(
                f"{root}: holds {len(there)} domains ({', '.join(sorted(there)) or 'none'}); a "
                "corpus has two or more, each a folder or a .zip"
            )
        return ordered_domains(sorted(there))
    if not domains:
        raise UserError(f"{root}: no domains asked for")
    for domain in domains:
        if domain not in there:
            raise unknown("domain", domain, sorted(there), str(root))
    return ordered_domains(domains)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _images(root: Path, domain: str) -> list[str]:
    """Return the paths of a domain's images."""
    archive = root / f"{domain}.zip"
    source = archive if archive.is_file() else root / domain
    paths = []
    for member in list_files(source):
        parts = member.name.split("/")
        name = parts[-1].lower()
        if any(map(_is_hidden, parts)) or name.endswith(_COMPANIONS) or "." not in name:
            continue
        if not name.endswith(IMAGE_ENDINGS):
            raise UserError(
                f"{source}: {member.name!r} has none of the endings of images "
                f"({' '.join(IMAGE_ENDINGS)}); convert it or take it away"
            )
        if len(parts) != 3 or parts[0] != domain:
            raise UserError(f"{source}: {member.name!r} is not at '{domain}/<class>/<image>'")
        if "\n" in member.name:
            raise UserError(
                f"{source}: {member.name!r} has a line break in its name, and lists have one line "
                "an image; rename it"
            )
        paths.append(member.name)
    if not paths:
        raise UserError(f"{source}: holds no images ({' '.join(IMAGE_ENDINGS)})")
    return paths


def _labels(root: Path, paths: Iterable[str]) -> dict[str, int]:
    """Return the label of each class name."""
    folders: dict[str, str] = {}
    for path in paths:
        folder, name = path.split("/")[-2], class_name_of(path)
        if folders.setdefault(name, folder) != folder:
            raise UserError(
                f"{root}: the folders {folders[name]!r} and {folder!r} both give the class name "
                f"{name!r}; rename one of them"
            )
    return {name: label for label, name in enumerate(sorted(folders))}


def _test_images(paths: Sequence[str], share: float) -> set[str]:
    """Return those of a domain's images that are for testing."""
    classes: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for path in paths:
        classes[class_name_of(path)][path] = _hash(path)
    test: set[str] = set()
    for hashes in classes.values():
        wanted = math.floor(share * len(hashes) + 0.5)
        count = min(max(wanted, 1), len(hashes) - 1) if len(hashes) > 1 else wanted
        test |= set(sorted(hashes, key=lambda path: hashes[path])[:count])
    return test


def _hash(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")
