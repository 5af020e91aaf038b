"""Captions for images that come with a label only (paper section 3.1, appendix A).

Every image of a domain gets one of six sentence templates, one of four terms for the domain and
its class name. Domain-aligned captions use the two terms that fit any domain, so that the text no
longer tells the domain.

There are two kinds. The *published* captions come out byte for byte: one random stream runs through
all the lists in a fixed order, so one line more or less changes all that follow; an aircraft
carrier is "a aircraft carrier"; and an aligned caption may say "an image" where the standard one
says "a picture". The *corrected* captions draw from the image's own path, have the right articles,
and differ from the standard ones only where these name the domain.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

from clip_mixtures.corpora.classes import NounPhrase, noun_phrase

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
    return dict(caption_lists(lists, aligned, seed))


def caption_lists(
    lists: Lists, aligned: bool = False, seed: int = CAPTION_SEED
) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Yield what :func:`published_captions` returns, one list at a time.

    Half a million captions are only in memory together when somebody keeps them.
    """
    stream = random.Random(seed)
    for domain in ordered_domains([domain for domain, _ in lists]):
        own = () if aligned else DOMAIN_TERMS.get(domain, ())
        terms = (*NEUTRAL_TERMS, *own)
        for split in SPLIT_ORDER:
            if (domain, split) in lists:
                captions = [
                    _caption(stream, class_name_of(line.rsplit(" ", 1)[0]), terms)
                    for line in lists[domain, split]
                ]
                yield (domain, split), captions


def _caption(stream: random.Random, name: str, terms: Sequence[str]) -> str:
    # The order of the three draws is part of the published result.
    template = stream.choice(_TEMPLATES)
    keep_stop = stream.random() < 0.5
    term = stream.choice(terms)
    sentence = template.format(name=name, term=term, phrase=_ARTICLES.get(term, "a ") + term)
    return sentence if keep_stop else sentence[:-1]


def corrected_captions(
    paths: Iterable[str], aligned: bool = False, seed: int = CAPTION_SEED
) -> list[str]:
    """Caption images by their paths alone, whatever else is in the lists.

    Args:
        paths: ``<domain>/<class>/<file>``.
        aligned: say "image" or "picture"; otherwise the same sentence as without.
        seed: another one makes another choice of sentences.

    Returns:
        One caption a path, in order.
    """
    key = seed.to_bytes(8, "big", signed=True)
    return [_corrected(path, aligned, key) for path in paths]


def _corrected(path: str, aligned: bool, key: bytes) -> str:
    digest = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
    draw, template = divmod(int.from_bytes(digest, "big"), len(_TEMPLATES))
    draw, keep_stop = divmod(draw, 2)
    own = DOMAIN_TERMS.get(path.split("/")[-3], ())
    choice = draw % len(NEUTRAL_TERMS + own)
    term = (NEUTRAL_TERMS + own)[choice]
    if aligned:
        term = NEUTRAL_TERMS[choice % len(NEUTRAL_TERMS)]
    sentence = _sentence(template, noun_phrase(class_name_of(path)), term)
    return sentence + "." if keep_stop else sentence


def _sentence(template: int, noun: NounPhrase, term: str) -> str:
    """Say one of the six sentences in good English."""
    article = _ARTICLES.get(term, "a ")
    phrase = article + term
    return (
        f"{phrase} of {noun.text}",
        # The article before "an ant drawing" is the drawing's, so "art" has none.
        f"{noun.attributive if article else noun.bare} {term}",
        f"{phrase} depicting {noun.text}",
        f"{noun.text} depicted in {phrase}",
        f"{phrase} showing {noun.text}",
        f"{noun.text} {noun.verb} visible in {phrase}",
    )[template]
