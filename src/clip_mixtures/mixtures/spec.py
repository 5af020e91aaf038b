"""What a mixture is: a value, checked against the corpus it draws from (paper section 3.2).

A mixture takes images of some domains. In the test domain the held-out classes are left out, and
what the model makes of exactly those images is what every experiment measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from clip_mixtures.errors import UserError, unknown

NATURAL_DOMAIN = "real"

# The domains that each kind takes, as a function of the corpus' domains and the test domain.
KINDS = ("natural_only", "cg_low_diversity", "cg_high_diversity", "leave_out_domain", "domains")
CAPTION_KINDS = ("standard", "aligned")
_KEYS = (
    "kind",
    "test_domain",
    "held_out",
    "domains",
    "include_test_classes",
    "allow",
    "subsample",
    "captions",
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
        allow: share let back in of the held-out images that the upper bound has, 0 to 1.
        subsample: cut to the size of the low-diversity mixture of the same test domain.
        captions: "standard" or "aligned".
    """

    key: str
    kind: str
    test_domain: str
    held_out: tuple[str, ...]
    domains: tuple[str, ...]
    include_test_classes: bool = False
    allow: float = 0.0
    subsample: bool = True
    captions: str = "standard"

    @property
    def holds_out(self) -> bool:
        """Whether no held-out class of the test domain may be in the training set."""
        return not self.include_test_classes and self.allow == 0 and self.kind != "natural_only"


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
    test_domain = merged.get("test_domain")
    if test_domain not in domains:
        raise unknown("test domain", test_domain, domains, f"{where}.test_domain")
    if test_domain == NATURAL_DOMAIN:
        raise UserError(
            f"{where}.test_domain: {NATURAL_DOMAIN!r} is the natural domain that every mixture "
            f"keeps; allowed: {', '.join(d for d in domains if d != NATURAL_DOMAIN)}"
        )
    captions = merged.get("captions", "standard")
    if captions not in CAPTION_KINDS:
        raise unknown("captions", captions, CAPTION_KINDS, f"{where}.captions")
    mixture = Mixture(
        key=key,
        kind=str(kind),
        test_domain=str(test_domain),
        held_out=_held_out(merged.get("held_out"), class_names, where),
        domains=_domains(str(kind), str(test_domain), params.get("domains"), domains, where),
        include_test_classes=_flag(merged, "include_test_classes", False, where),
        allow=_share(merged.get("allow", 0), f"{where}.allow"),
        subsample=_flag(merged, "subsample", kind != "natural_only", where),
        captions=str(captions),
    )
    _check_allow(mixture, where)
    return mixture


def _check_allow(mixture: Mixture, where: str) -> None:
    """Refuse a share let back in where there is nothing to let back in, or no share to take."""
    if mixture.allow == 0:
        return
    reasons = {
        "include_test_classes": mixture.include_test_classes,
        "subsample: false": not mixture.subsample,
        f"no domain {mixture.test_domain}": mixture.test_domain not in mixture.domains,
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(f"{where}.allow: is {mixture.allow}, which {reason} makes meaningless")


def _flag(params: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    value = params.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f"{where}.{name}: is {value!r}; allowed: true, false")
    return value


def _share(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{where}: is {value!r}; allowed: a share from 0 to 1")
    return float(value)


def _held_out(names: Any, class_names: Sequence[str] | None, where: str) -> tuple[str, ...]:
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise UserError(f"{where}.held_out: is {names!r}, not a list of class names")
    held_out = tuple(str(name) for name in names)
    if len(set(held_out)) < len(held_out):
        twice = next(name for name in held_out if held_out.count(name) > 1)
        raise UserError(f"{where}.held_out: class {twice!r} is listed twice")
    for name in held_out:
        if class_names is not None and name not in class_names:
            raise unknown("class", name, class_names, f"{where}.held_out")
    return held_out


def _domains(
    kind: str, test_domain: str, listed: Any, domains: Sequence[str], where: str
) -> tuple[str, ...]:
    if kind != "domains":
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
