"""Captions come out as published, byte for byte."""

from __future__ import annotations

import hashlib
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_mixtures.corpora.captions import (
    DOMAIN_ORDER,
    DOMAIN_TERMS,
    SPLIT_ORDER,
    class_name_of,
    ordered_domains,
    published_captions,
)

MANY = 3000


def lines(domain: str, name: str = "ant", count: int = MANY) -> list[str]:
    return [f"{domain}/{name}/{number}.jpg 7" for number in range(count)]


def lines_of(packed: Path) -> list[str]:
    return lzma.decompress(packed.read_bytes()).decode().splitlines()


def test_captions_equal_the_published_ones(shared_file: Callable[[str], Path]) -> None:
    expected = json.loads(shared_file("oracle/mixtures.json").read_text())["captions_sha256"]
    folder = shared_file("domainnet_lists")
    lists = {
        (domain, split): lines_of(folder / f"{domain}_{split}.txt.xz")
        for domain in DOMAIN_ORDER
        for split in SPLIT_ORDER
    }
    found = {}
    for prefix, aligned in (("", False), ("aligned-captions/", True)):
        for (domain, split), captions in published_captions(lists, aligned).items():
            digest = hashlib.sha256()
            for line, caption in zip(lists[domain, split], captions, strict=True):
                path, label = line.rsplit(" ", 1)
                digest.update(f"{path}\t{label}\t{caption}\n".encode())
            found[f"{prefix}{domain}_{split}.tsv"] = digest.hexdigest()
    assert found == expected


def test_every_sentence_that_may_be_written_is_and_no_other() -> None:
    nouns = {
        "image": "an image",
        "picture": "a picture",
        "clipart": "a clipart",
        "illustration": "an illustration",
    }
    sentences = set()
    for term, phrase in nouns.items():
        sentences |= {
            f"{phrase} of a polar bear",
            f"a polar bear {term}",
            f"{phrase} depicting a polar bear",
            f"a polar bear depicted in {phrase}",
            f"{phrase} showing a polar bear",
            f"a polar bear is visible in {phrase}",
        }
    expected = sentences | {f"{sentence}." for sentence in sentences}
    captions = published_captions({("clipart", "train"): lines("clipart", "polar_bear")})
    assert set(captions["clipart", "train"]) == expected


@pytest.mark.parametrize(
    ("domain", "phrases"),
    [
        ("infograph", {"an infograph of", "an informational chart of"}),
        ("painting", {"a painting of", "art of"}),
        ("quickdraw", {"a quickdraw of", "a doodle of"}),
        ("real", {"a photo of", "a snapshot of"}),
        ("sketch", {"a sketch of", "a drawing of"}),
        ("engraving", set()),
    ],
)
def test_each_domain_has_its_own_two_terms(domain: str, phrases: set[str]) -> None:
    captions = published_captions({(domain, "test"): lines(domain)})[domain, "test"]
    found = {text.split(" a ant")[0] for text in captions if " of a ant" in text}
    assert found == phrases | {"an image of", "a picture of"}


def test_aligned_captions_do_not_tell_the_domain() -> None:
    lists = {(domain, "train"): lines(domain) for domain in DOMAIN_ORDER}
    sets = [set(captions) for captions in published_captions(lists, aligned=True).values()]
    assert all(captions == sets[0] for captions in sets)
    assert len(sets[0]) == 6 * 2 * 2
    terms = {term for own in DOMAIN_TERMS.values() for term in own}
    assert not [caption for caption in sets[0] for term in terms if term in caption.split()]


def test_first_captions_of_a_small_corpus() -> None:
    lists = {
        ("real", "train"): ["real/lion/1.jpg 1", "real/ice_cream/2.jpg 2"],
        ("clipart", "test"): ["clipart/lion/1.jpg 1"],
        ("clipart", "train"): ["clipart/ant/1.jpg 0"],
    }
    # One stream seeded with 42 runs through clipart train, clipart test and real train, and draws
    # for each image the template, whether the full stop stays, and the term.
    stream = random.Random(42)
    draws = [
        (stream.choice(range(6)), stream.random() < 0.5, stream.choice(range(4))) for _ in range(4)
    ]
    assert draws == [(5, True, 2), (1, True, 0), (5, False, 0), (4, True, 0)]
    assert published_captions(lists) == {
        ("clipart", "train"): ["a ant is visible in a clipart."],
        ("clipart", "test"): ["a lion image."],
        ("real", "train"): ["a lion is visible in an image", "an image showing a ice cream."],
    }


def test_one_stream_runs_through_all_lists() -> None:
    both = {("clipart", "train"): lines("clipart", count=50), ("real", "test"): lines("real")}
    longer = {**both, ("clipart", "train"): lines("clipart", count=51)}
    before, after = published_captions(both), published_captions(longer)
    assert after["clipart", "train"][:50] == before["clipart", "train"]
    assert after["real", "test"] != before["real", "test"]
    # A line more moves all that follow on by one.
    assert after["real", "test"][:-1] == before["real", "test"][1:]


def test_order_of_the_lists_given_does_not_matter() -> None:
    keys = [(domain, split) for domain in ("zebra", *DOMAIN_ORDER) for split in SPLIT_ORDER]
    lists = {(domain, split): lines(domain, count=20) for domain, split in keys}
    backwards = dict(reversed(lists.items()))
    captions = published_captions(backwards)
    assert captions == published_captions(lists)
    assert list(captions) == [
        (domain, split) for domain in (*DOMAIN_ORDER, "zebra") for split in SPLIT_ORDER
    ]


def test_another_seed_gives_other_captions() -> None:
    lists = {("real", "train"): lines("real", count=50)}
    assert published_captions(lists, seed=42) == published_captions(lists)
    assert published_captions(lists, seed=43) != published_captions(lists)


@given(domains=st.lists(st.sampled_from([*DOMAIN_ORDER, "zebra", "abstract", "Icon"])))
def test_domains_are_ordered_as_published_then_by_name(domains: list[str]) -> None:
    ordered = ordered_domains(domains)
    assert sorted(ordered) == sorted(set(domains))
    full = [*DOMAIN_ORDER, "Icon", "abstract", "zebra"]
    assert ordered == [domain for domain in full if domain in domains]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("sketch/The_Eiffel_Tower/sketch_1.jpg", "The Eiffel Tower"),
        ("real/t-shirt/real_2.jpg", "t-shirt"),
        ("real/ant/a_b.jpg", "ant"),
    ],
)
def test_class_name_is_the_folder_with_spaces(path: str, name: str) -> None:
    assert class_name_of(path) == name
