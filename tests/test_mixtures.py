"""Mixtures hold exactly what they should: the published rows, and never a held-out pair."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clip_mixtures.corpora.captions import DOMAIN_ORDER, SPLIT_ORDER
from clip_mixtures.errors import UserError
from clip_mixtures.mixtures.build import (
    MixtureRows,
    choose_rows,
    count_table,
    select_rows,
    stratify,
)
from clip_mixtures.mixtures.spec import Mixture, check_defaults, mixture_from_params

DOMAINS = ("clipart", "painting", "real", "sketch")
CLASSES = ("ant", "bee", "cat", "dog")
HELD_OUT = ["ant", "bee"]
DEFAULTS = {"test_domain": "sketch", "held_out": HELD_OUT}
PROTOCOLS = ("published", "corrected")


def corpus(sizes: dict[tuple[str, str], int], test: int = 2) -> pd.DataFrame:
    """Make index rows with ``sizes`` training images for each (domain, class)."""
    rows = [
        (f"{domain}/{name}/{split}{number}.png", domain, name, split)
        for split in SPLIT_ORDER
        for (domain, name), count in sizes.items()
        for number in range(count if split == "train" else test)
    ]
    frame = pd.DataFrame(rows, columns=["path", "domain", "class_name", "split"])
    order = {domain: position for position, domain in enumerate(DOMAIN_ORDER)}
    return frame.sort_values("domain", key=lambda c: c.map(order), kind="stable", ignore_index=True)


def even(count: int, classes: tuple[str, ...] = CLASSES) -> pd.DataFrame:
    return corpus({(domain, name): count for domain in DOMAINS for name in classes})


def mixture(kind: str, **more: Any) -> Mixture:
    return mixture_from_params("m", {"kind": kind, **more}, DEFAULTS, DOMAINS)


def is_held_out(frame: pd.DataFrame) -> pd.Series:
    return (frame["domain"] == "sketch") & frame["class_name"].isin(HELD_OUT)


def low_diversity_size(frame: pd.DataFrame) -> int:
    kept = frame["domain"].isin(["real", "sketch"]) & ~is_held_out(frame)
    return int((kept & (frame["split"] == "train")).sum())


def pool_of(frame: pd.DataFrame, chosen: Mixture) -> pd.DataFrame:
    """Return the training rows that a mixture may take."""
    taken = (frame["split"] == "train") & frame["domain"].isin(chosen.domains)
    return frame[taken & ~is_held_out(frame)] if chosen.holds_out else frame[taken]


def groups_of(frame: pd.DataFrame) -> Counter[tuple[str, str]]:
    return Counter(zip(frame["domain"], frame["class_name"], strict=True))


def paths(frame: pd.DataFrame, rows: Any) -> list[str]:
    return [str(path) for path in frame["path"].iloc[rows]]


@st.composite
def corpora(draw: st.DrawFn) -> pd.DataFrame:
    """Draw index rows: classes in any order, missing anywhere, listed one by one or mixed."""
    stream = random.Random(draw(st.integers(0, 2**16)))
    mixed = draw(st.booleans())
    rows = []
    for domain in DOMAINS:
        for split in SPLIT_ORDER:
            sizes = draw(st.lists(st.integers(0, 9), min_size=4, max_size=4))
            classes = stream.sample(CLASSES, k=4)
            listed = [(c, n) for c, size in zip(classes, sizes, strict=True) for n in range(size)]
            if mixed:
                stream.shuffle(listed)
            rows += [(f"{domain}/{c}/{split}{n}.png", domain, c, split) for c, n in listed]
    return pd.DataFrame(rows, columns=["path", "domain", "class_name", "split"], dtype="str")


@st.composite
def compared(draw: st.DrawFn, protocol: str) -> Mixture:
    """Draw a mixture that is cut to size."""
    kind = draw(
        st.sampled_from(["cg_low_diversity", "cg_high_diversity", "leave_out_domain", "domains"])
    )
    params: dict[str, Any] = {"protocol": protocol}
    if kind == "domains":
        params["domains"] = draw(st.lists(st.sampled_from(DOMAINS), min_size=1, unique=True))
    if "sketch" in params.get("domains", ["sketch"]) and kind != "leave_out_domain":
        bound: dict[str, Any] = draw(
            st.sampled_from([{}, {"include_test_classes": True}, {"allow": 0.2}, {"allow": 0.7}])
        )
        params |= bound
    return mixture(kind, **params)


# --- What is taken: kinds


def test_natural_only_takes_every_natural_image_and_nothing_else() -> None:
    frame = even(5)
    rows = select_rows(frame, mixture("natural_only"))
    assert set(frame.loc[rows.train, "domain"]) == {"real"}
    assert len(rows.train) == 20
    assert len(rows.validation) == 8


def test_the_compared_mixtures_have_the_size_of_the_low_diversity_one() -> None:
    frame = even(5)
    # real: 4 classes x 5; sketch: the 2 classes that are not held out x 5.
    for kind in ("cg_low_diversity", "cg_high_diversity", "leave_out_domain"):
        assert len(select_rows(frame, mixture(kind)).train) == 30
    upper = select_rows(frame, mixture("cg_low_diversity", include_test_classes=True))
    assert len(upper.train) == 30


def test_leave_out_domain_has_no_image_of_the_test_domain() -> None:
    frame = even(5)
    rows = select_rows(frame, mixture("leave_out_domain"))
    assert "sketch" not in set(frame.loc[rows.train, "domain"])
    assert set(HELD_OUT) <= set(frame.loc[rows.train, "class_name"])


def test_a_listed_choice_of_domains_is_taken_as_listed() -> None:
    frame = even(6)
    rows = select_rows(frame, mixture("domains", domains=["sketch", "real", "clipart"]))
    assert list(frame.loc[rows.train, "domain"].unique()) == ["clipart", "real", "sketch"]


# --- What is taken: the published rule


def test_subsampling_keeps_a_prefix_of_every_class() -> None:
    frame = even(10)
    rows = select_rows(frame, mixture("cg_high_diversity")).train
    for _, members in frame.iloc[rows].groupby(["domain", "class_name"]):
        numbers = [int(path.split("train")[1].split(".")[0]) for path in members["path"]]
        assert numbers == list(range(len(numbers)))


def test_trimming_starts_with_the_natural_domain() -> None:
    frame = even(5)
    counts = count_table(
        frame, select_rows(frame, mixture("cg_high_diversity")).train, mixture("cg_high_diversity")
    )
    by_domain = counts.groupby("domain")["images"].sum().to_dict()
    # 30 of 70 rows: ceil(5 x 3/7) = 3 of each of the 14 pairs, 12 too many; the 4 pairs of real and
    # the 4 of painting lose one each, then the 2 of sketch, then 2 of clipart's.
    assert by_domain == {"real": 8, "painting": 8, "sketch": 4, "clipart": 10}


def test_allow_lets_a_share_of_the_held_out_images_back() -> None:
    frame = even(20)
    none = select_rows(frame, mixture("cg_low_diversity"))
    some = select_rows(frame, mixture("cg_low_diversity", allow=0.5))
    held_out = is_held_out(frame)
    assert not held_out.iloc[none.train].any()
    # 120 of 160 rows; half of that share of 20 images is ceil(7.5) = 8 a class.
    assert held_out.iloc[some.train].sum() == 16
    assert len(some.train) == len(none.train) == 120


def test_trimming_takes_the_only_image_of_a_class_where_the_corrected_rule_keeps_it() -> None:
    sizes = {(domain, name): 6 for domain in DOMAINS for name in CLASSES}
    frame = corpus({**sizes, ("real", "ant"): 1})
    counts = {
        protocol: groups_of(
            frame.iloc[select_rows(frame, mixture("cg_high_diversity", protocol=protocol)).train]
        )
        for protocol in PROTOCOLS
    }
    assert counts["published"]["real", "ant"] == 0
    assert counts["corrected"]["real", "ant"] == 1
    assert counts["published"].total() == counts["corrected"].total() == 19 + 12


def published_rule(frame: pd.DataFrame, chosen: Mixture) -> tuple[list[int], list[int]] | None:
    """Say the published rule once more, row by row; None where it has too few rows."""
    rows = [tuple(row) for row in frame[["domain", "class_name", "split"]].itertuples(index=False)]
    held_out = {("sketch", name) for name in HELD_OUT}
    groups: dict[tuple[str, str], list[int]] = {}
    for domain in DOMAIN_ORDER:
        for number, (of, name, split) in enumerate(rows):
            if split == "train" and of == domain:
                groups.setdefault((domain, name), []).append(number)
    pool = {
        key: members
        for key, members in groups.items()
        if key[0] in chosen.domains and not (chosen.holds_out and key in held_out)
    }
    validation = [
        number
        for number, (of, name, split) in enumerate(rows)
        if split == "test"
        and of in chosen.domains
        and not (chosen.holds_out and (of, name) in held_out)
    ]
    size = sum(
        len(members)
        for key, members in groups.items()
        if key[0] in ("real", "sketch") and key not in held_out
    )
    total = sum(map(len, pool.values()))
    if size > total:
        return None
    keep: dict[tuple[str, str], int] = {}
    if chosen.allow:
        for key in held_out & pool.keys():
            keep[key] = math.ceil(chosen.allow * (size / total) * len(pool[key]))
    rest = total - sum(len(pool[key]) for key in keep)
    wanted = size - sum(keep.values())
    if not 0 <= wanted <= rest:
        return None
    free = [key for key in pool if key not in keep]
    keep |= {key: math.ceil(wanted / rest * len(pool[key])) for key in free}
    while sum(keep.values()) > size:
        for domain in ("real", "quickdraw", "painting", "sketch", "infograph", "clipart"):
            for key in free:
                if key[0] == domain and keep[key] and sum(keep.values()) > size:
                    keep[key] -= 1
    return [row for key, members in pool.items() for row in members[: keep[key]]], validation


@given(corpora(), compared("published"))
@settings(max_examples=150, deadline=None)
def test_rows_are_those_of_the_published_rule_said_once_more(
    frame: pd.DataFrame, chosen: Mixture
) -> None:
    expected = published_rule(frame, chosen)
    if expected is None:
        with pytest.raises(UserError, match=r"mixtures\.m: "):
            select_rows(frame, chosen)
        return
    rows = select_rows(frame, chosen)
    assert (rows.train.tolist(), rows.validation.tolist()) == expected


# --- What is taken: both protocols


@given(corpora(), st.sampled_from(PROTOCOLS).flatmap(compared))
@settings(max_examples=150, deadline=None)
def test_whatever_the_corpus_nothing_leaks_and_the_size_is_met(
    frame: pd.DataFrame, chosen: Mixture
) -> None:
    target, pool = low_diversity_size(frame), pool_of(frame, chosen)
    if len(pool) < target:
        with pytest.raises(UserError, match=f"fewer than the {target} to cut to"):
            select_rows(frame, chosen)
        return
    try:
        rows = select_rows(frame, chosen)
    except UserError:
        # What is let back in cannot make up for missing images.
        assert chosen.allow > 0
        assert len(pool[~is_held_out(pool)]) < target
        return
    assert len(rows.train) == len(set(rows.train.tolist())) == target
    assert set(rows.train.tolist()) <= set(pool.index)
    if chosen.holds_out:
        taken = frame.iloc[rows.train]
        pairs = (taken["domain"] == "sketch") & taken["class_name"].isin(HELD_OUT)
        assert not pairs.any()
        assert not is_held_out(frame.iloc[rows.train]).any()


@given(corpora(), st.sampled_from(PROTOCOLS).flatmap(compared))
@settings(max_examples=100, deadline=None)
def test_training_rows_go_by_domain_then_class_as_it_first_appears_then_by_the_list(
    frame: pd.DataFrame, chosen: Mixture
) -> None:
    try:
        rows = select_rows(frame, chosen).train.tolist()
    except UserError:
        assume(False)
    train = frame[frame["split"] == "train"]
    first = {
        key: int(members.index[0])
        for key, members in train.groupby(["domain", "class_name"], sort=False)
    }
    places = [
        (DOMAIN_ORDER.index(domain), first[domain, name], number)
        for number, domain, name in zip(
            rows, frame["domain"].iloc[rows], frame["class_name"].iloc[rows], strict=True
        )
    ]
    assert places == sorted(places)


@given(corpora(), st.sampled_from(PROTOCOLS).flatmap(compared))
@settings(max_examples=100, deadline=None)
def test_validation_is_never_subsampled_and_only_published_bounds_keep_held_out_pairs_in_it(
    frame: pd.DataFrame, chosen: Mixture
) -> None:
    try:
        rows = select_rows(frame, chosen).validation.tolist()
    except UserError:
        assume(False)
    expected = (frame["split"] == "test") & frame["domain"].isin(chosen.domains)
    if chosen.holds_out or chosen.corrected:
        expected &= ~is_held_out(frame)
    assert rows == np.flatnonzero(expected).tolist()


@pytest.mark.parametrize("bound", [{"include_test_classes": True}, {"allow": 0.5}])
def test_corrected_validation_has_no_held_out_pair_where_the_published_has(
    bound: dict[str, Any],
) -> None:
    frame = even(5)
    found = {}
    for protocol in PROTOCOLS:
        rows = select_rows(frame, mixture("cg_high_diversity", protocol=protocol, **bound))
        found[protocol] = int(is_held_out(frame.iloc[rows.validation]).sum())
        # The upper bound still trains on them.
        assert is_held_out(frame.iloc[rows.train]).any()
    assert found == {"published": 4, "corrected": 0}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["cg_low_diversity", "cg_high_diversity", "leave_out_domain"])
def test_without_subsampling_every_image_of_the_pool_is_taken_in_the_lists_order(
    kind: str, protocol: str
) -> None:
    frame = even(5)
    chosen = mixture(kind, subsample=False, protocol=protocol)
    assert select_rows(frame, chosen).train.tolist() == pool_of(frame, chosen).index.tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_many_mixtures_are_chosen_from_one_sorted_index(protocol: str) -> None:
    frame = even(7)
    strata = stratify(frame)
    for seed in (0, 1, 0) if protocol == "corrected" else (None,):
        more = {} if seed is None else {"subsample_seed": seed}
        for kind in ("cg_high_diversity", "leave_out_domain", "cg_high_diversity"):
            chosen = mixture(kind, protocol=protocol, **more)
            one, alone = choose_rows(strata, chosen), select_rows(frame, chosen)
            assert one.train.tolist() == alone.train.tolist()
            assert one.validation.tolist() == alone.validation.tolist()


# --- What is taken: the corrected rule


def corrected(kind: str, **more: Any) -> Mixture:
    return mixture(kind, protocol="corrected", **more)


@given(corpora(), st.integers(0, 150), st.booleans())
@settings(max_examples=150, deadline=None)
def test_corrected_shares_are_the_nearest_whole_numbers_with_one_at_the_least(
    frame: pd.DataFrame, size: int, upper: bool
) -> None:
    bound: dict[str, Any] = {"include_test_classes": True} if upper else {}
    chosen = corrected("cg_high_diversity", **bound, **({"size": size} if size else {}))
    there = groups_of(pool_of(frame, chosen))
    target = size or low_diversity_size(frame)
    assume(0 < target <= there.total())
    quotas = groups_of(frame.iloc[select_rows(frame, chosen).train])
    exact = {key: target * count / there.total() for key, count in there.items()}
    assert quotas.total() == target
    assert all(quotas[key] <= there[key] for key in there)
    if target >= len(there):
        assert all(quotas[key] >= 1 for key in there)
        assert all(quotas[key] < max(exact[key], 1) + 1 for key in there)
    if target < len(there) or min(exact.values()) >= 1:
        assert all(abs(quotas[key] - exact[key]) < 1 for key in there)


def test_the_minimum_of_one_is_paid_by_the_groups_that_are_furthest_above_their_share() -> None:
    sizes = {("real", "ant"): 1, ("real", "bee"): 1, ("real", "cat"): 40, ("real", "dog"): 58}
    chosen = corrected("natural_only", size=10)
    rows = select_rows(corpus(sizes), chosen).train
    # Of 10: 0.1, 0.1, 4.0 and 5.8. The ones of ant and bee leave 8 for cat's 4 and dog's 5.
    quotas = groups_of(corpus(sizes).iloc[rows])
    assert quotas["real", "ant"] == quotas["real", "bee"] == 1
    assert quotas["real", "cat"] + quotas["real", "dog"] == 8
    assert quotas["real", "cat"] == 3


def test_largest_remainders_get_the_rows_that_rounding_down_leaves() -> None:
    sizes = {("real", "ant"): 5, ("real", "bee"): 7, ("real", "cat"): 8}
    frame = corpus(sizes)
    # Of 9: 2.25, 3.15 and 3.6, so the one row left over is cat's.
    rows = select_rows(frame, corrected("natural_only", size=9)).train
    assert groups_of(frame.iloc[rows]) == {
        ("real", "ant"): 2,
        ("real", "bee"): 3,
        ("real", "cat"): 4,
    }


def test_with_fewer_rows_than_groups_the_largest_groups_get_one_each() -> None:
    sizes = {("real", "ant"): 2, ("real", "bee"): 9, ("real", "cat"): 3, ("real", "dog"): 8}
    frame = corpus(sizes)
    rows = select_rows(frame, corrected("natural_only", size=2)).train
    assert groups_of(frame.iloc[rows]) == {("real", "bee"): 1, ("real", "dog"): 1}


@given(
    corpora(),
    st.sampled_from(["cg_low_diversity", "cg_high_diversity"]),
    st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)).map(sorted),
    st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_a_larger_share_let_back_in_contains_a_smaller_one(
    frame: pd.DataFrame, kind: str, shares: list[float], seed: int
) -> None:
    let_in = []
    for allow in shares:
        rows = select_rows(frame, corrected(kind, allow=allow, subsample_seed=seed)).train
        let_in.append(set(rows[is_held_out(frame.iloc[rows]).to_numpy()].tolist()))
    assert let_in[0] <= let_in[1]


def test_corrected_shares_let_back_in_are_of_what_the_upper_bound_has() -> None:
    frame = even(20)
    found = []
    for allow in (0.2, 0.4):
        rows = select_rows(frame, corrected("cg_low_diversity", allow=allow)).train
        assert len(rows) == 120
        found.append(set(rows[is_held_out(frame.iloc[rows]).to_numpy()].tolist()))
    # 120 of 160 rows; of 20 images 0.2 x 15 = 3 and 0.4 x 15 = 6, of two classes.
    assert [len(rows) for rows in found] == [6, 12]
    assert found[0] < found[1]


@given(corpora(), compared("corrected"), st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_corrected_images_do_not_depend_on_the_order_of_the_lists(
    frame: pd.DataFrame, chosen: Mixture, seed: int
) -> None:
    # The images of a class change places with one another.
    shuffled = frame.copy()
    stream = random.Random(seed)
    for _, members in frame.groupby(["domain", "class_name", "split"]):
        texts = list(members["path"])
        stream.shuffle(texts)
        shuffled.loc[members.index, "path"] = texts
    try:
        before = select_rows(frame, chosen)
    except UserError:
        assume(False)
    after = select_rows(shuffled, chosen)
    assert set(paths(shuffled, after.train)) == set(paths(frame, before.train))


def test_corrected_images_of_a_class_do_not_depend_on_other_classes() -> None:
    frame = even(30)
    without = frame[(frame["class_name"] != "cat") | (frame["domain"] == "sketch")]
    without = without.reset_index(drop=True)
    chosen = corrected("natural_only", size=40)
    fewer = corrected("natural_only", size=30)

    def dogs(of: pd.DataFrame, rows: MixtureRows) -> set[str]:
        return {path for path in paths(of, rows.train) if "/dog/" in path}

    assert len(dogs(frame, select_rows(frame, chosen))) == 10
    assert dogs(frame, select_rows(frame, chosen)) == dogs(without, select_rows(without, fewer))


def test_corrected_subsamples_are_random_and_follow_their_seed() -> None:
    frame = even(40)
    first, again, other = (
        paths(frame, select_rows(frame, corrected("cg_high_diversity", subsample_seed=seed)).train)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert len(first) == len(other)
    assert set(first) != set(other)
    unsaid = paths(frame, select_rows(frame, corrected("cg_high_diversity")).train)
    zero = corrected("cg_high_diversity", subsample_seed=0)
    assert unsaid == paths(frame, select_rows(frame, zero).train)
    published = paths(frame, select_rows(frame, mixture("cg_high_diversity")).train)
    assert set(published) != set(first)


def test_every_image_of_a_class_is_as_likely_to_be_taken() -> None:
    frame = corpus({("real", "ant"): 10})
    counts: Counter[str] = Counter()
    for seed in range(400):
        chosen = corrected("natural_only", size=3, subsample_seed=seed)
        counts.update(paths(frame, select_rows(frame, chosen).train))
    # 120 expected of each; five standard deviations are 46.
    assert len(counts) == 10
    assert all(abs(count - 120) < 46 for count in counts.values())


# --- What is taken: dose and size


@given(corpora(), st.sampled_from(PROTOCOLS), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_matched_dose_is_that_of_the_low_diversity_mixture_class_by_class(
    frame: pd.DataFrame, protocol: str, upper: bool, listed: bool
) -> None:
    more: dict[str, Any] = {"protocol": protocol} | (
        {"include_test_classes": True} if upper else {}
    )
    domains = {"domains": ["clipart", "painting", "sketch"]} if listed else {}
    kind = "domains" if listed else "cg_high_diversity"
    chosen = mixture(kind, dose_matched=True, **domains, **more)
    low = select_rows(frame, mixture("cg_low_diversity", **more)).train
    sketches = groups_of(frame.iloc[low][frame["domain"].iloc[low] == "sketch"])
    pool = pool_of(frame, chosen)
    others = int((pool["domain"] != "sketch").sum())
    if others < len(low) - sketches.total():
        with pytest.raises(UserError, match=r"mixtures\.m: "):
            select_rows(frame, chosen)
        return
    rows = select_rows(frame, chosen).train
    assert len(rows) == len(low)
    of_sketch = frame.iloc[rows][frame["domain"].iloc[rows] == "sketch"]
    assert groups_of(of_sketch) == sketches
    assert [path for path in paths(frame, low) if path.startswith("sketch")] == list(
        of_sketch["path"]
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_high_diversity_without_a_matched_dose_has_fewer_images_of_the_test_domain(
    protocol: str,
) -> None:
    frame = even(10)
    doses = []
    for more in ({}, {"dose_matched": True}):
        rows = select_rows(frame, mixture("cg_high_diversity", protocol=protocol, **more)).train
        assert len(rows) == 60
        doses.append(int((frame["domain"].iloc[rows] == "sketch").sum()))
    # The low-diversity mixture has the 2 classes that are not held out x 10.
    assert doses[0] < doses[1] == 20


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_matched_dose_includes_the_share_let_back_in(protocol: str) -> None:
    frame = even(20)
    bound = {"allow": 0.5, "protocol": protocol}
    counts = [
        groups_of(frame.iloc[select_rows(frame, chosen).train])
        for chosen in (
            mixture("cg_low_diversity", **bound),
            mixture("cg_high_diversity", dose_matched=True, **bound),
        )
    ]
    for name in CLASSES:
        assert counts[0]["sketch", name] == counts[1]["sketch", name]
    assert counts[0]["sketch", "ant"] == 8
    assert counts[0].total() == counts[1].total() == 120


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("size", [1, 7, 31, 139, 140])
def test_a_size_that_is_given_is_met(protocol: str, size: int) -> None:
    frame = even(10)
    chosen = mixture("cg_high_diversity", size=size, protocol=protocol)
    rows = select_rows(frame, chosen).train
    assert len(rows) == len(set(rows.tolist())) == size
    assert not is_held_out(frame.iloc[rows]).any()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_natural_only_is_cut_where_a_size_is_given(protocol: str) -> None:
    frame = even(10)
    rows = select_rows(frame, mixture("natural_only", size=13, protocol=protocol)).train
    assert len(rows) == 13
    assert set(frame["domain"].iloc[rows]) == {"real"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_size_above_the_pool_says_which_mixture_and_how_many_there_are(protocol: str) -> None:
    chosen = mixture("cg_low_diversity", size=61, protocol=protocol)
    message = r"mixtures\.m: 60 images in domains real, sketch, fewer than the 61"
    with pytest.raises(UserError, match=message):
        select_rows(even(10), chosen)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pool_smaller_than_the_target_says_which_mixture(protocol: str) -> None:
    sizes = {("real", name): 3 for name in ("ant", "cat")} | {
        ("sketch", name): 9 for name in ("ant", "cat")
    }
    sizes |= {("clipart", "ant"): 1, ("painting", "ant"): 1}
    with pytest.raises(UserError, match=r"mixtures\.m: 8 images .* fewer than the 15"):
        select_rows(corpus(sizes), mixture("leave_out_domain", held_out=["ant"], protocol=protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_share_let_back_in_cannot_stand_in_for_missing_images(protocol: str) -> None:
    sizes = {("real", "cat"): 20, ("sketch", "ant"): 30, ("sketch", "cat"): 2}
    sizes |= {("clipart", "cat"): 1, ("painting", "cat"): 1}
    chosen = mixture(
        "domains", domains=["sketch", "clipart"], allow=0.1, held_out=["ant"], protocol=protocol
    )
    with pytest.raises(UserError, match=r"mixtures\.m: .* there are 3"):
        select_rows(corpus(sizes), chosen)


# --- What a mixture is


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, {"protocol": "published", "captions": "standard", "base": None, "allow": 0.0}),
        ({}, {"dose_matched": False, "size": None, "subsample_seed": 0, "subsample": True}),
        ({}, {"add_sketches": False, "mix_sketches": None, "include_test_classes": False}),
        ({"protocol": "corrected"}, {"protocol": "corrected", "corrected": True}),
        ({"protocol": "published"}, {"corrected": False}),
        ({"base": "cc3m"}, {"base": "cc3m"}),
        ({"base": "none"}, {"base": "none"}),
        ({"base": None}, {"base": None}),
        ({"dose_matched": True}, {"dose_matched": True}),
        ({"size": 1}, {"size": 1, "subsample": True}),
        ({"kind": "natural_only"}, {"subsample": False, "holds_out": False}),
        ({"kind": "natural_only", "size": 5}, {"size": 5, "subsample": True}),
        ({"protocol": "corrected", "subsample_seed": 3}, {"subsample_seed": 3}),
        ({"protocol": "published", "subsample_seed": 0}, {"subsample_seed": 0}),
        ({"add_sketches": True}, {"add_sketches": True, "takes_sketches": True}),
        ({"mix_sketches": 0.3}, {"mix_sketches": 0.3, "takes_sketches": True}),
        ({"mix_sketches": "one"}, {"mix_sketches": "one", "takes_sketches": True}),
        ({"mix_sketches": None}, {"mix_sketches": None, "takes_sketches": False}),
        ({"allow": 0.25}, {"allow": 0.25, "holds_out": False}),
        ({"include_test_classes": True}, {"holds_out": False}),
        ({"captions": "aligned"}, {"captions": "aligned", "holds_out": True}),
        ({"test_domain": "clipart"}, {"test_domain": "clipart"}),
    ],
)
def test_each_key_of_a_mixture_says_what_it_is(
    params: dict[str, Any], expected: dict[str, Any]
) -> None:
    chosen = mixture_from_params("m", {"kind": "cg_high_diversity", **params}, DEFAULTS, DOMAINS)
    assert {name: getattr(chosen, name) for name in expected} == expected


def test_the_study_s_held_out_classes_go_by_one_word() -> None:
    chosen = mixture("cg_low_diversity", held_out="published")
    assert len(chosen.held_out) == 15
    assert {"aircraft carrier", "traffic light"} <= set(chosen.held_out)
    defaults = {**DEFAULTS, "held_out": "published"}
    by_default = mixture_from_params("m", {"kind": "cg_low_diversity"}, defaults, DOMAINS)
    assert by_default.held_out == chosen.held_out


def test_the_low_diversity_mixture_of_another_keeps_its_settings_but_size_and_dose() -> None:
    chosen = corrected(
        "domains",
        domains=["clipart", "sketch"],
        size=9,
        dose_matched=True,
        include_test_classes=True,
        subsample_seed=4,
    )
    assert chosen.low_diversity() == corrected(
        "cg_low_diversity", include_test_classes=True, subsample_seed=4
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kind": "cg_lowdiversity"}, r"mixtures\.m\.kind.*'cg_lowdiversity'.*did you mean"),
        ({"kind": None}, r"mixtures\.m\.kind.*None.*natural_only"),
        ({"alow": 0.1}, r"mixtures\.m.*'alow'.*did you mean 'allow'"),
        ({"test_domain": "sketsh"}, r"mixtures\.m\.test_domain.*'sketsh'.*did you mean 'sketch'"),
        ({"test_domain": "real"}, r"test_domain: 'real'.*natural domain.*clipart, painting, sk"),
        ({"held_out": ["ant", "ant"]}, r"mixtures\.m\.held_out.*'ant' is listed twice"),
        ({"held_out": "ant"}, r"held_out: is 'ant'.*list of class names, or 'published'"),
        ({"held_out": []}, r"held_out: is \[\].*list of class names"),
        ({"held_out": 3}, r"held_out: is 3.*list of class names"),
        ({"held_out": ["ent"]}, r"held_out.*'ent'.*did you mean 'ant'"),
        ({"held_out": "published"}, r"held_out.*unknown class 'aircraft carrier'.*ant, bee"),
        ({"domains": ["real"]}, r"mixtures\.m\.domains: only kind 'domains'"),
        ({"kind": "domains"}, r"mixtures\.m\.domains: is None.*needs a list of domains"),
        ({"kind": "domains", "domains": "real"}, r"domains: is 'real'.*needs a list"),
        ({"kind": "domains", "domains": []}, r"domains: is \[\].*needs a list"),
        ({"kind": "domains", "domains": ["reel"]}, "'reel'.*did you mean 'real'"),
        ({"subsample": 1}, r"mixtures\.m\.subsample: is 1; allowed: true, false"),
        ({"include_test_classes": "yes"}, r"include_test_classes: is 'yes'; allowed: true, false"),
        ({"dose_matched": "yes"}, r"mixtures\.m\.dose_matched: is 'yes'; allowed: true, false"),
        ({"dose_matched": None}, r"mixtures\.m\.dose_matched: is None; allowed: true, false"),
        ({"add_sketches": 1}, r"mixtures\.m\.add_sketches: is 1; allowed: true, false"),
        ({"captions": "plain"}, r"mixtures\.m\.captions.*'plain'.*standard, aligned"),
        ({"captions": ["aligned"]}, r"mixtures\.m\.captions.*standard, aligned"),
        ({"protocol": "publised"}, r"mixtures\.m\.protocol.*'publised'.*did you mean 'published'"),
        ({"protocol": True}, r"mixtures\.m\.protocol.*True.*published, corrected"),
        ({"protocol": None}, r"mixtures\.m\.protocol.*None.*published, corrected"),
        ({"base": 3}, r"mixtures\.m\.base: is 3; allowed: the name of a base set, or 'none'"),
        ({"base": False}, r"mixtures\.m\.base: is False; allowed: the name of a base set"),
        ({"size": 0}, r"mixtures\.m\.size: is 0; allowed: a whole number from 1"),
        ({"size": -5}, r"mixtures\.m\.size: is -5; allowed: a whole number from 1"),
        ({"size": 2.0}, r"mixtures\.m\.size: is 2\.0; allowed: a whole number from 1"),
        ({"size": "9"}, r"mixtures\.m\.size: is '9'; allowed: a whole number from 1"),
        ({"size": True}, r"mixtures\.m\.size: is True; allowed: a whole number from 1"),
        ({"size": None}, r"mixtures\.m\.size: is None; allowed: a whole number from 1"),
        *[
            (
                {"protocol": "corrected", "subsample_seed": value},
                rf"mixtures\.m\.subsample_seed: is {shown}; allowed: a whole number from 0",
            )
            for value, shown in (
                (-1, "-1"),
                (1.0, r"1\.0"),
                ("1", "'1'"),
                (True, "True"),
                (None, "None"),
            )
        ],
        *[
            (
                {"allow": value},
                rf"mixtures\.m\.allow: is {shown}; allowed: a share between 0 and 1.*"
                "include_test_classes: true holds nothing out",
            )
            for value, shown in (
                (0, "0"),
                (0.0, r"0\.0"),
                (1, "1"),
                (1.0, r"1\.0"),
                (-0.1, r"-0\.1"),
                (1.5, r"1\.5"),
                (True, "True"),
                (False, "False"),
                ("0.2", r"'0\.2'"),
                (float("nan"), "nan"),
                (None, "None"),
            )
        ],
        *[
            (
                {"mix_sketches": value},
                rf"mixtures\.m\.mix_sketches: is {shown}; allowed: a share between 0 and 1, or one",
            )
            for value, shown in (
                (0, "0"),
                (1, "1"),
                (1.0, r"1\.0"),
                (-0.5, r"-0\.5"),
                (True, "True"),
                (False, "False"),
                ("two", "'two'"),
                ("0.5", r"'0\.5'"),
                (float("nan"), "nan"),
                ([0.5], r"\[0\.5\]"),
            )
        ],
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(
    params: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        mixture_from_params(
            "m", {"kind": "cg_high_diversity", **params}, DEFAULTS, DOMAINS, CLASSES
        )


def test_a_seed_that_the_hash_cannot_take_is_refused_with_the_parameters() -> None:
    corrected("cg_high_diversity", subsample_seed=2**64 - 1)
    with pytest.raises(UserError, match=r"mixtures\.m\.subsample_seed: is 18446744073709551616"):
        corrected("cg_high_diversity", subsample_seed=2**64)


@pytest.mark.parametrize("params", ["cg_low_diversity", None, ["kind"], 3])
def test_a_mixture_that_is_no_mapping_is_named(params: Any) -> None:
    with pytest.raises(UserError, match=r"mixtures\.m: is .*, not a mapping with a 'kind'"):
        mixture_from_params("m", params, DEFAULTS, DOMAINS)


LEFT_OUT = {"kind": "leave_out_domain"}
LISTED = {"kind": "domains", "domains": ["real", "clipart"]}
WHOLE = {"subsample": False}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"allow": 0.1, **WHOLE}, r"allow: is 0\.1.*means nothing with subsample: false"),
        (
            {"allow": 0.1, "include_test_classes": True},
            r"allow: is 0\.1.*means nothing with include_test_classes",
        ),
        ({"allow": 0.1, **LEFT_OUT}, r"allow: is 0\.1.*without domain 'sketch'"),
        ({"allow": 0.1, **LISTED}, r"allow: is 0\.1.*without domain 'sketch'"),
        ({"allow": 0.1, "kind": "natural_only", "size": 9}, r"allow.*without domain 'sketch'"),
        ({"dose_matched": True, **WHOLE}, "dose_matched: is True.*with subsample: false"),
        ({"dose_matched": True, **LEFT_OUT}, "dose_matched: is True.*without domain 'sketch'"),
        ({"dose_matched": True, **LISTED}, "dose_matched: is True.*without domain 'sketch'"),
        (
            {"dose_matched": True, "kind": "cg_low_diversity"},
            "dose_matched: is True.*for kind cg_low_diversity",
        ),
        ({"size": 9, **WHOLE}, "size: is 9.*with subsample: false"),
        ({"subsample_seed": 1}, "subsample_seed: is 1.*with protocol: published"),
        (
            {"subsample_seed": 1, "protocol": "published"},
            "subsample_seed: is 1.*with protocol: published",
        ),
        ({"mix_sketches": 0.5, "add_sketches": True}, r"mix_sketches: is 0\.5.*with add_sketches"),
        (
            {"mix_sketches": "one", "add_sketches": True},
            "mix_sketches: is 'one'.*with add_sketches",
        ),
        ({"mix_sketches": 0.5, **LEFT_OUT}, r"mix_sketches: is 0\.5.*without domain 'sketch'"),
        (
            {"mix_sketches": "one", "kind": "natural_only"},
            "mix_sketches: is 'one'.*without domain 'sketch'",
        ),
    ],
)
def test_a_key_that_another_makes_meaningless_is_refused(
    params: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"mixtures\.m\.{message}"):
        mixture_from_params("m", {"kind": "cg_high_diversity", **params}, DEFAULTS, DOMAINS)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"test_domain": "sketsh"}, r"^test\.test_domain.*'sketsh'.*did you mean 'sketch'"),
        ({"test_domain": "real"}, r"^test\.test_domain: 'real' is the natural domain"),
        ({"test_domain": None}, r"^test\.test_domain.*None.*clipart, painting, real, sketch"),
        ({"held_out": None}, r"^test\.held_out: is None.*'published' for the study's 15"),
        ({"held_out": "ant"}, r"^test\.held_out: is 'ant'"),
        ({"held_out": ["ent"]}, r"^test\.held_out.*'ent'.*did you mean 'ant'"),
        ({"held_out": ["bee", "bee"]}, r"^test\.held_out: class 'bee' is listed twice"),
    ],
)
def test_a_mistake_in_the_defaults_is_reported_where_it_stands(
    defaults: dict[str, Any], message: str
) -> None:
    check_defaults(DEFAULTS, DOMAINS, CLASSES)
    with pytest.raises(UserError, match=message):
        check_defaults({**DEFAULTS, **defaults}, DOMAINS, CLASSES)


def test_defaults_may_be_checked_under_another_name() -> None:
    with pytest.raises(UserError, match=r"^mine\.test_domain"):
        check_defaults({**DEFAULTS, "test_domain": "x"}, DOMAINS, CLASSES, where="mine")
