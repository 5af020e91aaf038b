"""Curves between mixtures: accuracy by the share that is let back in, or by the number of domains.

Both are experiments of the study (Kempf et al. 2025): how many of the held-out images a model must
see to do as well as one that sees them all, and how accuracy grows with the domains beside the
test domain. A matrix has such a curve where it has mixtures that differ in nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from clip_mixtures.mixtures.spec import NATURAL_DOMAIN, Mixture
from clip_mixtures.report.figures import LINE_STYLES, begin_below_zero
from clip_mixtures.report.style import COLUMN_WIDTH, NEUTRAL, colours, figure_style
from clip_mixtures.report.tables import distinct

ALLOW, DOMAINS = "allow", "domains"
_LABELS = {
    ALLOW: "Share of held-out images let back in (%)",
    DOMAINS: "Domains in the mixture",
}
_PANEL, _FRAME, _LEGEND_ROW = 1.6, 0.55, 0.17  # inches


def interpolation_points(averaged: pd.DataFrame, mixtures: Mapping[str, Mixture]) -> pd.DataFrame:
    """Find the mixtures that lie on a curve.

    Args:
        averaged: of :func:`clip_mixtures.report.matrix.averaged_over_seeds`.
        mixtures: the study's, by key.

    Returns:
        A row a point: ``axis`` ("allow" | "domains"), ``line`` (what its mixtures have in common),
        ``x`` (percent let back in, 100 for the upper bound; or number of domains), ``mixture``,
        ``model``, ``test_domain``, and of the held-out classes in the test domain ``estimate``,
        ``low``, ``high`` (fractions). Empty where the matrix has no curve.
    """
    keys = distinct(averaged["mixture"])
    lines = [*_allow_lines(keys, mixtures), *_domain_lines(keys, mixtures)]
    held_out = averaged[averaged["measure"] == "Held-out, " + averaged["test_domain"]]
    points = pd.DataFrame(lines, columns=["axis", "line", "x", "mixture"])
    columns = ["mixture", "model", "test_domain", "estimate", "low", "high"]
    found = points.merge(held_out[columns], on="mixture")
    return found.sort_values(["axis", "line", "model", "x"], kind="stable", ignore_index=True)


def _allow_lines(keys: list[str], mixtures: Mapping[str, Mixture]) -> list[tuple[Any, ...]]:
    families: dict[Mixture, list[str]] = {}
    for key in keys:
        plain = dataclasses.replace(mixtures[key], key="", allow=0.0, include_test_classes=False)
        families.setdefault(plain, []).append(key)
    points: list[tuple[Any, ...]] = []
    for family in families.values():
        if any(0 < mixtures[key].allow < 1 for key in family) and len(family) > 1:
            shares = {key: _share(mixtures[key]) for key in family}
            name = min(family, key=lambda key: shares[key])
            points += [(ALLOW, name, 100 * shares[key], key) for key in family]
    return points


def _share(mixture: Mixture) -> float:
    return 1.0 if mixture.include_test_classes else mixture.allow


def _domain_lines(keys: list[str], mixtures: Mapping[str, Mixture]) -> list[tuple[Any, ...]]:
    families: dict[tuple[Mixture, bool], list[str]] = {}
    for key in keys:
        mixture = mixtures[key]
        if NATURAL_DOMAIN in mixture.domains:
            plain = dataclasses.replace(mixture, key="", kind="domains", domains=())
            families.setdefault((plain, mixture.test_domain in mixture.domains), []).append(key)
    curves = {family: found for family, found in families.items() if _is_curve(found, mixtures)}
    return [
        (DOMAINS, _name_of(family, list(curves)), float(len(mixtures[key].domains)), key)
        for family, found in curves.items()
        for key in found
    ]


def _is_curve(keys: list[str], mixtures: Mapping[str, Mixture]) -> bool:
    listed = any(mixtures[key].kind == "domains" for key in keys)
    return listed and len({len(mixtures[key].domains) for key in keys}) > 1


def _name_of(family: tuple[Mixture, bool], families: list[tuple[Mixture, bool]]) -> str:
    """Say what tells a family from the others, so that no two lines have the same name."""
    plain, has_test_domain = family
    others = [one for one, _ in families if one.test_domain == plain.test_domain]
    telling = [
        f", {field.name} {getattr(plain, field.name)}"
        for field in dataclasses.fields(plain)
        if field.name != "held_out" and len({getattr(one, field.name) for one in others}) > 1
    ]
    return f"{'with' if has_test_domain else 'without'} {plain.test_domain}{''.join(telling)}"


def interpolation_figure(points: pd.DataFrame, axis: str) -> Figure:
    """Draw the curves along one axis, a panel for each test domain.

    Args:
        points: of :func:`interpolation_points`.
        axis: "allow" or "domains".

    Returns:
        Held-out accuracy in the test domain with its intervals. Colours tell lines apart, line
        styles models; where several mixtures lie at the same place the line runs through their
        mean.

    Raises:
        ValueError: there is no point on the axis.
    """
    points = points[points["axis"] == axis]
    if points.empty:
        raise ValueError(f"axis {axis!r}: no points to draw")
    palette = colours(points["line"])
    models = distinct(points["model"])
    styles = {model: LINE_STYLES[place % len(LINE_STYLES)] for place, model in enumerate(models)}
    panels = [(str(domain), part) for domain, part in points.groupby("test_domain", sort=False)]
    with figure_style():
        legend = [Line2D([], [], color=colour, label=name) for name, colour in palette.items()]
        if len(models) > 1:
            legend += [
                Line2D([], [], color=NEUTRAL, linestyle=style, label=model)
                for model, style in styles.items()
            ]
        columns = 1 if max(map(len, palette)) > 24 else 2
        height = len(panels) * _PANEL + _FRAME + math.ceil(len(legend) / columns) * _LEGEND_ROW
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
        for ax, (domain, part) in zip(grid[:, 0], panels, strict=True):
            for (line, model), found in part.groupby(["line", "model"], sort=False):
                means = 100 * found.groupby("x")["estimate"].mean()
                colour = palette[str(line)]
                ax.plot(means.index, means, color=colour, linestyle=styles[str(model)])
                ax.vlines(
                    found["x"], 100 * found["low"], 100 * found["high"], color=colour, linewidth=0.8
                )
                ax.plot(
                    found["x"], 100 * found["estimate"], color=colour, marker="o", linestyle="none"
                )
            ax.set_title(f"Held-out classes in {domain}")
            begin_below_zero(ax)
            ax.grid(axis="y")
        grid[-1, 0].set_xlabel(_LABELS[axis])
        grid[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        figure.supylabel("Accuracy (%)")
        figure.legend(handles=legend, loc="outside lower center", ncols=columns)
    return figure
