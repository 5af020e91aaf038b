"""The classes are those of DomainNet and ImageNet, and their counterparts those of the study."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_mixtures.corpora.classes import (
    domainnet_classes,
    imagenet_class_names,
    imagenet_synsets,
    noun_phrase,
    published_held_out,
    synset_labels,
)

HELD_OUT = {
    "aircraft carrier": 0,
    "axe": 11,
    "banana": 13,
    "barn": 15,
    "bed": 25,
    "candle": 58,
    "lion": 174,
    "mountain": 190,
    "necklace": 197,
    "penguin": 218,
    "pizza": 225,
    "saxophone": 250,
    "television": 305,
    "tractor": 319,
    "traffic light": 320,
}


# --- DomainNet


def test_there_are_345_classes_in_the_order_of_their_folders() -> None:
    classes = domainnet_classes()
    assert [entry.label for entry in classes] == list(range(345))
    folders = [entry.folder for entry in classes]
    assert len(set(folders)) == 345
    # As in a dictionary: paintbrush before paint_can, t-shirt after trumpet, capitals like others.
    assert folders == sorted(folders, key=lambda folder: re.sub(r"[-_]", "", folder).lower())


def test_names_are_the_folders_with_spaces() -> None:
    names = {entry.label: entry.name for entry in domainnet_classes()}
    assert names[0] == "aircraft carrier"
    assert names[303] == "teddy-bear"
    assert names[309] == "The Great Wall of China"
    assert names[327] == "t-shirt"
    assert names[344] == "zigzag"
    assert len(set(names.values())) == 345
    assert not [name for name in names.values() if "_" in name or name != name.strip()]


def test_the_15_held_out_classes_are_the_study_s() -> None:
    found = {entry.name: entry.label for entry in domainnet_classes() if entry.held_out}
    assert found == HELD_OUT
    assert published_held_out() == tuple(HELD_OUT)


def test_articles_and_plurals_go_together() -> None:
    for entry in domainnet_classes():
        assert entry.article in ("a", "an", "the", ""), entry
        # What is plural has no indefinite article.
        assert not (entry.plural and entry.article), entry
    articles = Counter(entry.article for entry in domainnet_classes())
    assert articles["the"] == 5
    assert sum(entry.plural for entry in domainnet_classes()) == 15


# --- Counterparts


def test_163_classes_have_no_counterpart_and_450_synsets_have_one_class() -> None:
    synsets = [synset for entry in domainnet_classes() for synset in entry.synsets]
    assert sum(not entry.synsets for entry in domainnet_classes()) == 163
    assert len(synsets) == len(set(synsets)) == 450
    assert set(synsets) <= set(imagenet_synsets())
    for entry in domainnet_classes():
        assert list(entry.synsets) == sorted(entry.synsets)


def test_every_held_out_class_has_exactly_one_counterpart() -> None:
    counts = {entry.name: len(entry.synsets) for entry in domainnet_classes() if entry.held_out}
    assert counts == dict.fromkeys(HELD_OUT, 1)


def test_synsets_lead_to_the_labels_of_their_classes() -> None:
    labels = synset_labels()
    assert len(labels) == 450
    assert labels["n02687172"] == 0
    assert labels["n02129165"] == 174
    assert labels["n02708093"] == labels["n03196217"] == 2
    assert len(set(labels.values())) == 345 - 163
    for entry in domainnet_classes():
        assert [labels[synset] for synset in entry.synsets] == [entry.label] * len(entry.synsets)


@pytest.mark.parametrize("name", HELD_OUT)
def test_the_counterpart_of_a_held_out_class_shows_the_same_thing(name: str) -> None:
    entry = domainnet_classes()[HELD_OUT[name]]
    imagenet = imagenet_class_names()[imagenet_synsets().index(entry.synsets[0])]
    kin = {"axe": "hatchet", "bed": "four-poster bed", "penguin": "king penguin"}
    assert imagenet == kin.get(name, name)


def test_the_table_is_that_of_the_known_answers(shared_file: Callable[[str], Path]) -> None:
    with open(shared_file("class_facts.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [
        (
            int(row["label"]),
            row["folder"],
            row["held_out"] == "1",
            tuple(sorted(row["imagenet_synsets"].split())),
        )
        for row in rows
    ]
    assert len(rows) == 345
    assert expected == [
        (entry.label, entry.folder, entry.held_out, entry.synsets) for entry in domainnet_classes()
    ]


# --- ImageNet


def test_imagenet_s_synsets_are_1000_in_their_order() -> None:
    synsets = imagenet_synsets()
    assert len(synsets) == len(set(synsets)) == 1000
    assert list(synsets) == sorted(synsets)
    assert all(re.fullmatch(r"n\d{8}", synset) for synset in synsets)
    assert (synsets[0], synsets[999]) == ("n01440764", "n15075141")


def test_imagenet_s_names_are_1000_and_those_of_the_study() -> None:
    names = imagenet_class_names()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[999]) == ("tench", "toilet paper")
    assert [names[label] for label in (27, 638, 744, 836)] == [
        "eft",
        "maillot",
        "projectile",
        "sunglass",
    ]


def test_the_other_names_are_open_clip_s() -> None:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    different = {
        label: name
        for label, (name, other) in enumerate(
            zip(imagenet_class_names(), IMAGENET_CLASSNAMES, strict=True)
        )
        if name != other
    }
    assert different == {27: "eft", 638: "maillot", 744: "projectile", 836: "sunglass"}


def test_names_and_synsets_are_in_the_same_order() -> None:
    names = dict(zip(imagenet_synsets(), imagenet_class_names(), strict=True))
    assert names["n02129165"] == "lion"
    assert names["n07753592"] == "banana"
    assert names["n04465501"] == "tractor"
    assert names["n02056570"] == "king penguin"


def test_nobody_waits_for_torch_to_read_the_classes() -> None:
    program = (
        "import sys; from clip_mixtures.corpora import classes; classes.imagenet_class_names(); "
        "classes.imagenet_synsets(); classes.synset_labels(); "
        "assert not {'torch', 'timm', 'open_clip'} & sys.modules.keys(), list(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


# --- Names in a sentence


def test_every_class_stands_in_a_sentence_with_its_own_article() -> None:
    for entry in domainnet_classes():
        phrase = noun_phrase(entry.name)
        assert phrase.text.split(" ")[0] == (entry.article or entry.name.split(" ")[0])
        assert phrase.verb == ("are" if entry.plural else "is")
        assert phrase.attributive.removeprefix("an ").removeprefix("a ") == phrase.bare
        assert phrase.bare in entry.name
        assert "  " not in phrase.text
        if entry.article in ("a", "an"):
            assert phrase.text == phrase.attributive == f"{entry.article} {entry.name}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tench", "a tench"),
        ("unicycle", "a unicycle"),
        ("umbrella", "an umbrella"),
        ("European green lizard", "a European green lizard"),
        ("eft", "an eft"),
        ("hourglass", "an hourglass"),
        ("honeycomb", "a honeycomb"),
        ("electric ray", "an electric ray"),
        ("upright piano", "an upright piano"),
        ("espresso", "an espresso"),
        ("ox", "an ox"),
        ("yurt", "a yurt"),
        ("one-armed bandit", "a one-armed bandit"),
        ("onion ring", "an onion ring"),
        ("ewe", "a ewe"),
        ("Ewer", "a Ewer"),
        ("uninteresting thing", "an uninteresting thing"),
        ("unmade bed", "an unmade bed"),
        ("used car", "a used car"),
        ("usher", "an usher"),
        ("heir", "an heir"),
        ("UFO", "a UFO"),
    ],
)
def test_other_names_take_the_article_of_their_first_sound(name: str, text: str) -> None:
    assert noun_phrase(name).text == text
    assert noun_phrase(name).attributive == text
    assert noun_phrase(name).bare == name
    assert noun_phrase(name).verb == "is"
