"""Where integrated gradients are taken: quadrature on the path from a value to zero.

On the path the value c of a submodule is replaced by (1 - a) c, and an integral over a from 0 to 1
becomes a weighted sum. ``protocol="published"`` is the left Riemann sum, a = t / T for
t = 0 ... T - 1 with equal weights: its first point is the network as it is, and it never sees the
network without the neurons. ``"corrected"`` takes a rule whose points lie symmetrically, by default
the midpoint rule, a = (t + 1/2) / T. Rectifiers put kinks into the integrand, so the rules of high
order (Gauss and Legendre) gain less than on smooth functions; docs/benchmarks.md has a table.

Sources:
    The study, section 6 (circuits).
    Sundararajan, M., Taly, A. and Yan, Q. (2017). Axiomatic attribution for deep networks. ICML.
        (equation 3)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from clip_mixtures.errors import unknown

PROTOCOLS = ("published", "corrected")
RULES = ("left", "midpoint", "gauss-legendre")


@dataclasses.dataclass(frozen=True)
class Path:
    """Points on the way from the value of a submodule to zero.

    Attributes:
        scales: 1 - a, what is left of the value, falling.
        weights: of the gradients there; they sum to 1.
    """

    scales: tuple[float, ...]
    weights: tuple[float, ...]


def integration_path(steps: int, protocol: str, rule: str | None = None) -> Path:
    """Choose the points of the path.

    Args:
        steps: how many.
        protocol: one of :data:`PROTOCOLS`.
        rule: one of :data:`RULES`; None for "left" of "published" and "midpoint" of "corrected".

    Raises:
        UserError: for an unknown protocol or rule.
        ValueError: fewer than one step, or another rule than "left" with "published".
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS, "protocol of circuits")
    rule = rule or ("left" if protocol == "published" else "midpoint")
    if rule not in RULES:
        raise unknown("rule", rule, RULES, "quadrature of circuits")
    if protocol == "published" and rule != "left":
        raise ValueError(f"protocol is 'published', whose rule is 'left', but rule is {rule!r}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; integrated gradients need at least one")
    if rule == "gauss-legendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return Path(tuple(((1 - points) / 2).tolist()), tuple((weights / 2).tolist()))
    shift = 0.5 if rule == "midpoint" else 0.0
    scales = (1 - (step + shift) / steps for step in range(steps))
    return Path(tuple(scales), (1 / steps,) * steps)
