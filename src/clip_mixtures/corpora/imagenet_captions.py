"""A captioned base set in the form of ImageNet-Captions.

A JSON list with one object an image: ``filename``, ``title``, ``tags``, ``description``. The
images come as ImageNet's training set does, a tar with one tar a synset in it, or unpacked.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from clip_mixtures.archives import Member, list_files
from clip_mixtures.corpora.base import BaseIndex, base_frame, left_out
from clip_mixtures.errors import UserError
from clip_mixtures.files import read_text
from clip_mixtures.index import Index

CORPUS = "imagenet_captions"

# Without a split file, this share of the images, chosen by the hash of the file name, trains. It is
# the published share: 425.5 thousand of 463,622.
TRAIN_PER_MILLE = 918


# What counts as a line break, and as other white space, in the published captions.
_LINE_BREAKS = re.compile(r"(?:\r\n|[\n\v])+")
_OTHER_SPACE = re.compile(r"[^\S\n\v]+")
_ZERO_WIDTH = re.compile("[\u200b\u2060\ufeff]+")


def base_caption(entry: dict[str, Any]) -> str:
    """Join title, tags and description into one line (paper section 3.1).

    The parts that are not empty are joined by ``"; "``; zero-width spaces go, runs of line breaks
    and runs of other white space become one space each, as in the published captions. Half a
    surrogate pair, which JSON can hold, becomes a question mark.
    """
    tags = " ".join(str(tag) for tag in entry.get("tags") or [])
    parts = [str(entry.get("title") or ""), tags, str(entry.get("description") or "")]
    text = _ZERO_WIDTH.sub("", "; ".join(part for part in parts if part))
    line = _OTHER_SPACE.sub(" ", _LINE_BREAKS.sub("\n", text)).strip().replace("\n", " ")
    return line.encode("utf-8", errors="replace").decode("utf-8")


def default_split(filename: str) -> str:
    """Assign a file to "train" or "test" by the SHA-256 of its name."""
    digest = hashlib.sha256(filename.encode("utf-8", "surrogatepass")).digest()
    return "train" if int.from_bytes(digest[:8], "big") % 1000 < TRAIN_PER_MILLE else "test"


def index_imagenet_captions(
    captions: Path, images: Path | None, split: Path | None = None
) -> BaseIndex:
    """Index a captioned base set.

    Args:
        captions: the JSON list.
        images: the tar (of tars) or the folder with the images; its parent is the corpus root.
            None to index the captions alone, their paths ``<wnid>/<filename>``.
        split: JSON with the file names of each split under "train" and "val"; images that it does
            not name are left out. Without it :func:`default_split` decides.

    Raises:
        UserError: for an absent or damaged file, an entry without a file name, or when not one
            caption has an image.
    """
    entries = _read_entries(captions)
    named = _read_split(split) if split is not None else None
    places = _places(images) if images is not None else _places_by_synset(captions, entries)
    without_image = in_no_split = named_before = 0
    seen: set[str] = set()
    members, texts, splits = [], [], []
    for entry in entries:
        name = entry["filename"]
        part = default_split(name) if named is None else named.get(name)
        if name in seen:
            named_before += 1
        elif name not in places:
            without_image += 1
        elif part is None:
            in_no_split += 1
        else:
            seen.add(name)
            members.append(places[name])
            # An image whose entry has no text stays, as in the published set.
            texts.append(base_caption(entry))
            splits.append(part)
    if not members:
        raise UserError(
            f"{captions}: none of its {len(entries)} captions has an image in {images} and a place "
            "in a split"
        )
    archive = images.name if images is not None and images.is_file() else None
    root = images.parent if images is not None else captions.parent
    return BaseIndex(
        Index(base_frame(CORPUS, members, texts, splits, archive), root),
        left_out(without_image=without_image, in_no_split=in_no_split, named_before=named_before),
    )


def _read_split(path: Path) -> dict[str, str]:
    """Map file names to "train" or "test"."""
    try:
        lists = json.loads(read_text(path))
        train, validation = set(lists["train"]), set(lists["val"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a split file ({error!r}); it has lists of file names under train and val"
        ) from error
    if both := sorted(train & validation):
        raise UserError(f"{path}: {len(both)} files in both train and val, first {both[0]!r}")
    return dict.fromkeys(train, "train") | dict.fromkeys(validation, "test")


def _places_by_synset(captions: Path, entries: list[dict[str, Any]]) -> dict[str, Member]:
    for position, entry in enumerate(entries):
        if not isinstance(entry.get("wnid"), str):
            raise UserError(f"{captions}: entry {position} has no 'wnid', and no images are given")
    return {entry["filename"]: Member(f"{entry['wnid']}/{entry['filename']}") for entry in entries}


def _read_entries(captions: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(read_text(captions))
    except json.JSONDecodeError as error:
        raise UserError(f"{captions}: not valid JSON ({error})") from error
    if not isinstance(entries, list):
        raise UserError(f"{captions}: holds a {type(entries).__name__}, not a list of captions")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
            raise UserError(f"{captions}: entry {position} has no 'filename'")
        if not isinstance(entry.get("tags") or [], list):
            raise UserError(f"{captions}: entry {position}: 'tags' is not a list")
    return entries


def _places(images: Path) -> dict[str, Member]:
    """Map bare file names to where they lie, in an archive or a folder tree."""
    members = list_files(images)
    places: dict[str, Member] = {}
    for member in members:
        name = member.name.rsplit("/", 1)[-1]
        if name.startswith("."):
            continue
        if name in places:
            raise UserError(
                f"{images}: two images are named {name}, {places[name].name} and {member.name}; "
                "captions go by the name alone"
            )
        places[name] = member
    return places
