"""Choose a mixture's rows (paper section 3.2, appendix B).

All mixtures of a test domain but the natural-only one are cut to one size, that of its
low-diversity mixture, so that they differ in what they contain and not in how much.

The lists are sorted into (domain, class) groups once; a mixture is then a number of rows for each
group, its *quota*, and costs milliseconds. The published protocol takes the first rows of a group
and cuts the surplus of rounding up from the natural domain first; the corrected one takes random
rows (the same ones whatever else is in the lists, and nested, so that a larger share contains a
smaller one) and gives every group the nearest whole number to its share, one at the least.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd

from clip_mixtures.errors import UserError
from clip_mixtures.index import Rows
from clip_mixtures.mixtures.spec import NATURAL_DOMAIN, Mixture

# The published trimming goes round the domains in this order.
TRIM_ORDER = ("real", "quickdraw", "painting", "sketch", "infograph", "clipart")

Flags = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class MixtureRows:
    """Row numbers of a domain index.

    Attributes:
        train: (n,) int64, in training order: domain, then class, then the lists' order.
        validation: (m,) int64, of the test lists; never subsampled.
    """

    train: Rows
    validation: Rows


@dataclasses.dataclass(frozen=True)
class Strata:
    """A domain index sorted into (domain, class) groups; G groups, n training and m test rows.

    Attributes:
        domains: (G,) domain of each group.
        classes: (G,) class name of each group.
        counts: (G,) int64, training rows of each group; 0 where a class has test rows alone.
        rows: (n,) int64 training rows, group after group, in the lists' order within a group.
        groups: (n,) int64, the group of each of ``rows``.
        validation: (m,) int64 test rows in the lists' order.
        validation_groups: (m,) int64, the group of each of ``validation``.
        paths: (n,) paths of ``rows``, from which random subsamples are drawn.
    """

    domains: npt.NDArray[np.object_]
    classes: npt.NDArray[np.object_]
    counts: Rows
    rows: Rows
    groups: Rows
    validation: Rows
    validation_groups: Rows
    paths: pd.Series
    # Kept, because every mixture of a seed asks for the same one.
    random_order: dict[int, Rows] = dataclasses.field(default_factory=dict, compare=False)

    def is_held_out(self, mixture: Mixture) -> Flags:
        """Mark the groups (G,) that are a held-out class in the test domain."""
        return np.asarray(
            (self.domains == mixture.test_domain) & np.isin(self.classes, list(mixture.held_out))
        )

    def list_ranks(self) -> Rows:
        """Return the position (n,) of each of ``rows`` within its group."""
        starts = np.cumsum(self.counts) - self.counts
        return np.asarray(np.arange(len(self.rows)) - starts[self.groups], dtype=np.int64)

    def random_ranks(self, seed: int) -> Rows:
        """Return the position (n,) of each of ``rows`` in a random order of its group."""
        if seed not in self.random_order:
            order = np.lexsort((random_keys(self.paths, seed), self.groups))
            self.random_order[seed] = np.empty(len(order), dtype=np.int64)
            self.random_order[seed][order] = self.list_ranks()
        return self.random_order[seed]


def random_keys(names: Iterable[str], seed: int) -> npt.NDArray[np.uint64]:
    """Return a random number (n,) for each name, which depends on it and the seed alone."""
    key = seed.to_bytes(8, "big")
    digests = b"".join(
        hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
        for name in names
    )
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def stratify(frame: pd.DataFrame) -> Strata:
    """Sort a domain index into groups.

    Args:
        frame: columns path, domain, class_name and split, rows numbered 0..n-1; domains in order,
            classes in order of first appearance.
    """
    domain_codes, domains = pd.factorize(frame["domain"])
    class_codes, classes = pd.factorize(frame["class_name"])
    pairs = domain_codes.astype(np.int64) * len(classes) + class_codes
    # Groups are numbered by their first appearance, domain by domain.
    codes, present = pd.factorize(pairs)
    by_domain = np.argsort(present // max(len(classes), 1), kind="stable")
    number = np.empty(len(present), dtype=np.int64)
    number[by_domain] = np.arange(len(present))
    groups = number[codes]
    present = present[by_domain]
    in_train = (frame["split"] == "train").to_numpy(dtype=bool)
    train = np.flatnonzero(in_train)
    rows = train[np.argsort(groups[train], kind="stable")]
    validation = np.flatnonzero(~in_train)
    return Strata(
        domains=np.asarray(domains, dtype=object)[present // max(len(classes), 1)],
        classes=np.asarray(classes, dtype=object)[present % max(len(classes), 1)],
        counts=np.bincount(groups[train], minlength=len(present)).astype(np.int64),
        rows=rows,
        groups=groups[rows],
        validation=validation,
        validation_groups=groups[validation],
        paths=frame["path"].iloc[rows],
    )


def select_rows(frame: pd.DataFrame, mixture: Mixture) -> MixtureRows:
    """Choose the rows of a domain index that make a mixture; see :func:`choose_rows`."""
    return choose_rows(stratify(frame), mixture)


def choose_rows(strata: Strata, mixture: Mixture) -> MixtureRows:
    """Choose the rows that make a mixture.

    Args:
        strata: the sorted index.
        mixture: what to choose.

    Raises:
        UserError: when there are fewer images than the size asked for.
    """
    held_out = strata.is_held_out(mixture)
    taken = np.isin(strata.domains, list(mixture.domains))
    tested = taken & ~held_out if mixture.holds_out or mixture.corrected else taken
    validation = strata.validation[tested[strata.validation_groups]]
    quotas = _quotas(strata, mixture)
    if not mixture.subsample or not mixture.corrected:
        ranks = strata.list_ranks()
    else:
        ranks = strata.random_ranks(mixture.subsample_seed)
    return MixtureRows(strata.rows[ranks < quotas[strata.groups]], validation)


def _quotas(strata: Strata, mixture: Mixture) -> Rows:
    """Return how many rows (G,) each group gives to a mixture."""
    held_out = strata.is_held_out(mixture)
    taken = np.isin(strata.domains, list(mixture.domains))
    kept = taken & ~held_out if mixture.holds_out else taken
    pool = np.where(kept, strata.counts, 0)
    if not mixture.subsample:
        return np.asarray(pool, dtype=np.int64)
    target = mixture.size if mixture.size is not None else _low_diversity_size(strata, mixture)
    _check_target(mixture, target, int(pool.sum()))
    share = target / max(int(pool.sum()), 1)
    fixed = np.full(len(pool), -1, dtype=np.int64)
    if mixture.dose_matched:
        dose = _quotas(strata, mixture.low_diversity())
        fixed = np.where(kept & (strata.domains == mixture.test_domain), dose, fixed)
    elif mixture.allow > 0:
        let_in = mixture.allow * share * pool
        # Rounded to the nearest, but none of the classes that are let in stays out altogether.
        nearest = np.maximum(np.rint(let_in), np.minimum(pool, 1))
        let_in = nearest if mixture.corrected else np.ceil(let_in)
        fixed = np.where(kept & held_out, let_in.astype(np.int64), fixed)
    is_free = kept & (fixed < 0)
    free = target - int(fixed[fixed >= 0].sum())
    rest = np.where(is_free, pool, 0)
    if free < 0:
        raise UserError(
            f"mixtures.{mixture.key}: {target - free} images are of a fixed number (allow or "
            f"dose_matched), more than the {target} to cut to; make the size larger"
        )
    if free > rest.sum():
        raise UserError(
            f"mixtures.{mixture.key}: {free} images are to come from what is neither held out nor "
            f"of a fixed number, and there are {rest.sum()}; add domains or change the size"
        )
    divide = _nearest_shares if mixture.corrected else _published_shares
    quotas = divide(rest, free, strata.domains)
    return np.asarray(np.where(fixed >= 0, fixed, quotas), dtype=np.int64)


def _low_diversity_size(strata: Strata, mixture: Mixture) -> int:
    """Return how many training images the natural and the test domain have, none held out."""
    pair = np.isin(strata.domains, [NATURAL_DOMAIN, mixture.test_domain])
    return int(strata.counts[pair & ~strata.is_held_out(mixture)].sum())


def _check_target(mixture: Mixture, target: int, pool: int) -> None:
    if target > pool:
        raise UserError(
            f"mixtures.{mixture.key}: {pool} images in domains {', '.join(mixture.domains)}, "
            f"fewer than the {target} to cut to; add domains or say subsample: false"
        )


def _published_shares(counts: Rows, target: int, domains: npt.NDArray[np.object_]) -> Rows:
    """Round every group's share up, then take rows away, domain by domain, class by class."""
    if not counts.any():
        return counts
    quotas: Rows = np.ceil(target / int(counts.sum()) * counts).astype(np.int64)
    order = _trim_order(domains)
    surplus = int(quotas.sum()) - target
    while surplus > 0:
        losing = order[quotas[order] > 0][:surplus]
        quotas[losing] -= 1
        surplus -= len(losing)
    return quotas


def _trim_order(domains: npt.NDArray[np.object_]) -> Rows:
    """Return the groups (G,) in the order in which they lose a row."""
    present = set(domains)
    listed = [domain for domain in TRIM_ORDER if domain in present]
    order = {domain: place for place, domain in enumerate(listed + sorted(present - set(listed)))}
    return np.argsort([order[domain] for domain in domains], kind="stable").astype(np.int64)


def _nearest_shares(counts: Rows, target: int, domains: npt.NDArray[np.object_]) -> Rows:
    """Divide a size in proportion, by largest remainders; no group that has rows ends with none.

    With fewer rows to give than groups, the largest groups get one each.
    """
    if not counts.any():
        return counts
    exact = target / int(counts.sum()) * counts
    least = np.minimum(counts, 1) if target >= int((counts > 0).sum()) else np.zeros_like(counts)
    quotas: Rows = np.clip(np.floor(exact).astype(np.int64), least, counts)
    while (missing := target - int(quotas.sum())) != 0:
        remainder = exact - quotas
        if missing > 0:
            order = np.argsort(-remainder, kind="stable")
            changing = order[quotas[order] < counts[order]][:missing]
            quotas[changing] += 1
        else:
            order = np.argsort(remainder, kind="stable")
            changing = order[quotas[order] > least[order]][:-missing]
            quotas[changing] -= 1
    return quotas


def count_table(frame: pd.DataFrame, rows: Rows, mixture: Mixture) -> pd.DataFrame:
    """Count a selection by domain and class group.

    Returns:
        Columns domain, group ("held_out" | "seen" by class name, in whatever domain), images,
        classes; domains in the corpus' order.
    """
    chosen = frame.iloc[rows]
    group = np.where(chosen["class_name"].isin(mixture.held_out), "held_out", "seen")
    table = chosen.assign(group=group).groupby(["domain", "group"], sort=False, observed=True)
    counts = table.agg(images=("class_name", "size"), classes=("class_name", "nunique"))
    return counts.reset_index()
