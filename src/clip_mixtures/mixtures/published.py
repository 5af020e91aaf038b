"""The study's own settings: their identifiers, what makes them, and their rows.

An identifier is ``lso-`` with the initials of the domains, ``-no<test domain>classes`` and what is
special: ``-nosub`` (not cut to size), ``-pseudo`` (nothing held out), ``-allow0.2`` (that share let
back in), ``-aligned`` (captions without the domain), ``-with-in-sketches`` (ImageNet-Sketch added)
or ``-with-in-sketches-tenp`` (mixed in). The natural-only mixture is ``lso-real-only``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from clip_mixtures.corpora.captions import (
    DOMAIN_ORDER,
    SPLIT_ORDER,
    Lists,
    class_name_of,
    published_captions,
)
from clip_mixtures.corpora.classes import published_held_out
from clip_mixtures.errors import UserError, unknown
from clip_mixtures.mixtures.build import select_rows
from clip_mixtures.mixtures.spec import (
    NATURAL_DOMAIN,
    ONE_CLASS,
    PUBLISHED_HELD_OUT,
    Mixture,
    mixture_from_params,
)

REAL_ONLY = "lso-real-only"
TEST_DOMAINS = tuple(domain for domain in DOMAIN_ORDER if domain != NATURAL_DOMAIN)
ALLOWED_SHARES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
# Which domains the interpolations between low and high diversity leave out, by their initials.
INTERPOLATIONS = {
    "sketch": ("cip", "ciq", "cpq", "ipq", "ip", "iq", "pq", "i", "q"),
    "clipart": ("ipq", "ips", "iqs", "pqs", "ip", "pq", "iq", "i", "q"),
}
# The names of the shares of sketch classes that stay beside ImageNet-Sketch.
MIXED_SHARES: dict[str, float | str] = {
    "fiftyp": 0.5,
    "twentyfivep": 0.25,
    "thirtyp": 0.3,
    "tenp": 0.1,
    "fivep": 0.05,
    "onep": 0.01,
    "one": ONE_CLASS,
}
_INITIALS = {domain[0]: domain for domain in DOMAIN_ORDER}
_SKETCHES = "-with-in-sketches"
_IDENTIFIER = re.compile(
    r"lso-(?:(?P<natural>real-only)|(?P<initials>[cipqrs]+)-no(?P<test>[a-z]+)classes"
    r"(?P<nosub>-nosub)?(?P<pseudo>-pseudo)?(?:-allow(?P<allow>[0-9.e-]+?))?(?P<aligned>-aligned)?)"
    rf"(?P<sketches>{_SKETCHES})?(?:-(?P<share>[a-z]+))?"
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of the study.

    Attributes:
        identifier: its published name.
        group: "default", "upper-bound interpolation" or "domain interpolation".
        params: the keys that make it under ``mixtures`` in params.yaml.
    """

    identifier: str
    group: str
    params: dict[str, Any]


def published_settings() -> list[Setting]:
    """Return the 105 settings: 27 default, 60 upper-bound and 18 domain interpolations."""
    default: list[dict[str, Any]] = [
        {"kind": "natural_only"},
        {"kind": "cg_high_diversity", "test_domain": "quickdraw", "captions": "aligned"},
    ]
    upper: list[dict[str, Any]] = []
    for domain in TEST_DOMAINS:
        low = {"kind": "cg_low_diversity", "test_domain": domain}
        high = {"kind": "cg_high_diversity", "test_domain": domain}
        default += [low, high, {"kind": "leave_out_domain", "test_domain": domain}]
        default += [kind | {"include_test_classes": True} for kind in (low, high)]
        upper += [kind | {"allow": share} for kind in (low, high) for share in ALLOWED_SHARES]
    between: list[dict[str, Any]] = [
        {
            "kind": "domains",
            "test_domain": domain,
            "domains": [name for name in DOMAIN_ORDER if name[0] not in left_out],
        }
        for domain, choices in INTERPOLATIONS.items()
        for left_out in choices
    ]
    groups = {
        "default": default,
        "upper-bound interpolation": upper,
        "domain interpolation": between,
    }
    return [
        Setting(identifier_of(_published(params)), group, params)
        for group, settings in groups.items()
        for params in settings
    ]


def _published(params: Mapping[str, Any], key: str = "published") -> Mixture:
    # The natural-only mixture is the same for every test domain.
    defaults = {"test_domain": "sketch", "held_out": PUBLISHED_HELD_OUT}
    return mixture_from_params(key, params, defaults, DOMAIN_ORDER)


def identifier_of(mixture: Mixture) -> str:
    """Return the published name of a mixture of DomainNet.

    Raises:
        UserError: when the study has no name for it.
    """
    named = (
        mixture.protocol == "published"
        and set(mixture.held_out) == set(published_held_out())
        and set(mixture.domains) <= set(DOMAIN_ORDER)
        and NATURAL_DOMAIN in mixture.domains
        and (mixture.kind != "natural_only" or _is_plain(mixture))
        and not mixture.dose_matched
        and mixture.size is None
    )
    if not named:
        raise UserError(
            f"mixtures.{mixture.key}: no published identifier; those stand for protocol: "
            "published, DomainNet's domains, the study's held-out classes, its sizes and doses"
        )
    if mixture.kind == "natural_only":
        return REAL_ONLY + _sketches_suffix(mixture)
    initials = "".join(domain[0] for domain in DOMAIN_ORDER if domain in mixture.domains)
    return (
        f"lso-{initials}-no{mixture.test_domain}classes"
        + ("" if mixture.subsample else "-nosub")
        + ("-pseudo" if mixture.include_test_classes else "")
        + (f"-allow{mixture.allow}" if mixture.allow else "")
        + ("-aligned" if mixture.captions == "aligned" else "")
        + _sketches_suffix(mixture)
    )


def _is_plain(mixture: Mixture) -> bool:
    return not mixture.subsample and mixture.captions == "standard"


def _sketches_suffix(mixture: Mixture) -> str:
    if mixture.add_sketches:
        return _SKETCHES
    if mixture.mix_sketches is None:
        return ""
    for name, share in MIXED_SHARES.items():
        if share == mixture.mix_sketches:
            return f"{_SKETCHES}-{name}"
    raise UserError(
        f"mixtures.{mixture.key}.mix_sketches: is {mixture.mix_sketches!r}; the study has "
        f"{', '.join(map(str, MIXED_SHARES.values()))}"
    )


def params_of(identifier: str) -> dict[str, Any]:
    """Return the keys that make a published setting, as they stand in params.yaml.

    Raises:
        UserError: when it is no published identifier.
    """
    match = _IDENTIFIER.fullmatch(identifier)
    if match is None:
        names = [setting.identifier for setting in published_settings()]
        raise unknown("published mixture", identifier, names, "identifier")
    part = match.groupdict()
    params: dict[str, Any]
    if part["natural"]:
        params = {"kind": "natural_only"}
    else:
        if part["test"] not in TEST_DOMAINS:
            raise unknown("test domain", part["test"], TEST_DOMAINS, identifier)
        params = _kind(part["initials"], part["test"]) | {"test_domain": part["test"]}
    if part["nosub"]:
        params["subsample"] = False
    if part["pseudo"]:
        params["include_test_classes"] = True
    if part["allow"]:
        params["allow"] = _number(part["allow"], identifier)
    if part["aligned"]:
        params["captions"] = "aligned"
    if part["share"]:
        if not part["sketches"] or part["share"] not in MIXED_SHARES:
            raise unknown(
                "ending", part["share"], [f"with-in-sketches-{n}" for n in MIXED_SHARES], identifier
            )
        params["mix_sketches"] = MIXED_SHARES[part["share"]]
    elif part["sketches"]:
        params["add_sketches"] = True
    canonical = identifier_of(_published(params, identifier))
    if canonical != identifier:
        raise UserError(f"{identifier}: the published name of this mixture is {canonical}")
    return params


def _kind(initials: str, test_domain: str) -> dict[str, Any]:
    domains = [_INITIALS[letter] for letter in initials]
    if set(domains) == {NATURAL_DOMAIN, test_domain}:
        return {"kind": "cg_low_diversity"}
    if set(domains) == set(DOMAIN_ORDER):
        return {"kind": "cg_high_diversity"}
    if set(domains) == set(DOMAIN_ORDER) - {test_domain}:
        return {"kind": "leave_out_domain"}
    return {"kind": "domains", "domains": domains}


def _number(text: str, identifier: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{identifier}: {text!r} is no share") from None


def published_mixture(identifier: str, lists: Lists) -> dict[str, pd.DataFrame]:
    """Return the DomainNet rows of a published setting.

    Args:
        identifier: such as ``lso-cipqrs-nosketchclasses``.
        lists: (domain, "train" | "test") to list lines ``<domain>/<class>/<file> <label>``. The
            captions depend on all the lists that are given, so give all of them.

    Returns:
        "train" and "val" to the rows in published order: columns path, label (int), domain and
        caption.

    Raises:
        UserError: for an unknown identifier, a setting with ImageNet-Sketch (which needs more than
            DomainNet's lists), or a domain without lists.
    """
    mixture = _published(params_of(identifier), identifier)
    if mixture.takes_sketches:
        raise UserError(
            f"{identifier}: takes rows of ImageNet-Sketch; build it from indices of both, with "
            "the command `mixture`"
        )
    needed = {*mixture.domains, *((mixture.test_domain,) if mixture.subsample else ())}
    for key in [(domain, split) for domain in DOMAIN_ORDER for split in SPLIT_ORDER]:
        if key[0] in needed and key not in lists:
            raise UserError(f"{identifier}: no {key[1]} list of domain {key[0]!r} among the lists")
    captions = published_captions(lists, aligned=mixture.captions == "aligned")
    frame = pd.concat([_rows(key, lists[key], texts) for key, texts in captions.items()])
    frame = frame.reset_index(drop=True)
    rows = select_rows(frame, mixture)
    columns = ["path", "label", "domain", "caption"]
    chosen = {"train": rows.train, "val": rows.validation}
    return {
        split: frame.iloc[numbers][columns].reset_index(drop=True)
        for split, numbers in chosen.items()
    }


def _rows(key: tuple[str, str], lines: Any, captions: list[str]) -> pd.DataFrame:
    pairs = [str(line).rsplit(" ", 1) for line in lines]
    return pd.DataFrame(
        {
            "path": [path for path, _ in pairs],
            "label": [int(label) for _, label in pairs],
            "domain": key[0],
            "class_name": [class_name_of(path) for path, _ in pairs],
            "caption": captions,
            "split": key[1],
        }
    )
