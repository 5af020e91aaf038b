"""Mixtures hold exactly what they should: the published rows, and never a held-out pair."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.corpora.captions import DOMAIN_ORDER, SPLIT_ORDER, class_name_of
from clip_mixtures.errors import UserError
from clip_mixtures.mixtures.audit import check_held_out, check_split, held_out_leaks
from clip_mixtures.mixtures.build import count_table, read_rows, select_rows, write_rows
from clip_mixtures.mixtures.spec import Mixture, mixture_from_params

DOMAINS = ("clipart", "painting", "real", "sketch")
HELD_OUT = ["ant", "bee"]
DEFAULTS = {"test_domain": "sketch", "held_out": HELD_OUT}


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


def even(count: int, classes: tuple[str, ...] = ("ant", "bee", "cat", "dog")) -> pd.DataFrame:
    return corpus({(domain, name): count for domain in DOMAINS for name in classes})


def mixture(kind: str, **more: Any) -> Mixture:
    return mixture_from_params("m", {"kind": kind, **more}, DEFAULTS, DOMAINS)


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
    held_out = (frame["domain"] == "sketch") & frame["class_name"].isin(HELD_OUT)
    assert not held_out.iloc[none.train].any()
    # 120 of 160 rows; half of that share of 20 images is ceil(7.5) = 8 a class.
    assert held_out.iloc[some.train].sum() == 16
    assert len(some.train) == len(none.train) == 120


def test_a_pool_smaller_than_the_target_says_which_mixture() -> None:
    sizes = {("real", name): 3 for name in ("ant", "cat")} | {
        ("sketch", name): 9 for name in ("ant", "cat")
    }
    sizes |= {("clipart", "ant"): 1, ("painting", "ant"): 1}
    with pytest.raises(UserError, match=r"mixtures\.m: .* fewer than the 15"):
        select_rows(corpus(sizes), mixture("leave_out_domain", held_out=["ant"]))


def test_a_share_let_back_in_cannot_stand_in_for_missing_images() -> None:
    sizes = {("real", "cat"): 20, ("sketch", "ant"): 30, ("sketch", "cat"): 2}
    sizes |= {("clipart", "cat"): 1, ("painting", "cat"): 1}
    chosen = mixture("domains", domains=["sketch", "clipart"], allow=0.1, held_out=["ant"])
    with pytest.raises(UserError, match="there are only 3"):
        select_rows(corpus(sizes), chosen)


@given(
    st.lists(st.integers(1, 12), min_size=16, max_size=16),
    st.sampled_from(["cg_low_diversity", "cg_high_diversity", "leave_out_domain"]),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_class_sizes_nothing_leaks_and_the_size_is_met(
    sizes: list[int], kind: str
) -> None:
    pairs = [(domain, name) for domain in DOMAINS for name in ("ant", "bee", "cat", "dog")]
    frame = corpus(dict(zip(pairs, sizes, strict=True)))
    chosen = mixture(kind)
    train = frame["split"] == "train"
    held_out = (frame["domain"] == "sketch") & frame["class_name"].isin(HELD_OUT)
    target = int((train & frame["domain"].isin(["real", "sketch"]) & ~held_out).sum())
    pool = int((train & frame["domain"].isin(chosen.domains) & ~held_out).sum())
    if pool < target:
        with pytest.raises(UserError):
            select_rows(frame, chosen)
        return
    rows = select_rows(frame, chosen)
    assert len(rows.train) == len(set(rows.train.tolist())) == target
    assert train.iloc[rows.train].all()
    assert not train.iloc[rows.validation].any()
    assert held_out_leaks(frame, rows.train, chosen) == []


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kind": "cg_lowdiversity"}, r"mixtures\.m\.kind.*'cg_lowdiversity'.*did you mean"),
        ({"kind": "cg_low_diversity", "alow": 0.1}, r"mixtures\.m.*'alow'.*did you mean 'allow'"),
        ({"kind": "cg_low_diversity", "test_domain": "sketsh"}, r"test_domain.*'sketch'"),
        ({"kind": "cg_low_diversity", "test_domain": "real"}, "natural domain"),
        ({"kind": "cg_low_diversity", "allow": -0.1}, r"allow.*-0\.1.*0 to 1"),
        ({"kind": "cg_low_diversity", "allow": True}, "allow"),
        ({"kind": "cg_low_diversity", "allow": 0.1, "subsample": False}, "subsample: false makes"),
        (
            {"kind": "cg_low_diversity", "allow": 0.1, "include_test_classes": True},
            "include_test_classes makes",
        ),
        ({"kind": "leave_out_domain", "allow": 0.1}, "no domain sketch makes"),
        ({"kind": "cg_low_diversity", "held_out": ["ant", "ant"]}, "'ant' is listed twice"),
        ({"kind": "cg_low_diversity", "held_out": "ant"}, "not a list"),
        ({"kind": "cg_low_diversity", "held_out": ["ent"]}, "'ent'.*did you mean 'ant'"),
        ({"kind": "cg_low_diversity", "domains": ["real"]}, "only kind 'domains'"),
        ({"kind": "domains"}, "needs a list of domains"),
        ({"kind": "domains", "domains": ["reel"]}, "'reel'.*did you mean 'real'"),
        ({"kind": "cg_low_diversity", "subsample": 1}, "true, false"),
        ({"kind": "cg_low_diversity", "captions": "plain"}, "standard, aligned"),
        ("cg_low_diversity", "not a mapping"),
    ],
)
def test_a_mistake_in_a_mixture_is_named(params: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mixture_from_params("m", params, DEFAULTS, DOMAINS, ["ant", "bee", "cat", "dog"])


def test_the_audit_finds_a_planted_image_by_its_label_and_by_its_folder() -> None:
    frame = even(3)
    chosen = mixture("cg_high_diversity")
    clean = select_rows(frame, chosen).train
    held_out = np.flatnonzero(
        (frame["domain"] == "sketch") & (frame["class_name"] == "ant") & (frame["split"] == "train")
    )
    with pytest.raises(UserError, match=r"1 training images.*sketch/ant/train0"):
        check_held_out(frame, np.append(clean, held_out[0]), chosen)
    # A wrong label must not hide the image: its folder still says what it is.
    mislabelled = frame.copy()
    mislabelled.loc[held_out[1], "class_name"] = "cat"
    with pytest.raises(UserError, match="sketch/ant/train1"):
        check_held_out(mislabelled, np.append(clean, held_out[1]), chosen)
    check_held_out(frame, clean, chosen)


def test_the_audit_finds_a_file_on_both_sides() -> None:
    frame = even(2)
    train, test = frame[frame["split"] == "train"], frame[frame["split"] == "test"]
    check_split(train, test)
    with pytest.raises(UserError, match=test["path"].iloc[0]):
        check_split(pd.concat([train, test.iloc[:1]]), test)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = {"base": np.arange(3), "domains": np.array([9, 2, 5])}
    write_rows(tmp_path / "train.parquet", rows)
    back = read_rows(tmp_path / "train.parquet")
    assert list(back) == ["base", "domains"]
    assert back["domains"].tolist() == [9, 2, 5]
    (tmp_path / "train.parquet").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"train\.parquet"):
        read_rows(tmp_path / "train.parquet")


def test_the_rows_are_the_published_ones(shared_file: Callable[[str], Path]) -> None:
    oracle = json.loads(shared_file("oracle/mixtures.json").read_text())["mixtures"]
    facts = pd.read_csv(shared_file("class_facts.csv"))
    held_out = [name.replace("_", " ") for name in facts.loc[facts["held_out"] == 1, "folder"]]
    parts = []
    for domain in DOMAIN_ORDER:
        for split in SPLIT_ORDER:
            listed = shared_file(f"domainnet_lists/{domain}_{split}.txt.xz")
            with lzma.open(listed, "rt") as file:
                paths = [line.rsplit(" ", 1)[0] for line in file]
            names = [class_name_of(path) for path in paths]
            parts.append(
                pd.DataFrame({"path": paths, "domain": domain, "class_name": names, "split": split})
            )
    frame = pd.concat(parts, ignore_index=True)
    for published in oracle:
        params = _published_params(published, held_out)
        rows = select_rows(
            frame, mixture_from_params("published", params, {}, list(DOMAIN_ORDER), None)
        )
        for chosen, split in ((rows.train, "train"), (rows.validation, "val")):
            expected = published["files"][f"dn-captions-{split}"]
            text = "".join(f"{path}\n" for path in frame["path"].iloc[chosen])
            digest = hashlib.sha256(text.encode()).hexdigest()
            assert len(chosen) == expected["rows"], (published["identifier"], split)
            assert digest == expected["sha256_paths_stripped"], (published["identifier"], split)


def _published_params(published: dict[str, Any], held_out: list[str]) -> dict[str, Any]:
    options = published["options"]
    params = {"held_out": held_out, "test_domain": published["test_domain"] or "sketch"}
    if "--real_only" in options:
        return {**params, "kind": "natural_only"}
    if "--single_domain" in options:
        params["kind"] = "cg_low_diversity"
    elif "--exclude_domains" in options:
        params["kind"] = "leave_out_domain"
    else:
        params["kind"] = "cg_high_diversity"
    if "--pseudo_exclude" in options:
        params["include_test_classes"] = True
    if "allow" in published["identifier"]:
        params["allow"] = float(published["identifier"].rsplit("allow", 1)[1])
    return params
