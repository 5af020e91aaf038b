"""Where the corpora lie, as a value that is checked before any of them is read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_mixtures.errors import UserError, unknown

# How the domains lie: DomainNet's lists and archives, or class folders alone.
LAYOUTS = ("domainnet", "folders")
# What a mixture without a base set says in the place of a name.
NO_BASE = "none"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")


@dataclasses.dataclass(frozen=True)
class BaseFormat:
    """What is said of a base set of one format.

    Attributes:
        paths: keys that name a file or folder; True where one must be given.
        others: further keys and their type.
    """

    paths: Mapping[str, bool]
    others: Mapping[str, type] = dataclasses.field(default_factory=dict)


BASE_FORMATS = {
    "imagenet_captions": BaseFormat({"captions": True, "images": False, "split": False}),
    "tsv": BaseFormat({"train": True, "validation": False, "images": False}, {"quoted": bool}),
    "webdataset": BaseFormat({"shards": True}, {"validation_per_mille": int}),
}


@dataclasses.dataclass(frozen=True)
class Domains:
    """Where the domains lie.

    Attributes:
        root: the folder with their lists and archives, or folders.
        names: which of them to take; None for DomainNet's six, or every folder there is.
        layout: one of :data:`LAYOUTS`.
        images: find every image; without, DomainNet's lists alone are indexed.
        test_share: of the images of a class that test, where no lists say so.
    """

    root: Path
    names: tuple[str, ...] | None = None
    layout: str = "domainnet"
    images: bool = True
    test_share: float = 0.3


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the corpora lie; None or empty for what is not there.

    Attributes:
        domains: the domains.
        bases: name to ``format`` (one of :data:`BASE_FORMATS`) and that format's keys.
        imagenet_sketch: folder or zip.
        imagenet_train: folder or archive.
        imagenet_validation: folder or archive.
        imagenet_labels: what says which class a validation image has, where its folder does not.
    """

    domains: Domains | None = None
    bases: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    imagenet_sketch: Path | None = None
    imagenet_train: Path | None = None
    imagenet_validation: Path | None = None
    imagenet_labels: Path | None = None


def check_name(name: Any, what: str) -> str:
    """Return a key of the parameters if it can be part of file and stage names.

    Raises:
        UserError: naming it and what is allowed.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == NO_BASE:
        raise UserError(
            f"{what}: {name!r} must be letters, digits and hyphens, a hyphen not first, and not "
            f"{NO_BASE!r}"
        )
    return name


def base_source(name: str, params: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check what is said of a base set, and make paths of its paths.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    if not isinstance(params, Mapping):
        raise UserError(f"{where}: is {params!r}, not a mapping with a 'format'")
    kind = params.get("format")
    if not isinstance(kind, str) or kind not in BASE_FORMATS:
        raise unknown("format", kind, BASE_FORMATS, f"{where}.format")
    known = BASE_FORMATS[kind]
    source: dict[str, Any] = {"format": kind}
    for key, value in params.items():
        if key in known.paths:
            if not isinstance(value, str):
                raise UserError(f"{where}.{key}: is {value!r}, not a path")
            source[key] = Path(value)
        elif key in known.others:
            wanted = known.others[key]
            if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
                raise UserError(f"{where}.{key}: is {value!r}, not of type {wanted.__name__}")
            source[key] = value
        elif key != "format":
            raise unknown("key", key, ["format", *known.paths, *known.others], where)
    for key, needed in known.paths.items():
        if needed and key not in source:
            raise UserError(f"{where}: {key} missing; format {kind!r} needs it")
    return source
