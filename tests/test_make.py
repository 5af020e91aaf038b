"""A mixture's folder holds what its definition says, in the published order, or is no mixture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from corpora_factory import Corpora, make_domainnet, make_tsv_base, write_indices

from clip_mixtures.corpora.captions import DOMAIN_ORDER
from clip_mixtures.corpora.classes import published_held_out
from clip_mixtures.corpora.domainnet import index_domainnet
from clip_mixtures.errors import UserError
from clip_mixtures.index import Index, base_sets, read_index, write_index
from clip_mixtures.mixtures import make
from clip_mixtures.mixtures.build import select_rows
from clip_mixtures.mixtures.make import make_mixture
from clip_mixtures.mixtures.published import params_of
from clip_mixtures.mixtures.spec import Checks, mixture_from_params
from clip_mixtures.mixtures.store import read_mixture


def facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "mixture.json").read_text())
    return facts


def test_base_rows_come_first_then_the_domains_then_imagenet_sketch(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    mixture = corpora.mixture(add_sketches=True)
    make_mixture(indices, mixture, tmp_path / "made")
    stored = read_mixture(tmp_path / "made")
    rows = stored.rows("train")
    assert list(rows) == ["base-tiny", "domains", "imagenet_sketch"]
    assert rows["base-tiny"].tolist() == [0, 1, 2]
    assert rows["imagenet_sketch"].tolist() == [0, 1, 2, 3]
    assert stored.mixture == mixture
    # Each image of ImageNet-Sketch stands in the place of one of the domains'.
    assert len(rows["domains"]) == 3 * 3 * 4 - 4 - 4


@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("params", [{"kind": "leave_out_domain"}, {}])
def test_sketches_of_a_held_out_class_are_not_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any], protocol: str
) -> None:
    # A class that ImageNet has and DomainNet has not, in a corpus of other classes.
    monkeypatch.setattr(Corpora, "classes", ("ant", "bee", "Fire salamander"))
    corpora = Corpora(tmp_path)
    both = {"protocol": protocol, "add_sketches": True, "held_out": ["Fire salamander"]}
    held_out = corpora.mixture(**params, **both)
    informed = corpora.mixture(**both, include_test_classes=True)
    other = corpora.mixture(**params, **both | {"held_out": ["ant"]})
    rows = {}
    for mixture, name in ((held_out, "held_out"), (informed, "informed"), (other, "other")):
        make_mixture(corpora.index(), mixture, tmp_path / name)
        rows[name] = read_mixture(tmp_path / name).rows("train")["imagenet_sketch"].tolist()
    # Two of each of two synsets, fire salamanders first.
    assert rows == {"held_out": [2, 3], "informed": [0, 1, 2, 3], "other": [0, 1, 2, 3]}


def test_without_imagenet_sketch_the_rows_are_those_of_the_rule(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    mixture = corpora.mixture(kind="cg_high_diversity", subsample=True)
    make_mixture(indices, mixture, tmp_path / "made")
    stored = read_mixture(tmp_path / "made")
    frame = read_index(indices / "domains.parquet").frame
    chosen = select_rows(frame, mixture)
    np.testing.assert_array_equal(stored.rows("train")["domains"], chosen.train)
    np.testing.assert_array_equal(stored.rows("validation")["domains"], chosen.validation)
    assert "imagenet_sketch" not in stored.rows("train")
    assert "imagenet_sketch" not in stored.indices


def test_a_base_set_gives_its_test_images_to_the_validation(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    base = read_index(indices / "base-tiny.parquet")
    frame = base.frame.assign(split=["train", "test", "train"])
    write_index(indices / "base-tiny.parquet", Index(frame, base.root))
    make_mixture(indices, corpora.mixture(), tmp_path / "made")
    stored = read_mixture(tmp_path / "made")
    assert stored.rows("train")["base-tiny"].tolist() == [0, 2]
    assert stored.rows("validation")["base-tiny"].tolist() == [1]
    assert list(stored.rows("validation")) == ["base-tiny", "domains"]


# ---- which base set


def with_bases(corpora: Corpora, *names: str) -> Path:
    """Index the corpora with these base sets in the place of their own."""
    indices = corpora.index()
    (indices / "base-tiny.parquet").unlink()
    bases = {f"base-{name}": make_tsv_base(corpora.root / name, [name] * 2) for name in names}
    return write_indices(indices, bases)


@pytest.mark.parametrize(
    ("there", "base", "taken"),
    [
        ([], None, None),
        ([], "none", None),
        (["cc3m"], None, "base-cc3m"),
        (["cc3m"], "cc3m", "base-cc3m"),
        (["cc3m"], "none", None),
        (["in-captions", "cc3m"], "in-captions", "base-in-captions"),
        (["in-captions", "cc3m"], "cc3m", "base-cc3m"),
        (["in-captions", "cc3m"], "none", None),
    ],
)
def test_the_base_set_is_the_one_that_is_named_or_the_only_one(
    tmp_path: Path, there: list[str], base: str | None, taken: str | None
) -> None:
    corpora = Corpora(tmp_path)
    indices = with_bases(corpora, *there)
    assert list(base_sets(indices)) == sorted(there)
    said = {} if base is None else {"base": base}
    made = make_mixture(indices, corpora.mixture(**said), tmp_path / "made")
    stored = read_mixture(tmp_path / "made")
    assert list(stored.rows("train")) == ([taken] if taken else []) + ["domains"]
    assert set(stored.indices) == set(stored.rows("train"))
    assert ("base" in set(made.counts["domain"])) == bool(taken)


@pytest.mark.parametrize(
    ("there", "base", "message"),
    [
        (["cc3m", "cc12m"], None, r"several base sets \(cc12m, cc3m\); say which with `base`"),
        (["cc3m", "cc12m"], "cc3n", r"\.base: unknown base set 'cc3n'; did you mean 'cc3m'\?"),
        (["cc3m"], "tiny", r"'tiny'; .*allowed: cc3m, none"),
        ([], "cc3m", r"'cc3m'; .*allowed: none"),
        (["cc3m"], "base-cc3m", r"did you mean 'cc3m'"),
    ],
)
def test_a_base_set_that_is_not_there_or_not_said_is_refused(
    tmp_path: Path, there: list[str], base: str | None, message: str
) -> None:
    corpora = Corpora(tmp_path)
    indices = with_bases(corpora, *there)
    said = {} if base is None else {"base": base}
    with pytest.raises(UserError, match=rf"^mixtures\.tested.*{message}"):
        make_mixture(indices, corpora.mixture(**said), tmp_path / "made")
    assert not (tmp_path / "made" / "mixture.json").exists()


# ---- unreadable images


def test_unreadable_images_are_left_out_and_counted(
    tmp_path: Path,
) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    mixture = corpora.mixture(add_sketches=True)
    whole = make_mixture(indices, mixture, tmp_path / "whole", corpora.verify())
    assert whole.dropped == {}
    before = read_mixture(tmp_path / "whole")
    frame = read_index(indices / "domains.parquet").frame
    chosen = frame["path"].iloc[before.rows("train")["domains"]]
    spoiled = {
        chosen.iloc[0]: b"",
        chosen.iloc[5]: b"no image",
        "images/b2.png": corpora.file("images/b2.png").read_bytes()[:60],
        "sketch/n01629819/n01629819_0.png": b"\x89PNG",
        # One of the validation set, and two that the mixture does not take.
        "real/ant/test_1.png": b"",
        "sketch/polar_bear/test_0.png": b"",
        "sketch/polar_bear/train_0.png": b"",
    }
    for path, data in spoiled.items():
        corpora.file(path).write_bytes(data)
    made = make_mixture(indices, mixture, tmp_path / "made", corpora.verify())
    assert made.dropped == {"unreadable": 4, "unreadable, of the validation set": 1}
    assert made.audit["dropped"] == facts_of(tmp_path / "made")["dropped"] == made.dropped
    assert sum(made.counts["images"]) == sum(whole.counts["images"]) - 4
    after = read_mixture(tmp_path / "made")
    for split, gone in (("train", 4), ("validation", 1)):
        total = 0
        for name, rows in before.rows(split).items():
            paths = read_index(before.indices[name]).frame["path"]
            kept = [row for row in rows if paths[row] not in spoiled]
            # The others stay, in their order.
            assert after.rows(split)[name].tolist() == kept
            total += len(rows) - len(kept)
        assert total == gone


def test_without_verification_unreadable_images_stay(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    corpora.file("images/b2.png").write_bytes(b"")
    made = make_mixture(indices, corpora.mixture(), tmp_path / "made")
    assert made.dropped == {}
    assert read_mixture(tmp_path / "made").rows("train")["base-tiny"].tolist() == [0, 1, 2]


def test_copies_and_unreadable_images_are_counted_apart(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    tested = corpora.file("sketch/polar_bear/test_0.png")
    corpora.file("images/b0.png").write_bytes(b"")
    corpora.file("images/b1.png").write_bytes(tested.read_bytes())
    corpora.file("real/ant/train_0.png").write_bytes(tested.read_bytes())
    made = make_mixture(
        indices, corpora.mixture(), tmp_path / "made", corpora.verify(), Checks("remove")
    )
    assert made.dropped == {"unreadable": 1, "duplicates of held-out test images": 2}
    assert made.audit["train_images"] == {"base-tiny": 1, "domains": 36 - 4 - 1}


def test_two_empty_files_are_left_out_and_no_leak(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    for path in ("sketch/polar_bear/test_0.png", "real/ant/train_0.png"):
        corpora.file(path).write_bytes(b"")
    made = make_mixture(indices, corpora.mixture(), tmp_path / "made", corpora.verify())
    assert made.dropped == {"unreadable": 1}
    assert made.audit["leaks"] == []


def test_a_verification_of_another_index_is_refused(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path / "one")
    indices = corpora.index()
    other = Corpora(tmp_path / "other", test=3)
    other.index()
    with pytest.raises(UserError, match=r"domains\.parquet: has 63 rows where the index has 54"):
        make_mixture(indices, corpora.mixture(), tmp_path / "made", other.verify())
    assert not (tmp_path / "made" / "mixture.json").exists()


def test_a_verification_that_lacks_an_index_is_refused(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    verification = corpora.verify()
    (verification / "base-tiny.parquet").unlink()
    with pytest.raises(UserError, match=r"base-tiny\.parquet: no such file; verify"):
        make_mixture(indices, corpora.mixture(), tmp_path / "made", verification)
    # What the mixture does not take need not be verified.
    made = make_mixture(indices, corpora.mixture(base="none"), tmp_path / "made", verification)
    assert made.audit["duplicates"]["compared"]


# ---- ImageNet-Sketch


@pytest.mark.parametrize("params", [{"add_sketches": True}, {"mix_sketches": 0.5}])
def test_an_absent_index_of_imagenet_sketch_is_named(tmp_path: Path, params: Any) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    (indices / "imagenet_sketch.parquet").unlink()
    message = r"imagenet_sketch\.parquet: absent, and mixtures\.tested takes ImageNet-Sketch; index"
    with pytest.raises(UserError, match=message):
        make_mixture(indices, corpora.mixture(**params), tmp_path / "made")
    # Mixtures without it do not need it.
    make_mixture(indices, corpora.mixture(), tmp_path / "made")


def test_an_absent_index_of_the_domains_is_named(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    (indices / "domains.parquet").unlink()
    with pytest.raises(UserError, match=r"domains\.parquet: no such index"):
        make_mixture(indices, corpora.mixture(), tmp_path / "made")


# ---- what is written beside the rows


def test_the_counts_are_of_the_training_rows(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    made = make_mixture(corpora.index(), corpora.mixture(add_sketches=True), tmp_path / "made")
    counts = pd.read_csv(tmp_path / "made" / "counts.csv")
    assert list(counts.columns) == ["domain", "group", "images", "classes"]
    pd.testing.assert_frame_equal(counts, made.counts.astype(counts.dtypes))
    domains = ["base", *["painting"] * 2, *["real"] * 2, "sketch", "imagenet_sketch"]
    assert list(counts["domain"]) == domains
    assert counts.iloc[0].to_dict() == {
        "domain": "base", "group": "base", "images": 3, "classes": 0,
    }  # fmt: skip
    # No held-out row of the test domain.
    assert list(counts.loc[counts["domain"] == "sketch", "group"]) == ["seen"]
    stored = read_mixture(tmp_path / "made")
    assert counts["images"].sum() == sum(map(len, stored.rows("train").values()))


@pytest.mark.parametrize(
    ("identifier", "of"),
    [
        ("lso-real-only", ["real"]),
        ("lso-rs-nosketchclasses", ["real", "sketch"]),
        ("lso-cr-noclipartclasses-allow0.4", ["clipart", "real"]),
        ("lso-crs-nosketchclasses-aligned", ["clipart", "real", "sketch"]),
    ],
)
def test_a_published_setting_is_stored_with_its_identifier(
    tmp_path: Path, identifier: str, of: list[str]
) -> None:
    domains = list(DOMAIN_ORDER)
    classes = [*published_held_out(), "zebra"]
    make_domainnet(tmp_path / "domains", domains, classes, train=2, test=1, size=1)
    indices = tmp_path / "indices"
    index = index_domainnet(tmp_path / "domains", domains, images=False)
    write_indices(indices, {"domains": index})
    defaults = {"test_domain": "sketch", "held_out": "published"}
    mixture = mixture_from_params("any-key", params_of(identifier), defaults, domains)
    make_mixture(indices, mixture, tmp_path / "made")
    assert facts_of(tmp_path / "made")["identifier"] == identifier
    assert set(mixture.domains) == set(of)

    for change in ({"protocol": "corrected"}, {"held_out": mixture.held_out[:-1]}, {"size": 30}):
        another = dataclasses.replace(mixture, **change)
        make_mixture(indices, another, tmp_path / "another")
        assert facts_of(tmp_path / "another")["identifier"] is None


def test_a_corpus_of_fewer_domains_has_no_published_setting(tmp_path: Path) -> None:
    domains = ["real", "sketch"]
    classes = [*published_held_out(), "zebra"]
    make_domainnet(tmp_path / "domains", domains, classes, train=2, test=1, size=1)
    index = index_domainnet(tmp_path / "domains", domains, images=False)
    write_indices(tmp_path / "indices", {"domains": index})
    defaults = {"test_domain": "sketch", "held_out": "published"}
    mixture = mixture_from_params("low", {"kind": "cg_low_diversity"}, defaults, domains)
    make_mixture(tmp_path / "indices", mixture, tmp_path / "made")
    # Its captions are others: they depend on the lists of all six.
    assert facts_of(tmp_path / "made")["identifier"] is None


def test_making_a_mixture_again_replaces_it(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()

    def files(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}

    large = corpora.mixture()
    small = corpora.mixture(kind="natural_only", base="none")
    make_mixture(indices, large, tmp_path / "one")
    make_mixture(indices, small, tmp_path / "one")
    make_mixture(indices, small, tmp_path / "two")
    assert files("one") == files("two")
    assert set(files("one")) == {
        "audit.json", "counts.csv", "mixture.json", "train.parquet", "validation.parquet",
    }  # fmt: skip
    make_mixture(indices, large, tmp_path / "one")
    assert files("one") != files("two")
    assert read_mixture(tmp_path / "one").mixture == large


# ---- nothing that looks whole and is not


def leaking(corpora: Corpora, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    tested = corpora.file("sketch/polar_bear/test_0.png").read_bytes()
    corpora.file("real/ant/train_0.png").write_bytes(tested)
    return corpora.verify()


def interrupted_while_counting(corpora: Corpora, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "count_table", stop)
    return None


def interrupted_while_writing(corpora: Corpora, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clip_mixtures.mixtures.store.sha256_file", stop)
    return None


def without_its_base_set(corpora: Corpora, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    (corpora.root / "indices" / "base-tiny.parquet").write_bytes(b"PAR1")
    return None


Fault = Callable[[Corpora, pytest.MonkeyPatch], Path | None]
FAULTS: list[Fault] = [
    leaking, interrupted_while_counting, interrupted_while_writing, without_its_base_set,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("there", [False, True], ids=["a new folder", "over an earlier mixture"])
def test_what_was_not_made_to_the_end_is_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, there: bool
) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    if there:
        make_mixture(indices, corpora.mixture(kind="natural_only"), tmp_path / "made")
    verification = fault(corpora, monkeypatch)
    with pytest.raises((UserError, KeyboardInterrupt)):
        make_mixture(indices, corpora.mixture(), tmp_path / "made", verification)
    assert not (tmp_path / "made" / "mixture.json").exists()
    with pytest.raises(UserError, match=r"mixture\.json: absent"):
        read_mixture(tmp_path / "made")


def test_the_report_of_a_leak_is_that_of_the_refused_mixture(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    indices = corpora.index()
    make_mixture(indices, corpora.mixture(), tmp_path / "made")
    corpora.file("images/b0.png").write_bytes(
        corpora.file("sketch/polar_bear/test_1.png").read_bytes()
    )
    with pytest.raises(UserError, match=r"first 'images/b0\.png'"):
        make_mixture(indices, corpora.mixture(), tmp_path / "made", corpora.verify())
    report = json.loads((tmp_path / "made" / "audit.json").read_text())
    assert report["duplicates"]["exact_held_out"] == 1
    assert len(report["leaks"]) == 1
    assert report["leaks"][0].startswith("1 training images have the bytes of held-out test images")


def test_indices_may_move_together_with_their_mixture(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path / "before")
    make_mixture(corpora.index(), corpora.mixture(), tmp_path / "before" / "made")
    (tmp_path / "before").rename(tmp_path / "after")
    stored = read_mixture(tmp_path / "after" / "made")
    assert stored.indices["domains"].resolve() == tmp_path / "after" / "indices" / "domains.parquet"
