"""Captions come out as published, byte for byte; corrected ones say the same in good English."""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.corpora.captions import (
    DOMAIN_ORDER,
    DOMAIN_TERMS,
    NEUTRAL_TERMS,
    SPLIT_ORDER,
    class_name_of,
    corrected_captions,
    ordered_domains,
    published_captions,
)
from clip_mixtures.corpora.classes import domainnet_classes, noun_phrase

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


# --- Corrected captions

# A drawn image's term, with its article; the aligned one has one of the first two.
TERMS = {
    "image": "an image",
    "picture": "a picture",
    "clipart": "a clipart",
    "illustration": "an illustration",
    "infograph": "an infograph",
    "informational chart": "an informational chart",
    "painting": "a painting",
    "art": "art",
    "quickdraw": "a quickdraw",
    "doodle": "a doodle",
    "photo": "a photo",
    "snapshot": "a snapshot",
    "sketch": "a sketch",
    "drawing": "a drawing",
}
FOLDERS = [entry.folder for entry in domainnet_classes()]
ALL_PATHS = [
    f"{domain}/{folder}/{number}.jpg"
    for domain in DOMAIN_ORDER
    for folder in FOLDERS
    for number in range(12)
]


def sentences(name: str, noun: str, before: str, verb: str, term: str) -> list[str]:
    """Say the six sentences of a noun ("an ant"), before a term ("an ant drawing"), in order."""
    phrase = TERMS[term]
    return [
        f"{phrase} of {noun}",
        f"{name if term == 'art' else before} {term}",
        f"{phrase} depicting {noun}",
        f"{noun} depicted in {phrase}",
        f"{phrase} showing {noun}",
        f"{noun} {verb} visible in {phrase}",
    ]


# Class to the noun, the noun before a term without its article and with it, and its verb.
NOUNS = {
    "ant": ("an ant", "ant", "an ant", "is"),
    "aircraft_carrier": ("an aircraft carrier", "aircraft carrier", "an aircraft carrier", "is"),
    "hourglass": ("an hourglass", "hourglass", "an hourglass", "is"),
    "helicopter": ("a helicopter", "helicopter", "a helicopter", "is"),
    "umbrella": ("an umbrella", "umbrella", "an umbrella", "is"),
    "t-shirt": ("a t-shirt", "t-shirt", "a t-shirt", "is"),
    "eye": ("an eye", "eye", "an eye", "is"),
    "ice_cream": ("an ice cream", "ice cream", "an ice cream", "is"),
    "octopus": ("an octopus", "octopus", "an octopus", "is"),
    "yoga": ("yoga", "yoga", "a yoga", "is"),
    "asparagus": ("asparagus", "asparagus", "an asparagus", "is"),
    "underwear": ("underwear", "underwear", "an underwear", "is"),
    "scissors": ("scissors", "scissors", "a scissors", "are"),
    "eyeglasses": ("eyeglasses", "eyeglasses", "an eyeglasses", "are"),
    "flip_flops": ("flip flops", "flip flops", "a flip flops", "are"),
    "stairs": ("stairs", "stairs", "a stairs", "are"),
    "sun": ("the sun", "sun", "a sun", "is"),
    "moon": ("the moon", "moon", "a moon", "is"),
    "ocean": ("an ocean", "ocean", "an ocean", "is"),
    "The_Eiffel_Tower": ("the Eiffel Tower", "Eiffel Tower", "an Eiffel Tower", "is"),
    "The_Mona_Lisa": ("the Mona Lisa", "Mona Lisa", "a Mona Lisa", "is"),
    "The_Great_Wall_of_China": (
        "the Great Wall of China",
        "Great Wall of China",
        "a Great Wall of China",
        "is",
    ),
    # Classes of other corpora go by their first sound.
    "unicorn": ("a unicorn", "unicorn", "a unicorn", "is"),
    "uniform": ("a uniform", "uniform", "a uniform", "is"),
    "ukulele": ("a ukulele", "ukulele", "a ukulele", "is"),
    "utensil": ("a utensil", "utensil", "a utensil", "is"),
    "ewe": ("a ewe", "ewe", "a ewe", "is"),
    "urn": ("an urn", "urn", "an urn", "is"),
    "oboe": ("an oboe", "oboe", "an oboe", "is"),
    "heirloom": ("an heirloom", "heirloom", "an heirloom", "is"),
    "honeycomb": ("a honeycomb", "honeycomb", "a honeycomb", "is"),
    "one-way_sign": ("a one-way sign", "one-way sign", "a one-way sign", "is"),
    "European_fire_salamander": (
        "a European fire salamander",
        "European fire salamander",
        "a European fire salamander",
        "is",
    ),
    "unusual_hat": ("an unusual hat", "unusual hat", "an unusual hat", "is"),
}


@pytest.mark.parametrize("folder", NOUNS)
@pytest.mark.parametrize("domain", ["clipart", "infograph", "painting"])
def test_corrected_captions_are_the_published_sentences_in_good_english(
    domain: str, folder: str
) -> None:
    noun, name, before, verb = NOUNS[folder]
    expected = {
        sentence + stop
        for term in (*NEUTRAL_TERMS, *DOMAIN_TERMS[domain])
        for sentence in sentences(name, noun, before, verb, term)
        for stop in ("", ".")
    }
    captions = corrected_captions(f"{domain}/{folder}/{number}.jpg" for number in range(800))
    assert set(captions) == expected


def test_corrected_sentences_terms_and_stops_are_equally_likely() -> None:
    count = 24_000
    captions = corrected_captions(f"real/lion/{number}.jpg" for number in range(count))
    found = Counter(captions)
    # 48 captions, 500 expected of each; five standard deviations are 111.
    assert len(found) == 6 * 4 * 2
    assert all(abs(number - 500) < 111 for number in found.values())


@given(st.permutations(range(40)), st.integers(0, 40), st.booleans())
@settings(deadline=None)
def test_a_corrected_caption_depends_on_its_path_alone(
    order: list[int], count: int, aligned: bool
) -> None:
    paths = ALL_PATHS[::617][:40]
    assert len(set(paths)) == 40
    alone = {path: corrected_captions([path], aligned)[0] for path in paths}
    some = [paths[place] for place in order[:count]]
    assert corrected_captions(some, aligned) == [alone[path] for path in some]
    assert corrected_captions(iter(some), aligned) == [alone[path] for path in some]


def test_corrected_captions_of_one_class_differ_between_images_and_domains() -> None:
    images = corrected_captions(f"sketch/ant/{number}.jpg" for number in range(100))
    others = corrected_captions(f"engraving/ant/{number}.jpg" for number in range(100))
    assert len(set(images)) > 20
    # A domain without terms of its own has the neutral ones.
    assert all(" image" in caption or " picture" in caption for caption in others)


def parts_of(path: str, caption: str) -> tuple[int, str, bool]:
    """Return which sentence a corrected caption is, its term, and whether it has a full stop."""
    phrase = noun_phrase(class_name_of(path))
    body = caption.removesuffix(".")
    found = [
        (template, term)
        for term in (*NEUTRAL_TERMS, *DOMAIN_TERMS[path.split("/")[0]])
        for template, sentence in enumerate(
            sentences(phrase.bare, phrase.text, phrase.attributive, phrase.verb, term)
        )
        if sentence == body
    ]
    assert len(found) == 1, (path, caption)
    return *found[0], caption.endswith(".")


def test_an_aligned_corrected_caption_is_the_standard_one_with_a_neutral_term() -> None:
    standard, aligned = corrected_captions(ALL_PATHS), corrected_captions(ALL_PATHS, aligned=True)
    kept: Counter[bool | str] = Counter()
    for path, own, neutral in zip(ALL_PATHS, standard, aligned, strict=True):
        sentence, term, stop = parts_of(path, own)
        neutral_sentence, neutral_term, neutral_stop = parts_of(path, neutral)
        assert (sentence, stop) == (neutral_sentence, neutral_stop)
        assert neutral_term in NEUTRAL_TERMS
        if term in NEUTRAL_TERMS:
            assert own == neutral
        kept[own == neutral] += 1
        kept[neutral_term] += 1
    # Half of the terms are neutral already.
    assert abs(kept[True] / len(ALL_PATHS) - 0.5) < 0.02
    assert abs(kept["image"] / len(ALL_PATHS) - 0.5) < 0.02


def test_without_terms_and_articles_aligned_captions_are_the_standard_ones() -> None:
    # Said once more without knowing the sentences, for classes that no term is a part of.
    paths = [path for path in ALL_PATHS if not re.search("paint|picture", path.split("/")[1])]
    terms = "|".join(sorted(TERMS, key=len, reverse=True))

    def bare(caption: str) -> str:
        return re.sub(rf"\b(?:{terms})\b|\ban?\b", "", caption).replace("  ", " ").strip()

    for own, neutral in zip(
        corrected_captions(paths), corrected_captions(paths, aligned=True), strict=True
    ):
        assert bare(own) == bare(neutral)


@pytest.mark.parametrize("aligned", [False, True])
def test_corrected_captions_of_all_classes_have_no_slip(aligned: bool) -> None:
    plurals = {entry.name for entry in domainnet_classes() if entry.plural}
    assert len(plurals) == 15
    slips = re.compile(
        r"  |^ | $|\.\.| \.|\b(a|an|the) (a|an|the)\b|\ba [aeio]|\ban [^aeiouAEIOUh]"
        r"|\ba (umbrella|underwear|hourglass)|\ban h(?!ourglass)",
        re.IGNORECASE,
    )
    verbs: Counter[str] = Counter()
    for path, caption in zip(ALL_PATHS, corrected_captions(ALL_PATHS, aligned), strict=True):
        assert not slips.search(caption), caption
        if " visible in " in caption:
            verb = "are" if class_name_of(path) in plurals else "is"
            assert f" {verb} visible in " in caption
            verbs[verb] += 1
    assert verbs["is"] > verbs["are"] > 100


def test_published_captions_have_the_slips_that_the_corrected_ones_have_not() -> None:
    path = "real/aircraft_carrier/1.jpg"
    published = published_captions({("real", "train"): lines("real", "aircraft_carrier")})
    assert any("a aircraft" in caption for caption in published["real", "train"])
    assert not any("a aircraft" in caption for caption in corrected_captions([path] * 3))


def test_another_seed_gives_other_corrected_captions() -> None:
    paths = [f"real/lion/{number}.jpg" for number in range(200)]
    captions = {seed: corrected_captions(paths, seed=seed) for seed in (-1, 0, 42, 43)}
    assert captions[42] == corrected_captions(paths)
    assert len({tuple(texts) for texts in captions.values()}) == 4
    same = sum(a == b for a, b in zip(captions[42], captions[43], strict=True))
    # One in 48 by chance.
    assert same < 20


def test_the_first_corrected_captions_stay_what_they_are() -> None:
    # Whoever trained on them wants them again.
    paths = ["sketch/ant/1.jpg", "real/scissors/2.jpg", "clipart/The_Mona_Lisa/3.jpg"]
    assert corrected_captions(paths) == [
        "a drawing depicting an ant",
        "scissors depicted in a picture",
        "a Mona Lisa clipart",
    ]
    assert corrected_captions(paths, aligned=True) == [
        "a picture depicting an ant",
        "scissors depicted in a picture",
        "a Mona Lisa image",
    ]


def test_half_a_surrogate_pair_in_a_path_does_no_harm() -> None:
    assert "half \ud83d" in corrected_captions(["real/half \ud83d/1.jpg"])[0]
