"""How much more one mixture reaches than another, pair by pair, on the same test images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from clip_mixtures.evaluation.accuracy import GROUPS
from clip_mixtures.evaluation.statistics import Interval, paired_difference, paired_over_seeds
from clip_mixtures.report.document import MISSING, Column, Entry, Table
from clip_mixtures.report.tables import GROUP_WORDS, Cell, Summary, distinct, interval_of

# With more mixtures than this not every pair is of interest, nor could anyone read them all.
MOST_MIXTURES = 6
# What all others are compared with then.
_BASELINES = ("natural_only", "leave_out_domain")
# Shade of a difference whose interval leaves out zero.
_CLEAR = 2

# From a run to its last answers on the images of the test domain: row, class_id and prediction.
Answers = Callable[[str], pd.DataFrame]


def pairs_of(mixtures: Sequence[str], kinds: Mapping[str, str]) -> list[tuple[str, str]]:
    """Choose which mixtures are compared.

    Args:
        mixtures: in the order of the study.
        kinds: the kind of each.

    Returns:
        Pairs (a, b), of which the difference is b minus a: all of them of up to
        ``MOST_MIXTURES`` mixtures, the later one minus the earlier. Of more, every mixture minus
        each natural-only and each leave-out-domain mixture; where there is neither, minus the
        first.
    """
    if len(mixtures) <= MOST_MIXTURES:
        return list(itertools.combinations(mixtures, 2))
    baselines = [key for key in mixtures if kinds.get(key) in _BASELINES] or [mixtures[0]]
    order = [*baselines, *(key for key in mixtures if key not in baselines)]
    return [
        (first, second) for first, second in itertools.combinations(order, 2) if first in baselines
    ]


def paired_differences(
    summary: Summary,
    kinds: Mapping[str, str],
    held_out: Mapping[str, frozenset[int]],
    answers: Answers,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Estimate the differences between mixtures in the test domain, model by model.

    Args:
        summary: the cells, see :mod:`clip_mixtures.report.tables`.
        kinds: the kind of each mixture.
        held_out: the class ids that each mixture holds out.
        answers: gives a run's answers on the test domain; called for pairs of a single seed only.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        A row a pair and group of classes: ``test_domain``, ``model``, ``mixture_a``,
        ``mixture_b``, ``group``, ``estimate`` (b minus a, balanced accuracies as fractions),
        ``low``, ``high``, ``n`` and ``over``. Where both mixtures have several seeds in common,
        the interval is Student's t over their differences and ``over`` is "seeds"; else that of
        the paired bootstrap over classes and test images, and ``over`` is "images". Pairs that
        hold out other classes, or that have no seed in common, have no row.

    Raises:
        ValueError: two runs have answers to different images.
    """
    rows: list[dict[str, Any]] = []
    for domain, model in distinct((cell["test_domain"], cell["model"]) for cell in summary):
        cells = [
            cell for cell in summary if (cell["test_domain"], cell["model"]) == (domain, model)
        ]
        by_mixture: dict[str, dict[int, Cell]] = {}
        for cell in cells:
            by_mixture.setdefault(cell["mixture"], {})[cell["seed"]] = cell
        for first, second in pairs_of(list(by_mixture), kinds):
            if held_out[first] != held_out[second]:
                continue
            facts = {"test_domain": domain, "model": model}
            facts |= {"mixture_a": first, "mixture_b": second}
            common = sorted(by_mixture[first].keys() & by_mixture[second].keys())
            cells_of_pair = [
                [by_mixture[key][number] for number in common] for key in (first, second)
            ]
            if len(common) > 1:
                found = _over_seeds(*cells_of_pair)
            elif common:
                runs = [part[0]["run"] for part in cells_of_pair]
                found = _over_images(runs, held_out[first], answers, resamples, seed)
            else:
                continue
            rows += [{**facts, **row} for row in found]
    names = ["test_domain", "model", "mixture_a", "mixture_b", "group", "estimate", "low", "high"]
    return pd.DataFrame(rows, columns=[*names, "n", "over"])


def _over_seeds(first: Summary, second: Summary) -> Iterator[dict[str, Any]]:
    for group in GROUPS:
        of_first, of_second = (
            {
                cell["seed"]: float(found["estimate"])
                for cell in cells
                if (found := _of(cell, group)) and _is_known(found["estimate"])
            }
            for cells in (first, second)
        )
        if of_first and of_first.keys() == of_second.keys():
            interval = paired_over_seeds(of_first, of_second)
            yield {"group": group, **_numbers(interval), "over": "seeds"}


def _over_images(
    runs: Sequence[str], held_out: frozenset[int], answers: Answers, resamples: int, seed: int
) -> Iterator[dict[str, Any]]:
    both = [answers(run) for run in runs]
    for group in GROUPS:
        first, second = (_in_group(one, held_out, group) for one in both)
        if first["row"].tolist() != second["row"].tolist():
            raise ValueError(f"runs {' and '.join(runs)} have answers to different images")
        if len(first):
            labels, one, other = (
                column.to_numpy(dtype="int64")
                for column in (first["class_id"], first["prediction"], second["prediction"])
            )
            interval = paired_difference(
                labels, one, other, average="balanced", resamples=resamples, seed=seed
            )
            yield {"group": group, **_numbers(interval), "over": "images"}


def _of(cell: Cell, group: str) -> Mapping[str, Any] | None:
    return interval_of(cell["accuracies"], cell["test_domain"], group)


def _in_group(answers: pd.DataFrame, held_out: frozenset[int], group: str) -> pd.DataFrame:
    is_held_out = answers["class_id"].isin(list(held_out))
    return answers[is_held_out if group == GROUPS[0] else ~is_held_out].sort_values("row")


def _numbers(interval: Interval) -> dict[str, float]:
    return {key: getattr(interval, key) for key in ("estimate", "low", "high", "n")}


def difference_tables(differences: pd.DataFrame) -> Iterator[Table]:
    """Tabulate the differences, a table for each test domain, in percentage points.

    Args:
        differences: of :func:`paired_differences`.
    """
    for domain, part in differences.groupby("test_domain", sort=False):
        several = part["model"].nunique() > 1
        columns = [
            Column("Difference", heads_row=True),
            *([Column("Model")] if several else []),
            *(Column(f"{GROUP_WORDS[group].capitalize()}, {domain}", True) for group in GROUPS),
        ]
        rows = []
        keys = ["mixture_b", "mixture_a", "model"]
        for (second, first, model), found in part.groupby(keys, sort=False):
            by_group = found.set_index("group").to_dict("index")
            rows.append(
                (
                    Entry(f"{second} minus {first}"),
                    *([Entry(str(model))] if several else []),
                    *(_entry(by_group.get(group)) for group in GROUPS),
                )
            )
        over = " and ".join(_OVER[name] for name in distinct(part["over"]))
        yield Table(
            f"Differences in {domain}",
            f"Percentage points between mixtures in {domain}; in brackets the 95 % interval of the "
            f"difference {over}. Shaded: the interval leaves out 0.",
            tuple(columns),
            tuple(rows),
        )


_OVER = {
    "images": "over classes and test images, the same for both",
    "seeds": "over seeds (Student's t), each seed paired with itself",
}


def _entry(found: Mapping[Any, Any] | None) -> Entry:
    if found is None:
        return Entry(MISSING)
    middle, low, high = (100 * float(found[name]) for name in ("estimate", "low", "high"))
    clear = low > 0 or high < 0
    note = "" if math.isnan(low) else f"[{low:+.1f}, {high:+.1f}]"
    return Entry(f"{middle:+.1f}", round(middle, 4), note, shade=_CLEAR if clear else 0)


def _is_known(estimate: float | None) -> bool:
    return estimate is not None and math.isfinite(estimate)
