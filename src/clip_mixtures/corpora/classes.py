"""The classes: DomainNet's 345, the 15 that the study holds out, and their kin in ImageNet.

The facts are a table of this package (``data/domainnet_classes.csv``); ImageNet's class names come
from open_clip and its synsets from timm, read as files so that nobody waits for torch.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
import importlib.util
import re
from pathlib import Path

# open_clip renamed four of the ImageNet class names that the published captions and prompts use.
_PUBLISHED_NAMES = {27: "eft", 638: "maillot", 744: "projectile", 836: "sunglass"}
# Spelt with a vowel and spoken with a consonant, and the reverse.
_TAKES_A = re.compile(r"(uni(?![nm])|us[ae]|eu|ewe|one\b|once\b|uk|ufo|u-|ute)", re.IGNORECASE)
_TAKES_AN = re.compile(r"([aeiou]|hour|honest|heir)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class DomainNetClass:
    """One of DomainNet's classes.

    Attributes:
        label: 0 to 344.
        folder: name of its folder, such as ``aircraft_carrier``.
        article: "a", "an", "the" or "" (for plurals and what cannot be counted).
        plural: whether its name is a plural.
        held_out: whether it is one of the study's 15 test classes.
        synsets: the ImageNet synsets that show the same thing; none for 163 classes.
    """

    label: int
    folder: str
    article: str
    plural: bool
    held_out: bool
    synsets: tuple[str, ...]

    @property
    def name(self) -> str:
        """The class name as captions and prompts have it."""
        return self.folder.replace("_", " ")


@dataclasses.dataclass(frozen=True)
class NounPhrase:
    """How a class name stands in a sentence.

    Attributes:
        text: the name with its article, such as "an hourglass", "the sun" or "eyeglasses".
        attributive: the name before a noun, with the article that then belongs to the noun, such
            as "a scissors" in "a scissors drawing".
        bare: the name before a noun that takes no article.
        verb: "is" or "are".
    """

    text: str
    attributive: str
    bare: str
    verb: str


@functools.cache
def domainnet_classes() -> tuple[DomainNetClass, ...]:
    """Return the 345 classes by label (paper section 3.1)."""
    text = importlib.resources.files(__package__) / "data/domainnet_classes.csv"
    return tuple(
        DomainNetClass(
            label=int(row["label"]),
            folder=row["folder"],
            article=row["article"],
            plural=row["plural"] == "1",
            held_out=row["held_out"] == "1",
            synsets=tuple(row["imagenet_synsets"].split()),
        )
        for row in csv.DictReader(text.read_text(encoding="utf-8").splitlines())
    )


def published_held_out() -> tuple[str, ...]:
    """Return the names of the study's 15 test classes."""
    return tuple(entry.name for entry in domainnet_classes() if entry.held_out)


@functools.cache
def synset_labels() -> dict[str, int]:
    """Map the 450 ImageNet synsets that have a counterpart in DomainNet to its label."""
    return {synset: entry.label for entry in domainnet_classes() for synset in entry.synsets}


def synset_counterparts() -> dict[str, str]:
    """Map the ImageNet synsets that have a counterpart in DomainNet to its class name."""
    classes = domainnet_classes()
    return {synset: classes[label].name for synset, label in synset_labels().items()}


@functools.cache
def imagenet_synsets() -> tuple[str, ...]:
    """Return ImageNet's 1,000 synsets by class id, which is their alphabetical order."""
    file = _package_folder("timm") / "data" / "_info" / "imagenet_synsets.txt"
    return tuple(file.read_text(encoding="utf-8").split())


@functools.cache
def imagenet_class_names(published: bool = True) -> tuple[str, ...]:
    """Return ImageNet's 1,000 class names by class id.

    Args:
        published: as the published captions and prompts have them; otherwise as open_clip does,
            which renamed four.
    """
    file = _package_folder("open_clip") / "zero_shot_metadata.py"
    spec = importlib.util.spec_from_file_location("_open_clip_names", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = list(module.IMAGENET_CLASSNAMES)
    if published:
        for label, name in _PUBLISHED_NAMES.items():
            names[label] = name
    return tuple(names)


def _package_folder(name: str) -> Path:
    # Found, not imported: importing either takes seconds and all of torch.
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@functools.cache
def noun_phrase(name: str) -> NounPhrase:
    """Return a class name as it stands in a sentence.

    DomainNet's names carry their article in the table; any other name takes "a" or "an" by its
    first sound.
    """
    known = _by_name().get(name)
    article = known.article if known else _indefinite(name)
    bare = name.removeprefix("The ") if article == "the" else name
    return NounPhrase(
        text=f"{article} {bare}".strip(),
        attributive=f"{_indefinite(bare)} {bare}",
        bare=bare,
        verb="are" if known and known.plural else "is",
    )


@functools.cache
def _by_name() -> dict[str, DomainNetClass]:
    return {entry.name: entry for entry in domainnet_classes()}


def _indefinite(name: str) -> str:
    return "an" if _TAKES_AN.match(name) and not _TAKES_A.match(name) else "a"
