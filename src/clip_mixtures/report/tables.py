"""The cells of a study as a flat table, as Markdown tables and as headline numbers.

A cell is one trained model: one mixture, one model preset, one seed, one test domain. The
``summary`` that every function here takes is a sequence of cells as plain mappings::

    {"run": str, "mixture": str, "model": str, "seed": int, "test_domain": str, "epoch": int,
     "train_images": int,
     "accuracies": {domain: {"held_out" | "seen": {"balanced" | "micro":
         {"estimate": float, "low": float | None, "high": float | None, "n": int}}}}}

Accuracies are fractions in [0, 1]; ``n`` counts test images.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from clip_mixtures.errors import UserError
from clip_mixtures.report.document import MISSING, Table, text_table

Cell = Mapping[str, Any]
Summary = Sequence[Cell]

AVERAGE = "balanced"  # the average that tables and figures show
REFERENCE_DOMAIN = "real"  # the domain that every mixture trains on
GROUP_WORDS = {"held_out": "held-out", "seen": "seen", "base": "base"}

_CELL_KEYS = ("run", "mixture", "model", "seed", "test_domain", "accuracies")
_ROUNDED_TO = 6


def cells_frame(summary: Summary) -> pd.DataFrame:
    """Flatten a summary to one row an accuracy.

    Args:
        summary: the cells, see the module's docstring.

    Returns:
        Columns ``run``, ``mixture``, ``model``, ``seed``, ``test_domain``, ``domain``, ``group``,
        ``average``, ``estimate``, ``low``, ``high`` (float64 fractions; NaN where an end is
        unknown) and ``n`` (test images), in the order of the summary.

    Raises:
        UserError: the summary has no cells or the same run twice, or a cell lacks a key or its
            own test domain.
    """
    check_summary(summary)
    rows = [
        {
            **{key: cell[key] for key in _CELL_KEYS if key != "accuracies"},
            "domain": domain,
            "group": group,
            "average": average,
            **{key: interval[key] for key in ("estimate", "low", "high", "n")},
        }
        for cell in summary
        for domain, groups in cell["accuracies"].items()
        for group, averages in groups.items()
        for average, interval in averages.items()
    ]
    return pd.DataFrame(rows).astype({"estimate": float, "low": float, "high": float, "n": int})


def check_summary(summary: Summary) -> None:
    """Refuse a summary that no report can be made of.

    Raises:
        UserError: the summary has no cells or the same run twice, or a cell lacks a key or its
            own test domain.
    """
    if not summary:
        raise UserError("summary: it has no cells; train and evaluate at least one run first")
    runs = [cell.get("run") for cell in summary]
    twice = [run for run in distinct(runs) if runs.count(run) > 1]
    if twice and twice[0] is not None:
        raise UserError(f"summary: run {twice[0]!r} is there twice; list each run once")
    for index, cell in enumerate(summary):
        missing = [key for key in _CELL_KEYS if key not in cell]
        name = cell.get("run", f"number {index}")
        if missing:
            raise UserError(
                f"summary, cell {name}: no {', '.join(missing)}; evaluate the run again"
            )
        if cell["test_domain"] not in cell["accuracies"]:
            raise UserError(
                f"summary, cell {name}: no accuracies in its test domain {cell['test_domain']!r}, "
                f"only in {', '.join(cell['accuracies']) or 'none'}; evaluate the run on it"
            )


def comparison_markdown(
    summary: Summary, *, classes: int | None = None, reference: str = REFERENCE_DOMAIN
) -> str:
    """Put the cells side by side: one Markdown table a test domain, one row a cell.

    Args:
        summary: the cells, see the module's docstring.
        classes: number of classes that the model picks among, to state the chance level.
        reference: the domain shown next to the test domain.

    Returns:
        Markdown. Balanced accuracies in percent as ``12.4 [8.1, 17.0]``, under a line that says
        what they are; a dash stands where a cell has no such images.

    Raises:
        UserError: as ``cells_frame``.
    """
    check_summary(summary)
    domains = distinct(cell["test_domain"] for cell in summary)
    parts = []
    for domain in domains:
        cells = [cell for cell in summary if cell["test_domain"] == domain]
        if len(domains) > 1:
            parts.append(f"### Test domain: {escaped(domain)}")
        columns = [(domain, "held_out"), (domain, "seen")]
        if reference != domain:
            columns += [(reference, "held_out"), (reference, "seen")]
        parts.append(_explanation(cells, columns, classes))
        parts.append(_comparison_table(cells, columns, varying(summary)))
    return "\n\n".join(parts) + "\n"


def counts_table(counts: pd.DataFrame) -> Table:
    """Tabulate the training images of each mixture by domain and group.

    Args:
        counts: columns ``mixture``, ``domain``, ``group`` (``held_out``, ``seen`` or ``base``)
            and ``images``; rows of the same mixture, domain and group add up.

    Returns:
        Mixtures down, domain and group across, the total last. A combination that a mixture lacks
        counts 0.

    Raises:
        UserError: ``counts`` lacks a column or has no rows.
    """
    check_counts(counts)
    columns = ordered_parts(counts)
    header = ["Mixture", *(part_name(*column) for column in columns), "Total"]
    sums = counts.groupby(["mixture", "domain", "group"])["images"].sum().to_dict()
    rows: list[list[object]] = []
    for mixture in distinct(counts["mixture"]):
        images = [int(sums.get((mixture, *column), 0)) for column in columns]
        rows.append([mixture, *images, sum(images)])
    return text_table("Mixtures", "Training images by domain and group of classes.", header, rows)


def headline(
    summary: Summary,
    kinds: Mapping[str, str] | None = None,
    held_out: Mapping[str, frozenset[int]] | None = None,
    informed: Collection[str] = (),
    *,
    reference: str = REFERENCE_DOMAIN,
) -> dict[str, float]:
    """Reduce a study to a few numbers whose names stay the same whatever the mixtures are called.

    Accuracies are balanced, in each cell's own test domain. The gains compare kinds of mixtures
    for the same test domain, held-out classes and model, each averaged over mixtures of the kind
    and seeds, and then averaged over test domains, lists of classes and models; so a kind that was
    trained on easier domains only gains nothing by it. The gap is that of the CG mixtures, which
    know the test domain, from seen to held-out classes in it. From it the same difference in
    natural images is taken, where nothing is held out: classes that are harder in themselves make
    no gap. A cell whose test domain is natural images has none.

    Args:
        summary: the cells, see the module's docstring.
        kinds: the kind of each mixture: ``natural_only``, ``leave_out_domain``,
            ``cg_low_diversity`` or ``cg_high_diversity``. Without it there are no gains and no gap.
        held_out: the class ids that each mixture holds out; without it, the same for all.
        informed: mixtures that train on held-out images (upper bounds and interpolations); they
            count as cells, and in no other number.
        reference: the domain of natural images.

    Returns:
        ``cells`` (their number) and, as fractions rounded to 6 digits: ``best_held_out``,
        ``mean_held_out``, ``mean_seen``, ``generalisation_gap`` (seen minus held-out, see
        above), ``diversity_gain`` (high minus low diversity), ``gain_over_natural_only`` and
        ``gain_over_leave_out_domain`` (high diversity minus that kind). A number that cannot be
        computed has no key.

    Raises:
        UserError: as ``cells_frame``.
    """
    frame = cells_frame(summary)
    frame = frame[(frame["average"] == AVERAGE) & ~frame["mixture"].isin(list(informed))]
    lists = [(held_out or {}).get(mixture) for mixture in frame["mixture"]]
    different = distinct(lists)
    frame = frame.assign(
        kind=[(kinds or {}).get(mixture, "") for mixture in frame["mixture"]],
        held_out_list=[different.index(one) for one in lists],
    )
    cells, natural = (_groups_in(frame, one) for one in (frame["test_domain"], reference))
    numbers = {
        "best_held_out": cells["held_out"].max(),
        "mean_held_out": cells["held_out"].mean(),
        "mean_seen": cells["seen"].mean(),
        "generalisation_gap": _gap(cells[cells["test_domain"] != reference], natural),
        **_gains(cells),
    }
    known = {key: round(float(value), _ROUNDED_TO) for key, value in numbers.items()}
    return {"cells": len(summary), **{key: v for key, v in known.items() if not pd.isna(v)}}


def check_counts(counts: pd.DataFrame) -> None:
    """Refuse counts that lack a column, have no rows or name an unknown group.

    Raises:
        UserError: see above.
    """
    missing = [key for key in ("mixture", "domain", "group", "images") if key not in counts]
    if missing:
        raise UserError(f"counts: no column {', '.join(missing)}; found {list(counts.columns)}")
    if counts.empty:
        raise UserError("counts: there are no rows; build at least one mixture first")
    strange = sorted(set(counts["group"]) - set(GROUP_WORDS))
    if strange:
        raise UserError(f"counts: unknown group {strange[0]!r}; allowed: {', '.join(GROUP_WORDS)}")


def ordered_parts(counts: pd.DataFrame) -> list[tuple[str, str]]:
    """List the (domain, group) pairs in ``counts``: by domain as it first appears, then group."""
    present = set(zip(counts["domain"], counts["group"], strict=True))
    return [
        (domain, group)
        for domain in distinct(counts["domain"])
        for group in GROUP_WORDS
        if (domain, group) in present
    ]


def part_name(domain: str, group: str) -> str:
    """Name a domain and group; a domain that is called ``base`` itself is named once."""
    return domain if domain == group else f"{domain} {GROUP_WORDS[group]}"


def distinct(values: Iterable[Any]) -> list[Any]:
    """List the different values in the order in which they first appear."""
    return list(dict.fromkeys(values))


def varying(summary: Summary) -> list[str]:
    """Name the keys among ``model`` and ``seed`` that take more than one value."""
    return [key for key in ("model", "seed") if len({cell[key] for cell in summary}) > 1]


def interval_of(
    accuracies: Mapping[str, Any], domain: str, group: str
) -> Mapping[str, float | None] | None:
    """Look up the balanced accuracy of a domain and group; None where there are no images."""
    found: Mapping[str, float | None] | None
    found = accuracies.get(domain, {}).get(group, {}).get(AVERAGE)
    return found


def escaped(text: object) -> str:
    """Escape what would end a cell of a Markdown table or start HTML, with HTML entities."""
    cleaned = " ".join(str(text).split())
    for character, stand_in in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        cleaned = cleaned.replace(character, stand_in)
    return cleaned


def _groups_in(frame: pd.DataFrame, domain: str | pd.Series) -> pd.DataFrame:
    """Put the accuracies on both groups of classes in a domain side by side, a row a run."""
    keys = ["run", "mixture", "model", "seed", "test_domain", "kind", "held_out_list"]
    part = frame[frame["domain"] == domain].set_index([*keys, "group"])["estimate"]
    cells = part.unstack("group").reindex(columns=["held_out", "seen"])
    return cells.reset_index().set_index("run", drop=False)


def _gap(cells: pd.DataFrame, natural: pd.DataFrame) -> float:
    trained = cells[cells["kind"].isin(["cg_low_diversity", "cg_high_diversity"])]
    gaps, elsewhere = (part["seen"] - part["held_out"] for part in (trained, natural))
    return float((gaps - elsewhere.reindex(gaps.index)).mean())


def _gains(cells: pd.DataFrame) -> dict[str, float]:
    means = (
        cells.groupby(["test_domain", "held_out_list", "model", "kind"])["held_out"]
        .mean()
        .unstack("kind")
        .reindex(
            columns=["cg_high_diversity", "cg_low_diversity", "natural_only", "leave_out_domain"]
        )
    )
    high = means["cg_high_diversity"]
    return {
        "diversity_gain": (high - means["cg_low_diversity"]).mean(),
        "gain_over_natural_only": (high - means["natural_only"]).mean(),
        "gain_over_leave_out_domain": (high - means["leave_out_domain"]).mean(),
    }


def _explanation(cells: Summary, columns: list[tuple[str, str]], classes: int | None) -> str:
    sizes = []
    for domain, group in columns:
        found = [interval_of(cell["accuracies"], domain, group) for cell in cells]
        images = sorted({int(one["n"] or 0) for one in found if one is not None})
        if images:
            span = f"{images[0]:,}" + (f" to {images[-1]:,}" if len(images) > 1 else "")
            sizes.append(f"{span} of {GROUP_WORDS[group]} classes in {escaped(domain)}")
    chance = "" if classes is None else f" Chance is {percent(1 / classes)} % ({classes} classes)."
    return (
        "Accuracy in percent (of CLIP, zero-shot), averaged over classes, with its confidence "
        f"interval in brackets. Test images: {', '.join(sizes)}.{chance}"
    )


def _comparison_table(
    cells: Summary, columns: Sequence[tuple[str, str]], extra_keys: Sequence[str]
) -> str:
    header = [
        "Mixture",
        *(key.capitalize() for key in extra_keys),
        "Train images",
        *(f"{GROUP_WORDS[group].capitalize()}, {domain}" for domain, group in columns),
    ]
    rows = [
        [
            cell["mixture"],
            *(cell[key] for key in extra_keys),
            f"{cell['train_images']:,}" if "train_images" in cell else MISSING,
            *(_interval_text(interval_of(cell["accuracies"], *column)) for column in columns),
        ]
        for cell in cells
    ]
    return _markdown_table(header, rows, text_columns=1 + ("model" in extra_keys))


def _interval_text(interval: Mapping[str, float | None] | None) -> str:
    if interval is None or interval["estimate"] is None:
        return MISSING
    text = percent(interval["estimate"])
    low, high = interval["low"], interval["high"]
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return text
    return f"{text} [{percent(low)}, {percent(high)}]"


def percent(fraction: float) -> str:
    """Write a fraction as percent with one decimal, without the sign."""
    return f"{100 * fraction:.1f}"


def _markdown_table(
    header: Sequence[object], rows: Sequence[Sequence[object]], *, text_columns: int
) -> str:
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    lines = [[escaped(cell) for cell in header], rule]
    lines += [[escaped(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
