"""ImageNet-Sketch takes the place of exactly as many images, of the right classes."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.errors import UserError
from clip_mixtures.mixtures.sketches import exchange
from clip_mixtures.mixtures.spec import Mixture, mixture_from_params

DOMAINS = ("clipart", "real", "sketch")
DEFAULTS = {"test_domain": "sketch", "held_out": ["held out"]}
SHARES: list[float | str] = [0.5, 0.25, 0.3, 0.1, 0.05, 0.01, "one"]
Rows = npt.NDArray[np.int64]


def mixture(**params: Any) -> Mixture:
    return mixture_from_params("m", {"kind": "cg_high_diversity", **params}, DEFAULTS, DOMAINS)


def names_of(count: int) -> list[str]:
    """Name classes in an order of their own, so that by name and by place are not the same."""
    return [f"class {(7 * number) % 1000:03}" for number in range(count)]


def corpus(classes: int, sketches: int = 3, others: int = 20) -> tuple[pd.DataFrame, Rows]:
    """Make an index with ``sketches`` of each class and the rows of a mixture that takes all."""
    rows = [
        (f"{domain}/{name}/{number}.jpg", domain, name)
        for domain in ("clipart", "real")
        for name in names_of(classes)
        for number in range(others)
    ]
    rows += [
        (f"sketch/{name}/{number}.jpg", "sketch", name)
        for name in names_of(classes)
        for number in range(sketches)
    ]
    frame = pd.DataFrame(rows, columns=["path", "domain", "class_name"], dtype="str")
    return frame, np.arange(len(frame))


def split(frame: pd.DataFrame, rows: Rows) -> tuple[list[int], list[int]]:
    """Return the rows of other domains, and those of the test domain."""
    tested = (frame["domain"].iloc[rows] == "sketch").to_numpy(dtype=bool)
    return rows[~tested].tolist(), rows[tested].tolist()


def classes_of(frame: pd.DataFrame, rows: Rows) -> list[str]:
    """Return the classes of the test domain's images in the order of the rows."""
    return list(frame["class_name"].iloc[split(frame, rows)[1]].unique())


# --- Adding


def test_added_sketches_take_the_place_of_images_drawn_with_the_study_s_seed() -> None:
    frame, rows = corpus(10)
    rows = rows[5:]
    added = np.arange(100, 200)
    staying, sketches = exchange(frame, rows, mixture(add_sketches=True), added)
    drawn = random.Random(42).sample(range(len(rows)), k=100)
    assert staying.tolist() == [
        int(row) for place, row in enumerate(rows) if place not in set(drawn)
    ]
    assert sketches.tolist() == added.tolist()


@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("count", [0, 1, 429, 430])
def test_adding_keeps_the_size_and_the_order(protocol: str, count: int) -> None:
    frame, rows = corpus(10)
    assert len(rows) == 430
    chosen = mixture(add_sketches=True, protocol=protocol)
    staying, sketches = exchange(frame, rows, chosen, np.arange(count))
    assert len(staying) + len(sketches) == len(rows)
    assert set(staying.tolist()) <= set(rows.tolist())
    assert staying.tolist() == sorted(set(staying.tolist()))


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_more_sketches_than_the_mixture_has_images_are_refused(protocol: str) -> None:
    frame, rows = corpus(10)
    message = r"mixtures\.m: 431 domain images are to go and there are 430; ImageNet-Sketch"
    with pytest.raises(UserError, match=message):
        exchange(frame, rows, mixture(add_sketches=True, protocol=protocol), np.arange(431))


def test_corrected_images_go_by_their_paths_and_the_seed() -> None:
    frame, rows = corpus(10)
    added = np.arange(100)
    params = {"add_sketches": True, "protocol": "corrected"}
    staying, _ = exchange(frame, rows, mixture(**params), added)
    again, _ = exchange(frame, rows, mixture(**params), added)
    other, _ = exchange(frame, rows, mixture(**params, subsample_seed=1), added)
    assert staying.tolist() == again.tolist()
    assert set(staying.tolist()) != set(other.tolist())
    # Where the images stand in the index does not matter.
    backwards = frame.iloc[::-1].reset_index(drop=True)
    moved, _ = exchange(backwards, rows, mixture(**params), added)
    assert set(backwards["path"].iloc[moved]) == set(frame["path"].iloc[staying])


def test_with_more_sketches_the_corrected_images_that_stay_are_fewer_of_the_same() -> None:
    frame, rows = corpus(10)
    chosen = mixture(add_sketches=True, protocol="corrected")
    more, fewer = (
        set(exchange(frame, rows, chosen, np.arange(count))[0].tolist()) for count in (50, 200)
    )
    assert fewer < more


# --- Mixing, as published


def replay(count: int, added: int, sketches: int, others: int) -> dict[float | str, Any]:
    """Say the study's draws once more, for classes of equal size.

    Returns:
        Share to (places of the classes whose sketches stay, in drawn order; places of the other
        images that go).
    """
    stream = random.Random(42)
    everything = list(range(count))
    fifty = stream.sample(everything, count // 2)
    twenty_five = stream.sample(fifty, count // 4)
    # The classes added to a quarter come from the half, by name.
    names = names_of(count)
    further = sorted(set(fifty) - set(twenty_five), key=lambda place: names[place])
    thirty = twenty_five + stream.sample(further, int(count * 0.3) - count // 4)
    ten = stream.sample(twenty_five, int(count * 0.1))
    five = stream.sample(ten, int(count * 0.05))
    one_percent = stream.sample(five, int(count * 0.01))
    one = stream.sample(one_percent, 1) if one_percent else []
    chosen = dict(
        zip(SHARES, [fifty, twenty_five, thirty, ten, five, one_percent, one], strict=True)
    )
    draws: dict[float | str, Any] = {}
    for share, classes in chosen.items():
        # As many others go as are then too many for the size before.
        surplus = added + sketches * len(classes) - sketches * count
        draws[share] = classes, stream.sample(range(others), surplus)
    return draws


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("classes", [330, 101])
def test_published_shares_are_the_study_s_draws(classes: int, share: float | str) -> None:
    frame, rows = corpus(classes, sketches=3, others=4)
    added = np.arange(1000, 1000 + 4 * classes)
    others, own = split(frame, rows)
    assert (len(others), len(own)) == (8 * classes, 3 * classes)
    staying, sketches = exchange(frame, rows, mixture(mix_sketches=share), added)
    places, gone = replay(classes, len(added), 3, len(others))[share]
    kept = [row for place, row in enumerate(others) if place not in set(gone)]
    kept_own = [own[3 * place + number] for place in places for number in range(3)]
    assert staying.tolist() == kept + kept_own
    assert sketches.tolist() == added.tolist()
    assert len(staying) + len(sketches) == len(rows)


def test_the_published_shares_of_330_classes_have_the_study_s_numbers_of_classes() -> None:
    frame, rows = corpus(330, sketches=1, others=2)
    counts = {}
    for share in SHARES:
        staying, _ = exchange(frame, rows, mixture(mix_sketches=share), np.arange(400))
        counts[share] = len(classes_of(frame, staying))
    assert counts == {0.5: 165, 0.25: 82, 0.3: 99, 0.1: 33, 0.05: 16, 0.01: 3, "one": 1}


def test_published_shares_lie_within_one_another() -> None:
    frame, rows = corpus(330, sketches=1, others=2)
    kept = {
        share: set(
            classes_of(frame, exchange(frame, rows, mixture(mix_sketches=share), np.arange(400))[0])
        )
        for share in SHARES
    }
    nested: list[float | str] = ["one", 0.01, 0.05, 0.1, 0.25, 0.3, 0.5]
    for smaller, larger in itertools.pairwise(nested):
        assert kept[smaller] < kept[larger]


def test_a_published_share_that_the_study_has_not_is_refused() -> None:
    frame, rows = corpus(20)
    message = r"mixtures\.m\.mix_sketches: is 0\.2; protocol: published has 0\.5, 0\.25, .*, one"
    with pytest.raises(UserError, match=message):
        exchange(frame, rows, mixture(mix_sketches=0.2), np.arange(60))


# --- Mixing, corrected


@pytest.mark.parametrize(
    ("share", "classes"),
    [(0.5, 10), (0.25, 5), (0.12, 2), (0.13, 3), (0.01, 1), (0.99, 20), ("one", 1)],
)
def test_corrected_shares_keep_the_nearest_number_of_classes_whole(
    share: float | str, classes: int
) -> None:
    frame, rows = corpus(20)
    added = np.arange(60)
    staying, sketches = exchange(
        frame, rows, mixture(mix_sketches=share, protocol="corrected"), added
    )
    others, own = split(frame, staying)
    assert len(own) == 3 * classes
    assert len(classes_of(frame, staying)) == classes
    assert len(staying) + len(sketches) == len(rows)
    # Others first, then the test domain's images in the order of the index.
    assert staying.tolist() == others + own
    assert own == sorted(own)
    assert others == sorted(set(others))


@given(
    st.integers(1, 30),
    st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)).map(sorted),
    st.integers(0, 9),
)
@settings(max_examples=50, deadline=None)
def test_a_smaller_corrected_share_s_classes_are_among_a_larger_one_s(
    classes: int, shares: list[float], seed: int
) -> None:
    frame, rows = corpus(classes, sketches=2, others=2)
    asked: list[float | str] = ["one", *shares]
    one, smaller, larger = (
        set(
            classes_of(
                frame,
                exchange(
                    frame,
                    rows,
                    mixture(mix_sketches=share, protocol="corrected", subsample_seed=seed),
                    np.arange(2 * classes),
                )[0],
            )
        )
        for share in asked
    )
    assert len(one) == 1
    assert one <= smaller <= larger


def test_corrected_classes_follow_the_seed_and_not_the_order_of_the_index() -> None:
    frame, rows = corpus(30, others=8)
    added = np.arange(90)
    backwards = frame.iloc[::-1].reset_index(drop=True)
    found = []
    for of, seed in ((frame, 0), (backwards, 0), (frame, 1)):
        chosen = mixture(mix_sketches=0.5, protocol="corrected", subsample_seed=seed)
        staying, _ = exchange(of, rows, chosen, added)
        found.append(set(of["path"].iloc[staying]))
    assert found[0] == found[1]
    assert found[0] != found[2]
    sketches = [{path for path in paths if path.startswith("sketch")} for paths in found]
    assert sketches[0] != sketches[2]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_stands_in_the_mixture_its_size_stays(data: st.DataObject) -> None:
    frame, everything = corpus(12, sketches=4, others=6)
    rows = np.flatnonzero(
        np.random.default_rng(data.draw(st.integers(0, 999))).random(len(everything)) < 0.8
    )
    chosen = mixture(
        protocol="corrected",
        mix_sketches=data.draw(st.one_of(st.just("one"), st.floats(0.01, 0.99))),
    )
    others, own = split(frame, rows)
    added = np.arange(data.draw(st.integers(0, len(others) + len(own))))
    try:
        staying, sketches = exchange(frame, rows, chosen, added)
    except UserError:
        # Too few to make up for the sketches that go, or more than there is to take away.
        assert len(added) < len(own) or len(added) > len(others)
        return
    assert len(staying) + len(sketches) == len(rows)
    assert sketches.tolist() == added.tolist()
    assert len(set(staying.tolist())) == len(staying)
    kept = set(classes_of(frame, staying))
    names = frame["class_name"].to_numpy()
    assert split(frame, staying)[1] == [row for row in own if names[row] in kept]


# --- Mixing, refusals


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_too_few_sketches_to_make_up_for_those_that_go_are_refused(protocol: str) -> None:
    frame, rows = corpus(20)
    # Half of the 60 sketches go; 29 cannot replace them, 30 can.
    chosen = mixture(mix_sketches=0.5, protocol=protocol)
    message = r"mixtures\.m: ImageNet-Sketch has 1 images too few to replace those of sketch"
    with pytest.raises(UserError, match=message):
        exchange(frame, rows, chosen, np.arange(29))
    staying, sketches = exchange(frame, rows, chosen, np.arange(30))
    assert len(staying) + len(sketches) == len(rows)
    assert len(split(frame, staying)[0]) == len(split(frame, rows)[0])


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_more_sketches_than_there_are_other_images_to_take_away_are_refused(protocol: str) -> None:
    frame, rows = corpus(20, others=1)
    # 30 sketches of 60 stay, and there are 40 others: 70 more are all that fit.
    chosen = mixture(mix_sketches=0.5, protocol=protocol)
    with pytest.raises(UserError, match=r"mixtures\.m: 41 domain images are to go and there are"):
        exchange(frame, rows, chosen, np.arange(71))
    staying, sketches = exchange(frame, rows, chosen, np.arange(70))
    assert split(frame, staying)[0] == []
    assert len(staying) + len(sketches) == len(rows)


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_a_mixture_without_images_of_the_test_domain_gets_sketches_alone(protocol: str) -> None:
    frame, rows = corpus(20)
    rows = rows[:800]
    chosen = mixture(mix_sketches=0.5, protocol=protocol)
    staying, sketches = exchange(frame, rows, chosen, np.arange(60))
    assert len(staying) == 740
    assert len(sketches) == 60
    assert split(frame, staying)[1] == []
