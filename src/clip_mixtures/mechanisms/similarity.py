"""How alike the circuits of a class are in two domains, and how alike they would be by chance.

Units are compared layer by layer, by the Jaccard index of the two sets of channels. Graphs are
compared as wholes, by the scores of ``graphs``. A table of scores has a row a class and pair of
domains; means over classes (:func:`pair_means`) and over pairs (:func:`domain_means`) are made of
it. Their intervals are for the choice of classes, which are resampled whole; they know nothing of
the choice of images or of the training seed.

Every score stands beside its chance level. For units that is the expectation for random channels
of the same number. For graphs there are two: ``chance`` of random channels with random edges, and
``chance_given_units`` of the circuits' own units with random edges. The first says what the units
have in common, the second what the edges have in common beyond that.

``protocol="published"`` repeats the published averages. Units are compared on the classes that the
domain ``real`` has and graphs on the classes that all domains have; and the mean that is said to
exclude a domain leaves it out as second member of a pair only. ``"corrected"`` compares each pair
on the classes that both have, and an excluded domain is in no pair.

Sources:
    The study, section 6 (circuits) and its Figure 6.
    Jaccard, P. (1912). The distribution of the flora in the alpine zone. New Phytologist 11, 37-50.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.chance import expected_jaccard, random_graph
from clip_mixtures.mechanisms.class_bootstrap import bootstrap_over_classes
from clip_mixtures.mechanisms.graph_tables import Graph
from clip_mixtures.mechanisms.graphs import SCORES, Units, check_protocol, score_matrices

GROUPS = ("all", "held_out", "seen")
# The domain whose files name the classes that the published comparison of nodes goes through.
PUBLISHED_CLASSES = "real"
EVERY = "all"

FloatArray: TypeAlias = npt.NDArray[np.float64]
OfDomains: TypeAlias = Mapping[str, Mapping[int, Units]]

_WHERE = "similarity of circuits"
_CHANCES = ("chance", "chance_given_units")


def node_scores(
    units: OfDomains, channels: Mapping[str, int], protocol: str = "corrected"
) -> pd.DataFrame:
    """Compare the units of every class in all pairs of domains, layer by layer.

    Args:
        units: domain to class id to layer to the channels in the circuit, int64, in any order.
        channels: layers to compare, in network order, and how many channels each has. The published
            comparison leaves out ``input``.
        protocol: "corrected" or "published", see the module.

    Returns:
        A row a layer, pair and class that both domains have: ``layer``, ``domain_a``, ``domain_b``,
        ``class_id``, ``similarity`` (Jaccard index, 0 if both sets are empty) and ``chance``.

    Raises:
        UserError: an unknown protocol, or "published" without the domain ``real``.
        ValueError: fewer than two domains, no layers, a class that lacks a layer, or channels that
            a layer does not have.
    """
    classes = _classes(units, protocol)
    if not channels:
        raise ValueError("channels has no layers; give the number of channels of each")
    domains = list(units)
    present = np.array([[label in units[domain] for label in classes] for domain in domains])
    frames = []
    for layer, width in channels.items():
        members = np.zeros((len(classes), len(domains), width), dtype=np.float32)
        for row, label in enumerate(classes):
            for column, domain in enumerate(domains):
                if present[column, row]:
                    found = _layer_units(units[domain][label], layer, width, (domain, label))
                    members[row, column, found] = 1
        # Counts of shared units, exact in float32 below 2^24.
        shared = (members @ members.swapaxes(1, 2)).astype(np.int64)
        for a, b in itertools.combinations(range(len(domains)), 2):
            both = present[a] & present[b]
            first, second, common = (shared[both][:, i, j] for i, j in ((a, a), (b, b), (a, b)))
            frames.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "domain_a": domains[a],
                        "domain_b": domains[b],
                        "class_id": np.array(classes, dtype=np.int64)[both],
                        "similarity": common / np.maximum(first + second - common, 1),
                        "chance": _expected(width, first, second),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def graph_scores(
    graphs: Mapping[str, Mapping[int, Graph]],
    channels: Mapping[str, int],
    *,
    scores: Sequence[str] = SCORES,
    protocol: str = "corrected",
    draws: int = 2,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Compare the graphs of every class in all pairs of domains.

    Args:
        graphs: domain to class id to its graph, as ``graphs.circuit_graph`` returns it.
        channels: how many channels each layer has, to draw random units from.
        scores: among ``graphs.SCORES``.
        protocol: "corrected" or "published", see this module and ``graphs``.
        draws: random graphs of each kind for each class and domain. Their mean over classes is what
            counts, so with hundreds of classes one or two are enough.
        seed: of the random graphs; each class has its own stream, so a selection of classes has the
            same numbers as all.
        progress: show a progress bar over classes.

    Returns:
        A row a score, pair and class that both domains have: ``score``, ``domain_a``,
        ``domain_b``, ``class_id``, ``similarity``, ``chance`` and ``chance_given_units``.

    Raises:
        UserError: an unknown score or protocol, or under "published" no class in all domains.
        ValueError: fewer than two domains, fewer than one draw, or a unit beyond ``channels``.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}; allowed: 1 or more random graphs of each kind")
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    pairs = list(itertools.combinations(graphs, 2))
    for label in tqdm(_classes_of_graphs(graphs, protocol), unit="class", disable=not progress):
        there = {
            domain: of_class[label] for domain, of_class in graphs.items() if label in of_class
        }
        generator = np.random.default_rng([seed, label])
        matrices = [score_matrices(list(there.values()), scores, protocol)]
        for widths in (channels, None):
            drawn = (
                [random_graph(graph, generator, widths) for graph in there.values()]
                for _ in range(draws)
            )
            matrices.append(_mean(score_matrices(each, scores, protocol) for each in drawn))
        for pair in itertools.combinations(there, 2):
            place = tuple(list(there).index(domain) for domain in pair)
            for score in scores:
                values = [float(matrix[score][place]) for matrix in matrices]
                row = dict(zip(("similarity", *_CHANCES), values, strict=True))
                rows.setdefault((score, *pair), []).append({"class_id": label, **row})
    return pd.DataFrame(
        [
            {"score": score, "domain_a": a, "domain_b": b, **row}
            for score in scores
            for a, b in pairs
            for row in rows.get((score, a, b), [])
        ],
        columns=["score", "domain_a", "domain_b", "class_id", "similarity", *_CHANCES],
    )


def node_similarity(
    units: OfDomains,
    channels: Mapping[str, int],
    held_out: Collection[int],
    *,
    protocol: str = "corrected",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Average :func:`node_scores` over classes; arguments there and in :func:`pair_means`."""
    scores = node_scores(units, channels, protocol)
    return pair_means(scores, held_out, resamples=resamples, confidence=confidence, seed=seed)


def graph_similarity(
    graphs: Mapping[str, Mapping[int, Graph]],
    channels: Mapping[str, int],
    held_out: Collection[int],
    *,
    scores: Sequence[str] = SCORES,
    protocol: str = "corrected",
    draws: int = 2,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Average :func:`graph_scores` over classes; arguments there and in :func:`pair_means`."""
    found = graph_scores(graphs, channels, scores=scores, protocol=protocol, draws=draws, seed=seed)
    return pair_means(found, held_out, resamples=resamples, confidence=confidence, seed=seed)


def pair_means(
    scores: pd.DataFrame,
    held_out: Collection[int],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Average scores over classes: of all, of the held-out and of the seen ones.

    Args:
        scores: as of :func:`node_scores` or :func:`graph_scores`.
        held_out: class ids of the group ``held_out``; the others are ``seen``.
        resamples: bootstrap resamples of the classes.
        confidence: coverage aimed at.
        seed: of the resampling.

    Returns:
        A row a layer (or score), pair and group: ``layer`` or ``score``, ``domain_a``,
        ``domain_b``, ``group``, ``similarity`` with ``low`` and ``high``, ``chance`` (and
        ``chance_given_units``), ``classes`` averaged and ``missing``, those of the group that one
        of the two domains lacks and another pair has. The ends are NaN with one class. Groups
        without a class have no rows.

    Raises:
        ValueError: the table has no rows or lacks columns, or see ``bootstrap_over_classes``.
    """
    key, chances = _columns(scores)
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    rows = []
    expected = {
        group: scores["class_id"][chosen].nunique()
        for group, chosen in class_groups(scores["class_id"], held_out)
    }
    for names, part in scores.groupby([key, "domain_a", "domain_b"], sort=False):
        for group, chosen in class_groups(part["class_id"], held_out):
            there = part[chosen]
            rows.append(
                {
                    **dict(zip((key, "domain_a", "domain_b"), names, strict=True)),
                    "group": group,
                    **_averaged(there, chances, np.ones(len(there)), options),
                    "classes": len(there),
                    "missing": expected[group] - len(there),
                }
            )
    return pd.DataFrame(rows)


def domain_means(
    scores: pd.DataFrame,
    held_out: Collection[int],
    *,
    excluding: str | None = None,
    protocol: str = "corrected",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Average scores over classes and pairs: those with each domain, all, and all but a domain's.

    Every pair counts alike, however many classes it has. The published mean "excluding" a domain
    runs over ordered pairs and looks at the second member only: pairs with the domain count half.

    Args:
        scores: as of :func:`node_scores` or :func:`graph_scores`.
        held_out: see :func:`pair_means`.
        excluding: a domain to leave out in one more mean; None for no such mean.
        protocol: "corrected" or "published", see the module.
        resamples: see :func:`pair_means`.
        confidence: see there.
        seed: see there.

    Returns:
        A row a layer (or score), ``domain`` and ``group``. ``domain`` is a domain, for its pairs,
        "all", or "all but <excluding>". Further ``similarity``, ``low``, ``high``, ``chance`` (and
        ``chance_given_units``), ``pairs`` and ``classes``.

    Raises:
        UserError: an unknown protocol.
        ValueError: ``excluding`` is in no pair or leaves none; or see :func:`pair_means`.
    """
    check_protocol(protocol, _WHERE)
    key, chances = _columns(scores)
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    rows = []
    for name, of_key in scores.groupby(key, sort=False):
        for domain, weights in _selections(of_key, excluding, protocol):
            part, shares = of_key[weights > 0], weights[weights > 0]
            for group, chosen in class_groups(part["class_id"], held_out):
                there = part[chosen]
                pairs = there.groupby(["domain_a", "domain_b"])["class_id"]
                weight = shares[there.index] / pairs.transform("size")
                rows.append(
                    {
                        key: name,
                        "domain": domain,
                        "group": group,
                        **_averaged(there, chances, weight.to_numpy(dtype=np.float64), options),
                        "pairs": pairs.ngroups,
                        "classes": int(there["class_id"].nunique()),
                    }
                )
    return pd.DataFrame(rows)


def class_groups(
    class_ids: pd.Series[int], held_out: Collection[int]
) -> Iterator[tuple[str, pd.Series[bool]]]:
    """Yield the name of each group that has a class, and which rows belong to it.

    Args:
        class_ids: of each row.
        held_out: class ids of the group ``held_out``; the others are ``seen``.
    """
    inside = class_ids.isin(set(held_out))
    for group, rows in zip(GROUPS, (inside | True, inside, ~inside), strict=True):
        if rows.any():
            yield group, rows


def _classes(units: Mapping[str, Mapping[int, Any]], protocol: str) -> list[int]:
    """Check domains; return the classes to go through, ascending."""
    check_protocol(protocol, _WHERE)
    if len(units) < 2:
        raise ValueError(f"domains are {list(units)}; give at least two to compare")
    if protocol == "published" and PUBLISHED_CLASSES not in units:
        raise UserError(
            f"{_WHERE}: protocol 'published' takes its classes from the domain "
            f"{PUBLISHED_CLASSES!r}, which is not among {', '.join(units)}; use 'corrected'"
        )
    named = [PUBLISHED_CLASSES] if protocol == "published" else list(units)
    return sorted({label for domain in named for label in units[domain]})


def _classes_of_graphs(graphs: Mapping[str, Mapping[int, Graph]], protocol: str) -> list[int]:
    if protocol != "published":
        return _classes(graphs, protocol)
    if len(graphs) < 2:
        raise ValueError(f"domains are {list(graphs)}; give at least two to compare")
    everywhere = set.intersection(*(set(of_class) for of_class in graphs.values()))
    if not everywhere:
        raise UserError(
            f"{_WHERE}: no class is in all of {', '.join(graphs)}, and protocol 'published' "
            "compares no others; use 'corrected'"
        )
    return sorted(everywhere)


def _layer_units(
    units: Units, layer: str, width: int, place: tuple[str, int]
) -> npt.NDArray[np.int64]:
    domain, label = place
    where = f"class {label} in {domain!r}"
    if layer not in units:
        raise ValueError(f"{where} has no units of layer {layer!r}; give all layers of channels")
    found = np.asarray(units[layer], dtype=np.int64)
    if found.size and (found.min() < 0 or found.max() >= width):
        raise ValueError(f"{where}: layer {layer!r} has units beyond its {width} channels")
    return found


def _expected(
    width: int, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> FloatArray:
    sizes = zip(first.tolist(), second.tolist(), strict=True)
    return np.array([expected_jaccard(width, a, b) for a, b in sizes], dtype=np.float64)


def _mean(matrices: Iterable[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    listed = list(matrices)
    return {score: np.mean([each[score] for each in listed], axis=0) for score in listed[0]}


def _columns(scores: pd.DataFrame) -> tuple[str, list[str]]:
    """Return the name of the column that tells rows apart, and the columns of chance."""
    keys = [name for name in ("layer", "score") if name in scores]
    needed = ["domain_a", "domain_b", "class_id", "similarity", "chance"]
    missing = [name for name in needed if name not in scores]
    if len(keys) != 1 or missing or scores.empty:
        raise ValueError(
            f"a table of {len(scores)} scores with columns {list(scores.columns)}; make it with "
            "node_scores or graph_scores, of at least one class that two domains have"
        )
    return keys[0], [name for name in _CHANCES if name in scores]


def _averaged(
    rows: pd.DataFrame,
    chances: Sequence[str],
    weights: FloatArray,
    options: Mapping[str, Any],
) -> dict[str, float]:
    _, classes = np.unique(rows["class_id"], return_inverse=True)
    found = bootstrap_over_classes(
        rows["similarity"].to_numpy(dtype=np.float64), classes, weights=weights, **options
    )
    by_chance = {name: float(np.average(rows[name], weights=weights)) for name in chances}
    return {"similarity": found.estimate, "low": found.low, "high": found.high, **by_chance}


def _selections(
    scores: pd.DataFrame, excluding: str | None, protocol: str
) -> list[tuple[str, pd.Series[float]]]:
    """Name the means over pairs and weigh the rows for each; 0 leaves a row out."""
    first, second = scores["domain_a"], scores["domain_b"]
    domains = list(dict.fromkeys([*first, *second]))
    found = [(name, ((first == name) | (second == name)).astype(float)) for name in domains]
    found.append((EVERY, pd.Series(1.0, index=scores.index)))
    if excluding is None:
        return found
    if excluding not in domains or len(domains) < 3:
        raise ValueError(
            f"excluding {excluding!r} from {', '.join(domains)}; name one of three or more domains"
        )
    left = 0.5 if protocol == "published" else 0.0
    without = ((first != excluding) & (second != excluding)).astype(float)
    return [*found, (f"{EVERY} but {excluding}", without.where(without > 0, left))]
