"""Captions for images that come with a label only (paper section 3.1, appendix A).

Every image of a domain gets one of six sentence templates, one of four terms for the domain and
its class name. Domain-aligned captions use the two terms that fit any domain, so that the text no
longer tells the domain.

One random stream runs through all the lists in a fixed order, so that the captions of published
data come out byte for byte; the price is that one line more or less changes all that follow.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

CAPTION_SEED = 42
NEUTRAL_TERMS = ("image", "picture")

# The published order: it fixes the random stream and the row order of every mixture.
DOMAIN_ORDER = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
SPLIT_ORDER = ("train", "test")

DOMAIN_TERMS: dict[str, tuple[str, str]] = {
    "clipart": ("clipart", "illustration"),
    "infograph": ("infograph", "informational chart"),
    "painting": ("painting", "art"),
    "quickdraw": ("quickdraw", "doodle"),
    "real": ("photo", "snapshot"),
    "sketch": ("sketch", "drawing"),
}

_TEMPLATES = (
    "{phrase} of a {name}.",
    "a {name} {term}.",
    "{phrase} depicting a {name}.",
    "a {name} depicted in {phrase}.",
    "{phrase} showing a {name}.",
    "a {name} is visible in {phrase}.",
)
_ARTICLES = {
    "image": "an ",
    "illustration": "an ",
    "infograph": "an ",
    "art": "",
    "informational chart": "an ",
}

Lists = Mapping[tuple[str, str], Sequence[str]]


def class_name_of(path: str) -> str:
    """Return the class name of an image path ``<domain>/<Class_name>/<file>``."""
    return path.split("/")[-2].replace("_", " ")


def ordered_domains(domains: Sequence[str]) -> list[str]:
    """Sort domains into the published order; others follow, by name."""
    known = [domain for domain in DOMAIN_ORDER if domain in domains]
    return known + sorted(domain for domain in set(domains) if domain not in DOMAIN_ORDER)


def published_captions(
    lists: Lists, aligned: bool = False, seed: int = CAPTION_SEED
) -> dict[tuple[str, str], list[str]]:
    """Caption the images of a set of lists as the published generator does.

    Args:
        lists: (domain, "train" | "test") to lines ``<domain>/<class>/<file> <label>``.
        aligned: use the terms "image" and "picture" only.
        seed: of the one stream that runs through all lists.

    Returns:
        (domain, split) to captions, one a line and in the lines' order; keys in published order.
        A domain without terms of its own is captioned with the neutral ones.
    """
    stream = random.Random(seed)
    captions: dict[tuple[str, str], list[str]] = {}
    for domain in ordered_domains([domain for domain, _ in lists]):
        own = () if aligned else DOMAIN_TERMS.get(domain, ())
        terms = (*NEUTRAL_TERMS, *own)
        for split in SPLIT_ORDER:
            if (domain, split) in lists:
                captions[domain, split] = [
                    _caption(stream, class_name_of(line.rsplit(" ", 1)[0]), terms)
                    for line in lists[domain, split]
                ]
    return captions


def _caption(stream: random.Random, name: str, terms: Sequence[str]) -> str:
    # The order of the three draws is part of the published result.
    template = stream.choice(_TEMPLATES)
    keep_stop = stream.random() < 0.5
    term = stream.choice(terms)
    sentence = template.format(name=name, term=term, phrase=_ARTICLES.get(term, "a ") + term)
    return sentence if keep_stop else sentence[:-1]
