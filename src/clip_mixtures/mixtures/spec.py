"""What a mixture is: a value, checked against the corpus it draws from (paper section 3.2).

A mixture takes images of some domains. In the test domain the held-out classes are left out, and
what the model makes of exactly those images is what every experiment measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from clip_mixtures.corpora.classes import published_held_out
from clip_mixtures.corpora.sources import NO_BASE
from clip_mixtures.errors import UserError, unknown

NATURAL_DOMAIN = "real"
# Name of the index that held-out classes are tested in, beside base sets and others.
DOMAINS = "domains"
SKETCHES = "imagenet_sketch"

# The domains that each kind takes, as a function of the corpus' domains and the test domain.
KINDS = ("natural_only", "cg_low_diversity", "cg_high_diversity", "leave_out_domain", "domains")
CAPTION_KINDS = ("standard", "aligned")
PROTOCOLS = ("published", "corrected")
DUPLICATE_POLICIES = ("error", "report", "remove")
# In place of a list of held-out classes: the 15 of the study.
PUBLISHED_HELD_OUT = "published"
# In place of a share of classes whose sketches stay: a single class.
ONE_CLASS = "one"
# Seeds are hashed as eight bytes.
_LARGEST_SEED = 2**64 - 1
_KEYS = (
    "kind",
    "protocol",
    "base",
    "test_domain",
    "held_out",
    "domains",
    "include_test_classes",
    "allow",
    "dose_matched",
    "subsample",
    "size",
    "subsample_seed",
    "captions",
    "add_sketches",
    "mix_sketches",
)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """One training mixture.

    Attributes:
        key: its name in the parameters.
        kind: one of :data:`KINDS`.
        test_domain: the domain whose held-out classes are tested.
        held_out: names of the held-out classes.
        domains: the domains it takes, in the corpus' order.
        include_test_classes: hold nothing out (upper bound).
        allow: share let back in of the held-out images that the upper bound has, 0 to 1; 0 is none.
        dose_matched: take as many images of the test domain as the low-diversity mixture does.
        subsample: cut to the size of the low-diversity mixture of the same test domain.
        size: cut to this many domain images instead; None for the low-diversity size.
        captions: "standard" or "aligned".
        protocol: "published" for the published rows and captions, quirks included; "corrected" for
            a random subsample of each class, exact shares, and captions that need no correction.
        subsample_seed: which random subsample; only "corrected" draws one.
        base: name of the base set, "none", or None for the only one there is.
        add_sketches: put ImageNet-Sketch in the place of as many domain images.
        mix_sketches: keep the test domain's images of this share of its classes (or of "one"
            class), and put ImageNet-Sketch in the place of the others; None for no such thing.
    """

    key: str
    kind: str
    test_domain: str
    held_out: tuple[str, ...]
    domains: tuple[str, ...]
    include_test_classes: bool = False
    allow: float = 0.0
    dose_matched: bool = False
    subsample: bool = True
    size: int | None = None
    captions: str = "standard"
    protocol: str = "published"
    subsample_seed: int = 0
    base: str | None = None
    add_sketches: bool = False
    mix_sketches: float | str | None = None

    @property
    def holds_out(self) -> bool:
        """Whether no held-out class of the test domain may be in the training set."""
        return not self.include_test_classes and self.allow == 0 and self.kind != "natural_only"

    @property
    def corrected(self) -> bool:
        """Whether what is wrong in the published rule is mended."""
        return self.protocol == "corrected"

    @property
    def takes_sketches(self) -> bool:
        """Whether ImageNet-Sketch is needed."""
        return self.add_sketches or self.mix_sketches is not None

    def low_diversity(self) -> Mixture:
        """Return the low-diversity mixture with the same settings, which fixes size and dose."""
        return dataclasses.replace(
            self,
            kind="cg_low_diversity",
            domains=(NATURAL_DOMAIN, self.test_domain),
            dose_matched=False,
            size=None,
        )


@dataclasses.dataclass(frozen=True)
class Checks:
    """How strict an audit is.

    Attributes:
        duplicates: what an exact duplicate of a held-out test image in the training set means:
            "error", "report", or "remove" from the training set.
        near_bits: perceptual hashes that differ in at most so many of their 64 bits count as near.
    """

    duplicates: str = "error"
    near_bits: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.near_bits <= 64:
            raise UserError(f"audit.near_bits: is {self.near_bits}; allowed: 0 to 64")


def mixture_from_params(
    key: str,
    params: Mapping[str, Any],
    defaults: Mapping[str, Any],
    domains: Sequence[str],
    class_names: Sequence[str] | None = None,
) -> Mixture:
    """Check the parameters of one mixture.

    Args:
        key: its name.
        params: what is said of it; ``kind`` at least.
        defaults: ``test_domain`` and ``held_out`` where ``params`` says nothing.
        domains: the domains of the corpus, in order.
        class_names: the classes of the corpus; held-out names are checked against them if given.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    where = f"mixtures.{key}"
    if not isinstance(params, Mapping):
        raise UserError(f"{where}: is {params!r}, not a mapping with a 'kind'")
    for name in params:
        if name not in _KEYS:
            raise unknown("key", name, _KEYS, where)
    kind = params.get("kind")
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS, f"{where}.kind")
    merged = {**defaults, **params}
    test_domain = _test_domain(merged.get("test_domain"), domains, where)
    mixture = Mixture(
        key=key,
        kind=str(kind),
        test_domain=test_domain,
        held_out=_held_out(merged.get("held_out"), class_names, where),
        domains=_domains(str(kind), test_domain, params.get("domains"), domains, where),
        include_test_classes=_flag(merged, "include_test_classes", False, where),
        allow=_share(merged["allow"], f"{where}.allow") if "allow" in merged else 0.0,
        dose_matched=_flag(merged, "dose_matched", False, where),
        subsample=_flag(merged, "subsample", kind != "natural_only" or "size" in merged, where),
        size=_whole(merged["size"], 1, f"{where}.size") if "size" in merged else None,
        captions=_one_of(merged, "captions", CAPTION_KINDS, where),
        protocol=_one_of(merged, "protocol", PROTOCOLS, where),
        subsample_seed=_whole(
            merged.get("subsample_seed", 0), 0, f"{where}.subsample_seed", _LARGEST_SEED
        ),
        base=_base(merged.get("base"), f"{where}.base"),
        add_sketches=_flag(merged, "add_sketches", False, where),
        mix_sketches=_mix(merged.get("mix_sketches"), f"{where}.mix_sketches"),
    )
    _check_combination(mixture, params, where)
    return mixture


def check_defaults(
    defaults: Mapping[str, Any],
    domains: Sequence[str],
    class_names: Sequence[str] | None = None,
    where: str = "test",
) -> None:
    """Check what holds for every mixture that says nothing else: test domain and held-out classes.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    _test_domain(defaults.get("test_domain"), domains, where)
    _held_out(defaults.get("held_out"), class_names, where)


def _test_domain(value: Any, domains: Sequence[str], where: str) -> str:
    if value not in domains:
        raise unknown("test domain", value, domains, f"{where}.test_domain")
    if value == NATURAL_DOMAIN:
        raise UserError(
            f"{where}.test_domain: {NATURAL_DOMAIN!r} is the natural domain that every mixture "
            f"keeps; allowed: {', '.join(d for d in domains if d != NATURAL_DOMAIN)}"
        )
    return str(value)


def _check_combination(mixture: Mixture, params: Mapping[str, Any], where: str) -> None:
    """Refuse keys that another key makes meaningless."""
    has_test_domain = mixture.test_domain in mixture.domains
    no_test_domain = f"without domain {mixture.test_domain!r}"
    clashes = {
        ("allow", "with include_test_classes"): mixture.include_test_classes,
        ("allow", "with subsample: false"): not mixture.subsample,
        ("allow", no_test_domain): not has_test_domain,
        ("include_test_classes", no_test_domain): not has_test_domain,
        ("dose_matched", "with subsample: false"): not mixture.subsample,
        ("dose_matched", no_test_domain): not has_test_domain,
        ("dose_matched", "for kind cg_low_diversity, which sets the dose"): (
            mixture.kind == "cg_low_diversity"
        ),
        ("size", "with subsample: false"): not mixture.subsample,
        ("subsample_seed", "with protocol: published, which takes the first of each class"): (
            not mixture.corrected
        ),
        ("mix_sketches", "with add_sketches"): mixture.add_sketches,
        ("mix_sketches", no_test_domain): not has_test_domain,
    }
    for (name, reason), clash in clashes.items():
        if clash and params.get(name) and getattr(mixture, name):
            raise UserError(f"{where}.{name}: is {params[name]!r}, which means nothing {reason}")


def _one_of(params: Mapping[str, Any], name: str, allowed: Sequence[str], where: str) -> str:
    value = params.get(name, allowed[0])
    if value not in allowed:
        raise unknown(name, value, allowed, f"{where}.{name}")
    return str(value)


def _flag(params: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    value = params.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f"{where}.{name}: is {value!r}; allowed: true, false")
    return value


def _share(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(
            f"{where}: is {value!r}; allowed: a share between 0 and 1. Leave the key out to hold "
            "everything out; include_test_classes: true holds nothing out"
        )
    return float(value)


def _mix(value: Any, where: str) -> float | str | None:
    if value is None:
        return None
    if value == ONE_CLASS:
        return ONE_CLASS
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(f"{where}: is {value!r}; allowed: a share between 0 and 1, or {ONE_CLASS}")
    return float(value)


def _whole(value: Any, minimum: int, where: str, maximum: int | None = None) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < minimum or (maximum is not None and value > maximum):
        until = "" if maximum is None else f" to {maximum}"
        raise UserError(f"{where}: is {value!r}; allowed: a whole number from {minimum}{until}")
    return int(value)


def _base(value: Any, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: is {value!r}; allowed: the name of a base set, or {NO_BASE!r}")
    return value


def _held_out(names: Any, class_names: Sequence[str] | None, where: str) -> tuple[str, ...]:
    if names == PUBLISHED_HELD_OUT:
        names = list(published_held_out())
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise UserError(
            f"{where}.held_out: is {names!r}; allowed: a list of class names, or "
            f"{PUBLISHED_HELD_OUT!r} for the study's 15"
        )
    held_out = tuple(str(name) for name in names)
    if len(set(held_out)) < len(held_out):
        twice = next(name for name in held_out if held_out.count(name) > 1)
        raise UserError(f"{where}.held_out: class {twice!r} is listed twice")
    for name in held_out:
        if class_names is not None and name not in class_names:
            raise unknown("class", name, class_names, f"{where}.held_out")
    if class_names is not None and len(held_out) == len(set(class_names)):
        raise UserError(
            f"{where}.held_out: names all {len(held_out)} classes of the corpus; leave some out of "
            "the list, for accuracy on held-out classes is compared with that on seen ones"
        )
    return held_out


def _domains(
    kind: str, test_domain: str, listed: Any, domains: Sequence[str], where: str
) -> tuple[str, ...]:
    if kind != "domains":
        if NATURAL_DOMAIN not in domains:
            raise UserError(
                f"{where}.kind: {kind!r} takes domain {NATURAL_DOMAIN!r}, and there are only "
                f"{', '.join(domains)}; add it, or take kind 'domains'"
            )
        if listed is not None:
            raise UserError(f"{where}.domains: only kind 'domains' takes a list of domains")
        wanted = {
            "natural_only": {NATURAL_DOMAIN},
            "cg_low_diversity": {NATURAL_DOMAIN, test_domain},
            "cg_high_diversity": set(domains),
            "leave_out_domain": set(domains) - {test_domain},
        }[kind]
        return tuple(domain for domain in domains if domain in wanted)
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise UserError(f"{where}.domains: is {listed!r}; kind 'domains' needs a list of domains")
    for domain in listed:
        if domain not in domains:
            raise unknown("domain", domain, domains, f"{where}.domains")
    return tuple(domain for domain in domains if domain in set(listed))
