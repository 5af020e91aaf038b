"""The study's 105 settings: their names, what makes them, and their rows byte for byte."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_mixtures.corpora.captions import DOMAIN_ORDER, SPLIT_ORDER, published_captions
from clip_mixtures.corpora.classes import domainnet_classes, published_held_out
from clip_mixtures.corpora.domainnet import index_lists
from clip_mixtures.errors import UserError
from clip_mixtures.mixtures import published_mixture
from clip_mixtures.mixtures.build import MixtureRows, choose_rows, stratify
from clip_mixtures.mixtures.published import (
    Setting,
    identifier_of,
    params_of,
    published_settings,
)
from clip_mixtures.mixtures.spec import Mixture, mixture_from_params

KNOWN = json.loads((Path(__file__).parent / "data" / "published_mixtures.json").read_text())
KNOWN_MIXTURES: dict[str, dict[str, list[Any]]] = KNOWN["mixtures"]
SETTINGS = published_settings()
DEFAULTS = {"test_domain": "sketch", "held_out": "published"}
SHARES = {
    "fiftyp": 0.5,
    "thirtyp": 0.3,
    "twentyfivep": 0.25,
    "tenp": 0.1,
    "fivep": 0.05,
    "onep": 0.01,
    "one": "one",
}


def mixture(key: str = "m", **params: Any) -> Mixture:
    return mixture_from_params(key, params, DEFAULTS, DOMAIN_ORDER)


# --- Names


def test_there_are_105_settings_in_three_groups() -> None:
    groups = Counter(setting.group for setting in SETTINGS)
    assert groups == {
        "default": 27,
        "upper-bound interpolation": 60,
        "domain interpolation": 18,
    }
    assert len({setting.identifier for setting in SETTINGS}) == 105
    assert {setting.identifier for setting in SETTINGS} == set(KNOWN_MIXTURES)


def test_the_names_are_what_the_study_says_of_its_settings() -> None:
    initials = {"clipart": "c", "infograph": "i", "painting": "p", "quickdraw": "q", "sketch": "s"}
    low = {domain: "".join(sorted(letter + "r")) for domain, letter in initials.items()}
    left = {domain: "cipqrs".replace(letter, "") for domain, letter in initials.items()}
    bounds = ("low", "high")
    named = {
        "low": {domain: f"lso-{low[domain]}-no{domain}classes" for domain in initials},
        "high": {domain: f"lso-cipqrs-no{domain}classes" for domain in initials},
    }
    default = {"lso-real-only", "lso-cipqrs-noquickdrawclasses-aligned"}
    default |= {name for bound in bounds for name in named[bound].values()}
    default |= {f"{name}-pseudo" for bound in bounds for name in named[bound].values()}
    default |= {f"lso-{left[domain]}-no{domain}classes" for domain in initials}
    upper = {
        f"{name}-allow{share}"
        for bound in bounds
        for name in named[bound].values()
        for share in ("0.05", "0.1", "0.2", "0.4", "0.6", "0.8")
    }
    # What each leaves out of cipqrs.
    sketch = ["cip", "ciq", "cpq", "ipq", "ip", "iq", "pq", "i", "q"]
    clipart = ["ipq", "ips", "iqs", "pqs", "ip", "pq", "iq", "i", "q"]
    between = {
        f"lso-{''.join(letter for letter in 'cipqrs' if letter not in out)}-no{domain}classes"
        for domain, choices in (("sketch", sketch), ("clipart", clipart))
        for out in choices
    }
    found: dict[str, set[str]] = {}
    for setting in SETTINGS:
        found.setdefault(setting.group, set()).add(setting.identifier)
    assert found == {
        "default": default,
        "upper-bound interpolation": upper,
        "domain interpolation": between,
    }


@pytest.mark.parametrize(
    ("identifier", "params"),
    [
        ("lso-real-only", {"kind": "natural_only"}),
        ("lso-cr-noclipartclasses", {"kind": "cg_low_diversity", "test_domain": "clipart"}),
        ("lso-cipqrs-nosketchclasses", {"kind": "cg_high_diversity", "test_domain": "sketch"}),
        ("lso-cipqr-nosketchclasses", {"kind": "leave_out_domain", "test_domain": "sketch"}),
        (
            "lso-cipqrs-noquickdrawclasses-aligned",
            {"kind": "cg_high_diversity", "test_domain": "quickdraw", "captions": "aligned"},
        ),
        (
            "lso-ir-noinfographclasses-pseudo",
            {
                "kind": "cg_low_diversity",
                "test_domain": "infograph",
                "include_test_classes": True,
            },
        ),
        (
            "lso-pr-nopaintingclasses-allow0.05",
            {"kind": "cg_low_diversity", "test_domain": "painting", "allow": 0.05},
        ),
        (
            "lso-crs-noclipartclasses",
            {"kind": "domains", "test_domain": "clipart", "domains": ["clipart", "real", "sketch"]},
        ),
        (
            "lso-cipqrs-nosketchclasses-nosub",
            {"kind": "cg_high_diversity", "test_domain": "sketch", "subsample": False},
        ),
        (
            "lso-cipqrs-nosketchclasses-nosub-pseudo",
            {
                "kind": "cg_high_diversity",
                "test_domain": "sketch",
                "subsample": False,
                "include_test_classes": True,
            },
        ),
        (
            "lso-real-only-with-in-sketches",
            {"kind": "natural_only", "add_sketches": True},
        ),
        *[
            (
                f"lso-cipqrs-nosketchclasses-with-in-sketches-{name}",
                {"kind": "cg_high_diversity", "test_domain": "sketch", "mix_sketches": share},
            )
            for name, share in SHARES.items()
        ],
    ],
)
def test_a_name_says_what_makes_a_mixture(identifier: str, params: dict[str, Any]) -> None:
    assert params_of(identifier) == params
    assert identifier_of(mixture(**params)) == identifier


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.identifier)
def test_every_setting_and_its_name_lead_to_each_other(setting: Setting) -> None:
    assert params_of(setting.identifier) == setting.params
    assert identifier_of(mixture(**setting.params)) == setting.identifier


@given(
    st.sampled_from(
        [
            {"kind": "cg_low_diversity", "test_domain": "clipart"},
            {"kind": "cg_high_diversity"},
            {"kind": "leave_out_domain", "test_domain": "infograph"},
            {"kind": "domains", "domains": ["sketch", "real", "clipart"]},
            {"kind": "domains", "domains": list(DOMAIN_ORDER)},
            {"kind": "domains", "domains": ["real"]},
        ]
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "captions": st.sampled_from(["standard", "aligned"]),
            "subsample": st.booleans(),
            "include_test_classes": st.booleans(),
            "allow": st.sampled_from([0.05, 0.1, 0.8, 0.123]),
            "add_sketches": st.booleans(),
            "mix_sketches": st.sampled_from([0.5, 0.1, "one"]),
        },
    ),
)
def test_what_has_a_name_is_what_the_name_makes(
    params: dict[str, Any], more: dict[str, Any]
) -> None:
    try:
        chosen = mixture(**{**params, **more})
        identifier = identifier_of(chosen)
    except UserError:
        return
    made = mixture(**params_of(identifier))

    def meaning(of: Mixture) -> tuple[Any, ...]:
        bound = (of.subsample, of.include_test_classes, of.allow)
        return of.test_domain, of.domains, of.captions, *bound, of.add_sketches, of.mix_sketches

    assert meaning(made) == meaning(chosen)


@pytest.mark.parametrize(
    "params",
    [
        {"kind": "cg_high_diversity", "protocol": "corrected"},
        {"kind": "cg_high_diversity", "dose_matched": True},
        {"kind": "cg_high_diversity", "size": 100},
        {"kind": "cg_high_diversity", "held_out": ["ant"]},
        {"kind": "domains", "domains": ["clipart", "sketch"]},
        {"kind": "natural_only", "captions": "aligned"},
        {"kind": "natural_only", "subsample": True},
    ],
)
def test_what_the_study_has_not_has_no_name(params: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"mixtures\.m: no published identifier"):
        identifier_of(mixture(**params))


def test_domains_of_another_corpus_have_no_name() -> None:
    domains = (*DOMAIN_ORDER, "engraving")
    chosen = mixture_from_params("m", {"kind": "cg_high_diversity"}, DEFAULTS, domains)
    with pytest.raises(UserError, match=r"mixtures\.m: no published identifier"):
        identifier_of(chosen)


def test_the_order_of_the_held_out_classes_does_not_matter_to_a_name() -> None:
    backwards = list(reversed(published_held_out()))
    chosen = mixture(kind="cg_low_diversity", held_out=backwards)
    assert identifier_of(chosen) == "lso-rs-nosketchclasses"


def test_a_share_of_sketches_that_the_study_has_not_has_no_name() -> None:
    chosen = mixture(kind="cg_high_diversity", mix_sketches=0.2)
    message = r"mixtures\.m\.mix_sketches: is 0\.2; the study has 0\.5, 0\.25, 0\.3.*one"
    with pytest.raises(UserError, match=message):
        identifier_of(chosen)


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("", r"unknown published mixture ''.*lso-real-only"),
        ("lso-real-onli", "'lso-real-onli'.*did you mean 'lso-real-only'"),
        ("lso-cipqrs-nosketchclass", "did you mean 'lso-cipqrs-nosketchclasses'"),
        ("lso-cipqxrs-nosketchclasses", "did you mean 'lso-cipqrs-nosketchclasses'"),
        ("LSO-REAL-ONLY", "unknown published mixture 'LSO-REAL-ONLY'"),
        ("lso-real-only\n", "unknown published mixture"),
        ("lso-rc-noclipartclasses", "name of this mixture is lso-cr-noclipartclasses"),
        ("lso-crr-noclipartclasses", "name of this mixture is lso-cr-noclipartclasses"),
        ("lso-srqpic-nosketchclasses", "name of this mixture is lso-cipqrs-nosketchclasses"),
        ("lso-ccrs-noclipartclasses", "name of this mixture is lso-crs-noclipartclasses"),
        ("lso-cr-nocartoonclasses", "unknown test domain 'cartoon'.*clipart, infograph"),
        ("lso-cr-nocliparclasses", "unknown test domain 'clipar'; did you mean 'clipart'"),
        ("lso-cr-norealclasses", "unknown test domain 'real'.*clipart, infograph, painting"),
        ("lso-cs-nosketchclasses", "no published identifier.*DomainNet's domains"),
        ("lso-cr-noclipartclasses-allow2", r"allow: is 2\.0; allowed: a share between 0 and 1"),
        ("lso-cr-noclipartclasses-allow0", r"allow: is 0\.0; allowed: a share between 0 and 1"),
        ("lso-cr-noclipartclasses-allow1.0", r"allow: is 1\.0; allowed: a share"),
        ("lso-cr-noclipartclasses-allow0.2.1", r"'0\.2\.1' is no share"),
        ("lso-cr-noclipartclasses-allow.", r"'\.' is no share"),
        ("lso-cr-noclipartclasses-allow0.20", "name of this mixture is .*-allow0.2$"),
        ("lso-cr-noclipartclasses-allow.2", "name of this mixture is .*-allow0.2$"),
        (
            "lso-cr-noclipartclasses-pseudo-allow0.2",
            r"allow: is 0\.2, which means nothing with include_test_classes",
        ),
        (
            "lso-cr-noclipartclasses-nosub-allow0.2",
            r"allow: is 0\.2, which means nothing with subsample: false",
        ),
        ("lso-ipqrs-noclipartclasses-allow0.2", "means nothing without domain 'clipart'"),
        ("lso-cr-noclipartclasses-foo", "unknown ending 'foo'"),
        ("lso-cr-noclipartclasses-tenp", "did you mean 'with-in-sketches-tenp'|ending 'tenp'"),
        ("lso-real-only-aligned", "unknown ending 'aligned'"),
        ("lso-cr-noclipartclasses-aligned-pseudo", "unknown ending 'pseudo'"),
        ("lso-rs-nosketchclasses-with-in-sketches-sixp", "ending 'sixp'.*with-in-sketches-fiftyp"),
        ("lso-real-only-with-in-sketches-tenp", "mix_sketches.*means nothing without domain"),
    ],
)
def test_a_name_with_a_wrong_part_is_refused_and_says_which(identifier: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        params_of(identifier)
    assert identifier in str(raised.value) or repr(identifier) in str(raised.value)


@given(st.text(alphabet="lso-cipqrsnketcharwdj0.28", max_size=30))
def test_no_text_is_taken_for_a_name_by_mistake(text: str) -> None:
    for identifier in (text, f"lso-{text}", f"lso-cipqrs-nosketchclasses{text}"):
        try:
            params = params_of(identifier)
        except UserError:
            continue
        assert identifier_of(mixture(**params)) == identifier


# --- Rows of a small corpus


def small_lists() -> dict[tuple[str, str], list[str]]:
    """List 8 training and 2 test images of three classes in every domain, one of them held out."""
    classes = {"lion": 174, "ant": 6, "The_Eiffel_Tower": 308}
    return {
        (domain, split): [
            f"{domain}/{folder}/{split}_{number}.jpg {label}"
            for folder, label in classes.items()
            for number in range(count)
        ]
        for domain in DOMAIN_ORDER
        for split, count in (("train", 8), ("test", 2))
    }


def test_rows_of_a_small_corpus_are_as_counted_by_hand() -> None:
    lists = small_lists()
    found = published_mixture("lso-rs-nosketchclasses", lists)
    assert list(found) == ["train", "val"]
    train = found["train"]
    assert list(train.columns) == ["path", "label", "domain", "caption"]
    assert train.index.tolist() == list(range(24 + 16))
    assert [(domain, count) for domain, count in Counter(train["domain"]).items()] == [
        ("real", 24),
        ("sketch", 16),
    ]
    assert list(train["path"]) == [
        line.rsplit(" ", 1)[0]
        for line in lists["real", "train"] + lists["sketch", "train"]
        if not line.startswith("sketch/lion")
    ]
    assert pd.api.types.is_integer_dtype(train["label"])
    assert set(zip(train["path"].str.split("/").str[1], train["label"], strict=True)) == {
        ("lion", 174),
        ("ant", 6),
        ("The_Eiffel_Tower", 308),
    }
    assert len(found["val"]) == 6 + 4


@pytest.mark.parametrize("aligned", [False, True])
def test_captions_are_those_of_all_the_lists_together(aligned: bool) -> None:
    lists = small_lists()
    captions = published_captions(lists, aligned)
    expected = {
        line.rsplit(" ", 1)[0]: caption
        for key, texts in captions.items()
        for line, caption in zip(lists[key], texts, strict=True)
    }
    name = "lso-cipqrs-nosketchclasses" + ("-aligned" if aligned else "")
    for frame in published_mixture(name, lists).values():
        assert len(frame)
        assert [expected[path] for path in frame["path"]] == list(frame["caption"])


def test_the_order_in_which_the_lists_are_given_does_not_matter() -> None:
    lists = small_lists()
    forwards = published_mixture("lso-cipqrs-nosketchclasses", lists)
    backwards = published_mixture("lso-cipqrs-nosketchclasses", dict(reversed(lists.items())))
    for split in ("train", "val"):
        pd.testing.assert_frame_equal(forwards[split], backwards[split])


@pytest.mark.parametrize(
    ("identifier", "absent", "message"),
    [
        ("lso-rs-nosketchclasses", ("real", "train"), "no train list of domain 'real'"),
        ("lso-cipqr-nosketchclasses", ("sketch", "train"), "no train list of domain 'sketch'"),
        ("lso-cipqrs-nosketchclasses", ("clipart", "test"), "no test list of domain 'clipart'"),
    ],
)
def test_a_missing_list_is_named(identifier: str, absent: tuple[str, str], message: str) -> None:
    lists = small_lists()
    del lists[absent]
    with pytest.raises(UserError, match=f"{identifier}: {message}"):
        published_mixture(identifier, lists)


def test_lists_that_a_mixture_does_not_need_may_be_absent() -> None:
    lists = {key: lines for key, lines in small_lists().items() if key[0] in ("real", "sketch")}
    assert len(published_mixture("lso-rs-nosketchclasses", lists)["train"]) == 40


def test_a_mixture_with_imagenet_sketch_needs_more_than_the_lists() -> None:
    name = "lso-cipqrs-nosketchclasses-with-in-sketches-tenp"
    with pytest.raises(UserError, match=f"{name}: takes rows of ImageNet-Sketch"):
        published_mixture(name, small_lists())


def test_an_unknown_name_is_refused_whatever_the_lists() -> None:
    with pytest.raises(UserError, match="unknown published mixture 'real-only'"):
        published_mixture("real-only", small_lists())


# --- Rows of DomainNet


@pytest.fixture(scope="module")
def texts(shared_file: Callable[[str], Path]) -> dict[tuple[str, str], bytes]:
    folder = shared_file("domainnet_lists")
    return {
        (domain, split): lzma.decompress((folder / f"{domain}_{split}.txt.xz").read_bytes())
        for domain in DOMAIN_ORDER
        for split in SPLIT_ORDER
    }


@pytest.fixture(scope="module")
def lists(texts: dict[tuple[str, str], bytes]) -> dict[tuple[str, str], list[str]]:
    return {key: text.decode().splitlines() for key, text in texts.items()}


@pytest.fixture(scope="module")
def frame(lists: dict[tuple[str, str], list[str]]) -> pd.DataFrame:
    return index_lists(Path("domains"), lists, images=False).frame


@pytest.fixture(scope="module")
def rows(frame: pd.DataFrame) -> dict[str, MixtureRows]:
    strata = stratify(frame)
    return {
        setting.identifier: choose_rows(strata, mixture(**setting.params)) for setting in SETTINGS
    }


@pytest.fixture(scope="module")
def oracle(shared_file: Callable[[str], Path]) -> dict[str, Any]:
    answers: dict[str, Any] = json.loads(shared_file("oracle/mixtures.json").read_text())
    return answers


def lines_of(texts: pd.Series) -> pa.Array:
    lines = pa.array(texts + "\n", pa.large_binary())
    return lines.combine_chunks() if isinstance(lines, pa.ChunkedArray) else lines


def sha256_of(lines: pa.Array, chosen: npt.NDArray[np.int64], header: str = "") -> str:
    """Hash chosen lines; Arrow joins them, as lists of Python texts would take minutes."""
    taken = lines.take(pa.array(chosen))
    offsets = np.frombuffer(taken.buffers()[1], dtype=np.int64)[: len(taken) + 1]
    digest = hashlib.sha256(header.encode())
    digest.update(memoryview(taken.buffers()[2])[offsets[0] : offsets[-1]])
    return digest.hexdigest()


def test_the_lists_have_the_known_rows_and_bytes(
    texts: dict[tuple[str, str], bytes], oracle: dict[str, Any]
) -> None:
    found = {
        f"{domain}_{split}": (text.count(b"\n"), hashlib.sha256(text).hexdigest())
        for (domain, split), text in texts.items()
    }
    assert found == {
        name: (answer["rows"], answer["sha256"]) for name, answer in oracle["lists"].items()
    }
    stand_ins = {name for name, answer in oracle["lists"].items() if not answer["true"]}
    assert stand_ins == {"quickdraw_train", "real_train"}


def test_the_lists_label_the_classes_as_the_package_does(frame: pd.DataFrame) -> None:
    pairs = frame[["class_id", "class_name"]].drop_duplicates()
    found = {int(label): str(name) for label, name in pairs.itertuples(index=False)}
    assert len(pairs) == 345
    assert found == {entry.label: entry.name for entry in domainnet_classes()}


def test_all_105_settings_are_the_published_ones_byte_for_byte(
    frame: pd.DataFrame, rows: dict[str, MixtureRows]
) -> None:
    assert len(KNOWN_MIXTURES) == 105
    lines = {
        captions: lines_of(frame["path"] + "\t" + frame[column])
        for captions, column in (("standard", "caption"), ("aligned", "aligned_caption"))
    }
    different = []
    for setting in SETTINGS:
        chosen = rows[setting.identifier]
        text = lines[setting.params.get("captions", "standard")]
        for split, numbers in (("train", chosen.train), ("val", chosen.validation)):
            found: list[Any] = [len(numbers), sha256_of(text, numbers, "filepath\ttitle\n")]
            if found != KNOWN_MIXTURES[setting.identifier][split]:
                different.append((setting.identifier, split))
    assert different == []


def test_every_other_known_answer_about_mixtures_is_met(
    frame: pd.DataFrame, rows: dict[str, MixtureRows], oracle: dict[str, Any]
) -> None:
    assert len(oracle["mixtures"]) == 13
    lines = lines_of(frame["path"])
    captioned = lines_of(frame["path"] + "\t" + frame["caption"])
    is_test_class = frame["class_name"].isin(published_held_out()).to_numpy(dtype=bool)
    domains = frame["domain"].to_numpy()

    def per_domain(numbers: npt.NDArray[np.int64]) -> dict[str, int]:
        counts = Counter(domains[numbers])
        return {domain: counts[domain] for domain in DOMAIN_ORDER}

    for answer in oracle["mixtures"]:
        chosen = rows[answer["identifier"]]
        for numbers, split in ((chosen.train, "train"), (chosen.validation, "val")):
            assert answer["files"][f"dn-captions-{split}"] == {
                "rows": len(numbers),
                "sha256_stripped": sha256_of(captioned, numbers, "filepath\ttitle\n"),
                "sha256_paths_stripped": sha256_of(lines, numbers),
                "per_domain": per_domain(numbers),
                "test_class_rows_per_domain": per_domain(numbers[is_test_class[numbers]]),
            }, (answer["identifier"], split)


@pytest.mark.parametrize(
    ("test_domain", "size"),
    [
        ("clipart", 153222),
        ("infograph", 155035),
        ("painting", 168656),
        ("quickdraw", 236406),
        ("sketch", 167166),
    ],
)
def test_all_mixtures_of_a_test_domain_have_one_size(
    rows: dict[str, MixtureRows], test_domain: str, size: int
) -> None:
    of_domain = [name for name in rows if f"-no{test_domain}classes" in name]
    assert len(of_domain) >= 17
    assert {len(rows[name].train) for name in of_domain} == {size}
    assert len(rows["lso-real-only"].train) == 120906


def test_29_published_mixtures_lose_the_only_training_image_of_a_class(
    frame: pd.DataFrame, rows: dict[str, MixtureRows]
) -> None:
    toe = np.flatnonzero(
        (frame["domain"] == "painting")
        & (frame["class_name"] == "toe")
        & (frame["split"] == "train")
    )
    assert len(toe) == 1
    without = [
        setting.identifier
        for setting in SETTINGS
        if "painting" in mixture(**setting.params).domains
        and toe[0] not in rows[setting.identifier].train
    ]
    assert len(without) == 29


@pytest.mark.parametrize("test_domain", ["clipart", "painting", "sketch"])
def test_corrected_mixtures_of_domainnet_have_the_size_and_every_class_of_every_domain(
    frame: pd.DataFrame, test_domain: str
) -> None:
    strata = stratify(frame)
    params = {"kind": "cg_high_diversity", "test_domain": test_domain}
    published = choose_rows(strata, mixture(**params))
    corrected = choose_rows(strata, mixture(**params, protocol="corrected"))
    assert len(corrected.train) == len(published.train)
    assert corrected.validation.tolist() == published.validation.tolist()
    pairs = frame[["domain", "class_name"]].iloc[corrected.train].drop_duplicates()
    # Six domains of 345 classes, less painting's t-shirt and the 15 that are held out.
    assert len(pairs) == 6 * 345 - 1 - 15


@pytest.mark.parametrize(
    "identifier",
    [
        "lso-rs-nosketchclasses",
        "lso-cipqrs-noclipartclasses-allow0.2",
        "lso-cipqrs-noquickdrawclasses-aligned",
    ],
)
def test_the_function_returns_the_published_text(
    identifier: str, lists: dict[tuple[str, str], list[str]]
) -> None:
    labels = {entry.name: entry.label for entry in domainnet_classes()}
    for split, found in published_mixture(identifier, lists).items():
        everything = np.arange(len(found))
        text = lines_of(found["path"] + "\t" + found["caption"])
        digest = sha256_of(text, everything, "filepath\ttitle\n")
        assert [len(found), digest] == KNOWN_MIXTURES[identifier][split]
        parts = found["path"].str.split("/", n=2)
        assert (found["domain"] == parts.str[0]).all()
        assert (found["label"] == parts.str[1].str.replace("_", " ").map(labels)).all()
