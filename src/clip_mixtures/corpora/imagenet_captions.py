"""A captioned base set in the form of ImageNet-Captions.

A JSON list with one object an image: ``filename``, ``title``, ``tags``, ``description``. The
images come as ImageNet's training set does, a tar with one tar a synset in it, or unpacked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from clip_mixtures.archives import Member, list_members
from clip_mixtures.errors import UserError
from clip_mixtures.files import read_text
from clip_mixtures.index import SCHEMA, Index, nullable_integers

CORPUS = "base"
DOMAIN = "base"

# Without a split file, this share of the images, chosen by the hash of the file name, trains. It is
# the published share: 425.5 thousand of 463,622.
TRAIN_PER_MILLE = 918


@dataclasses.dataclass(frozen=True)
class BaseIndex:
    """An indexed base set and how many captions had no image.

    Attributes:
        index: the images that have a caption.
        without_image: entries left out, for want of an image or of any text; counted, never hidden.
    """

    index: Index
    without_image: int


def base_caption(entry: dict[str, Any]) -> str:
    """Join title, tags and description into one line (paper section 3.1).

    The parts that are not empty are joined by ``"; "``; every run of white space, line breaks
    included, becomes one space, and half a surrogate pair, which JSON can hold, a question mark.
    """
    tags = " ".join(str(tag) for tag in entry.get("tags") or [])
    parts = [str(entry.get("title") or ""), tags, str(entry.get("description") or "")]
    line = "; ".join(" ".join(part.split()) for part in parts if part.strip())
    return line.encode("utf-8", errors="replace").decode("utf-8")


def default_split(filename: str) -> str:
    """Assign a file to "train" or "test" by the SHA-256 of its name."""
    digest = hashlib.sha256(filename.encode()).digest()
    return "train" if int.from_bytes(digest[:8], "big") % 1000 < TRAIN_PER_MILLE else "test"


def index_imagenet_captions(
    captions: Path, images: Path, train_files: Collection[str] | None = None
) -> BaseIndex:
    """Index a captioned base set.

    Args:
        captions: the JSON list.
        images: the tar (of tars) or the folder with the images; its parent is the corpus root.
        train_files: names of the training files; by default :func:`default_split` decides.

    Raises:
        UserError: for an absent or damaged file, an entry without a file name, or when not one
            caption has an image.
    """
    entries = _read_entries(captions)
    root = images.parent
    places = _places(images)
    rows = []
    for entry in entries:
        member = places.get(entry["filename"])
        caption = base_caption(entry)
        if member is None or not caption:
            continue
        train = (
            default_split(entry["filename"]) == "train"
            if train_files is None
            else (entry["filename"] in train_files)
        )
        rows.append((member, caption, "train" if train else "test"))
    if not rows:
        raise UserError(f"{captions}: none of its {len(entries)} captions has an image in {images}")
    archived = images.is_file()
    frame = pd.DataFrame(
        {
            "path": [member.name for member, _, _ in rows],
            "corpus": CORPUS,
            "domain": DOMAIN,
            "class_id": pd.array([pd.NA] * len(rows), dtype="Int32"),
            "class_name": None,
            "caption": [caption for _, caption, _ in rows],
            "aligned_caption": None,
            "split": [split for _, _, split in rows],
            "archive": images.name if archived else None,
            "offset": nullable_integers([m.offset if archived else None for m, _, _ in rows]),
            "length": nullable_integers([m.length if archived else None for m, _, _ in rows]),
            "compression": [member.compression for member, _, _ in rows],
        }
    )[SCHEMA.names]
    return BaseIndex(Index(frame, root), len(entries) - len(rows))


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
    if images.is_dir():
        files = (path for path in sorted(images.rglob("*")) if path.is_file())
        members = [Member(path.relative_to(images.parent).as_posix(), 0, 0) for path in files]
    else:
        members = list_members(images)
    places: dict[str, Member] = {}
    for member in members:
        name = member.name.rsplit("/", 1)[-1]
        if name in places:
            raise UserError(
                f"{images}: two images are named {name}, {places[name].name} and {member.name}; "
                "captions go by the name alone"
            )
        places[name] = member
    return places
