"""How many units of a sparse autoencoder two domains of a class have in common.

For a class in a domain, a histogram counts how often each unit is among the twenty strongest of an
image. Two domains share the units that are among the k most frequent of both; the mean over
k = 5, 10, 15, 20 is the sharing (paper, appendix C.1, Algorithms 1 and 2).

``protocol="published"`` repeats two oddities of the published numbers. Its k most frequent units
may have a count of zero, and units with equal counts are picked by the sorting routine's whim; and
the score is that of the last domain, sketch, whichever was asked for. ``"corrected"`` never calls a
unit shared that no image has among its strongest. Where the k-th place falls among units with equal
counts, each of them has an equal part in the places that are left, and a unit is shared by the
smaller of its two parts: no order decides, and equal histograms share all of their k units.

Units that fire for nearly every image are shared by any two domains, whatever is in the images. So
a sharing is read beside its *chance level* (:func:`chance_matrix`): what a class in the one domain
shares with all other classes in the other, by the same rule. What is above it is the class's own.
The published study has no such level; it is computed under either protocol and changes no other
number.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm import tqdm

from clip_mixtures.evaluation.statistics import Interval
from clip_mixtures.mechanisms.class_bootstrap import bootstrap_over_classes
from clip_mixtures.mechanisms.sae import SparseAutoencoder
from clip_mixtures.mixtures.spec import PROTOCOLS

KS = (5, 10, 15, 20)
TOP = 20

Counts: TypeAlias = npt.NDArray[np.int64]
Matrix: TypeAlias = npt.NDArray[np.float64]
Floats: TypeAlias = npt.NDArray[np.floating[Any]] | torch.Tensor
Ids: TypeAlias = npt.NDArray[Any] | torch.Tensor | Sequence[Hashable]


def histograms(
    codes: Floats,
    class_ids: Ids,
    domain_ids: Ids,
    classes: Sequence[Hashable],
    domains: Sequence[Hashable],
    top: int = TOP,
) -> Counts:
    """Count, for each class in each domain, the images that have a unit among their strongest.

    Args:
        codes: activations of the units, zero or more, shape (N, m).
        class_ids: of each image, (N,).
        domain_ids: of each image, (N,), numbers or names.
        classes: which classes to count, and in which order.
        domains: the same of domains.
        top: strongest units of an image; those that are zero never count.

    Returns:
        (classes, domains, m) int64.

    Raises:
        ValueError: arrays do not match, or a class has no images in a domain.
    """
    values = torch.as_tensor(codes)
    if values.ndim != 2:
        raise ValueError(f"codes have shape {tuple(values.shape)}; give (images, units)")
    cells = _cells(len(values), class_ids, domain_ids, classes, domains)
    counts = torch.zeros((len(classes) * len(domains), values.shape[1]), dtype=torch.int64)
    _count(counts, values, cells, top)
    return np.asarray(counts.view(len(classes), len(domains), -1).numpy())


def feature_histograms(
    model: SparseAutoencoder,
    features: Floats,
    class_ids: Ids,
    domain_ids: Ids,
    classes: Sequence[Hashable],
    domains: Sequence[Hashable],
    top: int = TOP,
    batch_size: int = 2048,
) -> Counts:
    """Encode features and count as :func:`histograms` does, holding a batch of codes at a time.

    Args:
        model: the autoencoder.
        features: normalised image features, (N, n); a memory map will do.
        class_ids: see :func:`histograms`.
        domain_ids: see there.
        classes: see there; images of other classes are not encoded.
        domains: see there.
        top: see there.
        batch_size: images to encode at a time.

    Returns:
        (classes, domains, m) int64.

    Raises:
        ValueError: as there, or when the features' width is not that of the autoencoder.
    """
    cells = _cells(len(features), class_ids, domain_ids, classes, domains)
    wanted = (cells >= 0).nonzero().squeeze(1)
    counts = torch.zeros((len(classes) * len(domains), model.units), dtype=torch.int64)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for rows in tqdm(wanted.split(batch_size), desc="encoding", unit="batch", mininterval=1):
            batch = torch.as_tensor(features[rows.numpy()]).to(model.tied_bias.device)
            _count(counts, model.encode(batch).cpu(), cells[rows], top)
    model.train(was_training)
    return np.asarray(counts.view(len(classes), len(domains), -1).numpy())


def mean_shared(
    hist_a: Floats | Counts,
    hist_b: Floats | Counts,
    ks: Sequence[int] = KS,
    protocol: str = "corrected",
) -> float:
    """Return the share of the k most frequent units that two histograms share, a mean over ks.

    Args:
        hist_a: counts of the units in one domain, (m,).
        hist_b: counts of the same units in the other, (m,).
        ks: how many units count as most frequent.
        protocol: "corrected" or "published", see the module. Either divides by k, so under
            "corrected" places for which there are no units count as not shared.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: the histograms do not match, hold fewer than k units, or hold something else
            than counts.
    """
    part = _part_of_protocol(protocol)
    first, second = _checked(hist_a), _checked(hist_b)
    if first.shape != second.shape:
        raise ValueError(
            f"histograms of {len(first)} and {len(second)} units; compare domains under one "
            "autoencoder"
        )
    _check_ks(ks, len(first))
    shares = [torch.minimum(part(first, k), part(second, k)).sum().item() / k for k in ks]
    return float(np.mean(shares))


def sharing_matrix(counts: Counts, ks: Sequence[int] = KS, protocol: str = "corrected") -> Matrix:
    """Compare all domains of a class, or of several.

    Args:
        counts: (..., domains, m), as :func:`histograms` returns.
        ks: see :func:`mean_shared`.
        protocol: see there.

    Returns:
        (..., domains, domains), symmetric.

    Raises:
        ValueError: see :func:`mean_shared`.
    """
    shape = np.shape(counts)
    if len(shape) < 2:
        raise ValueError(f"counts have shape {shape}; give (..., domains, units)")
    matrices = np.zeros((*shape[:-1], shape[-2]))
    for place in np.ndindex(shape[:-2]):
        for a in range(shape[-2]):
            for b in range(a + 1):
                shared = mean_shared(counts[place][a], counts[place][b], ks, protocol)
                matrices[(*place, a, b)] = matrices[(*place, b, a)] = shared
    return matrices


def chance_matrix(counts: Counts, ks: Sequence[int] = KS, protocol: str = "corrected") -> Matrix:
    """Compare each class in a domain with all other classes in all domains, instead of itself.

    Exact, not drawn: few units are among the most frequent of a class, and none but these can be
    shared, so that each class is compared with all others at once in the places of its own units.

    Args:
        counts: (classes, domains, m), as :func:`histograms` returns.
        ks: see :func:`mean_shared`.
        protocol: see there.

    Returns:
        (classes, domains, domains): in row c, a and column b, what class c in domain a shares with
        another class in domain b, a mean over the others. Its mean over classes is symmetric. NaN
        for a single class, which has no others.

    Raises:
        ValueError: counts of another shape, or see :func:`mean_shared`.
    """
    if np.ndim(counts) != 3:
        raise ValueError(f"counts have shape {np.shape(counts)}; give (classes, domains, units)")
    part = _part_of_protocol(protocol)
    classes, domains, units = np.shape(counts)
    checked = torch.stack([_checked(row) for row in np.reshape(counts, (-1, units))])
    _check_ks(ks, units)
    if classes < 2:
        return np.full((classes, domains, domains), np.nan)
    totals = torch.zeros((classes, domains, domains), dtype=torch.float64)
    for k in ks:
        parts = torch.stack([part(row, k) for row in checked]).view(classes, domains, units)
        for c, a in np.ndindex(classes, domains):
            mine = parts[c, a].nonzero().squeeze(1)
            shared = torch.minimum(parts[:, :, mine], parts[c, a, mine]).sum(dim=2)
            totals[c, a] += (shared.sum(dim=0) - shared[c]) / k
    return np.asarray((totals / (len(ks) * (classes - 1))).numpy())


def sharing_table(
    counts: Counts,
    classes: Sequence[Hashable],
    domains: Sequence[Hashable],
    ks: Sequence[int] = KS,
    protocol: str = "corrected",
) -> pd.DataFrame:
    """Return the sharing of every two domains in every class, beside its chance level.

    Returns:
        Columns ``class``, ``domain_a``, ``domain_b``, ``shared``, a fraction, and ``chance``, what
        the class in ``domain_a`` shares with the others in ``domain_b`` (:func:`chance_matrix`); a
        domain with itself included, both orders of a pair.

    Raises:
        ValueError: when counts are not of shape (classes, domains, m); see :func:`mean_shared`.
    """
    if np.shape(counts)[:-1] != (len(classes), len(domains)):
        raise ValueError(
            f"counts have shape {np.shape(counts)}; expected ({len(classes)}, {len(domains)}, "
            "units)"
        )
    index = pd.MultiIndex.from_product(
        [classes, domains, domains], names=["class", "domain_a", "domain_b"]
    )
    shared = sharing_matrix(counts, ks, protocol).ravel()
    chance = chance_matrix(counts, ks, protocol).ravel()
    return pd.DataFrame({"shared": shared, "chance": chance}, index=index).reset_index()


def score(
    matrices: Matrix,
    domains: Sequence[Hashable],
    domain: Hashable,
    protocol: str = "corrected",
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Average what a domain shares with the others, over them and over classes.

    Args:
        matrices: (classes, domains, domains), as :func:`sharing_matrix` returns.
        domains: their order in the matrices.
        domain: which one; under ``published`` always the last, as the published program does.
        protocol: "corrected" or "published".
        resamples: bootstrap resamples of the classes.
        confidence: coverage aimed at.
        seed: of the resampling.

    Returns:
        The mean and its interval over classes, see ``class_bootstrap``; ``n`` is the number of
        classes, and with one class the ends are NaN.

    Raises:
        ValueError: an unknown domain or protocol, fewer than two domains, or other shapes.
    """
    of_class = _of_classes(matrices, domains, domain, protocol)
    return bootstrap_over_classes(
        of_class,
        np.arange(len(of_class)),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def chance_score(
    chances: Matrix,
    domains: Sequence[Hashable],
    domain: Hashable,
    protocol: str = "corrected",
) -> float:
    """Average the chance level of a domain's score, over the others and over classes.

    Args:
        chances: (classes, domains, domains), as :func:`chance_matrix` returns.
        domains: see :func:`score`.
        domain: see there.
        protocol: see there.

    Returns:
        A fraction: what :func:`score` would be if every class of the domain stood beside another
        class of the other domains. NaN with one class.

    Raises:
        ValueError: see :func:`score`.
    """
    return float(_of_classes(chances, domains, domain, protocol).mean())


def _of_classes(
    matrices: Matrix, domains: Sequence[Hashable], domain: Hashable, protocol: str
) -> Matrix:
    """Return what a domain shares with the others in each class, a mean over these, (classes,)."""
    _check_protocol(protocol)
    names = list(domains)
    values = np.asarray(matrices, dtype=np.float64)
    if values.ndim != 3 or values.shape[1:] != (len(names), len(names)) or len(names) < 2:
        raise ValueError(
            f"matrices have shape {values.shape}; expected (classes, {len(names)}, {len(names)}) "
            "of two domains or more"
        )
    if domain not in names:
        raise ValueError(f"domain {domain!r} is not among {', '.join(map(str, names))}")
    row = len(names) - 1 if protocol == "published" else names.index(domain)
    of_class: Matrix = np.delete(values[:, row], row, axis=1).mean(axis=1)
    return of_class


def _cells(
    images: int,
    class_ids: Ids,
    domain_ids: Ids,
    classes: Sequence[Hashable],
    domains: Sequence[Hashable],
) -> torch.Tensor:
    """Number each image's class and domain, (N,); -1 for an image that is not asked for."""
    places = []
    for what, ids, names in (("class", class_ids, classes), ("domain", domain_ids, domains)):
        if len(ids) != images:
            raise ValueError(f"{images} images but {len(ids)} {what} ids; give one an image")
        if not len(names) or len(set(names)) != len(names):
            raise ValueError(f"{what} names {list(names)} are none or repeated; name each once")
        # Not get_indexer of the ids as they are: a tensor's elements would not compare.
        places.append(pd.Index(list(names)).get_indexer(pd.Index(np.asarray(ids))))
    of_class, of_domain = places
    cells = np.where((of_class < 0) | (of_domain < 0), -1, of_class * len(domains) + of_domain)
    present = np.bincount(cells[cells >= 0], minlength=len(classes) * len(domains))
    if not present.all():
        place_class, place_domain = divmod(int(np.argmin(present)), len(domains))
        raise ValueError(
            f"class {classes[place_class]!r} has no images in domain {domains[place_domain]!r}; "
            "leave the class or the domain out"
        )
    return torch.from_numpy(cells)


def _count(counts: torch.Tensor, codes: torch.Tensor, cells: torch.Tensor, top: int) -> None:
    """Add each image's strongest units to the row of its cell."""
    if top < 1:
        raise ValueError(f"top is {top}; allowed: 1 or more")
    wanted = cells >= 0
    strongest = codes[wanted].topk(min(top, codes.shape[1]), dim=1)
    if strongest.values.isnan().any():
        raise ValueError("codes hold NaN; check the features and the autoencoder")
    rows = cells[wanted][:, None].expand_as(strongest.indices)
    active = strongest.values > 0
    flat = rows[active] * counts.shape[1] + strongest.indices[active]
    counts += torch.bincount(flat, minlength=counts.numel()).view_as(counts)


def _checked(histogram: Floats | Counts) -> torch.Tensor:
    values = torch.as_tensor(histogram).double()
    if values.ndim != 1 or not torch.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            f"a histogram of shape {tuple(values.shape)} is not one of counts, zero or more; "
            "give (units,)"
        )
    return values


def _published_parts(counts: torch.Tensor, k: int) -> torch.Tensor:
    """Give a unit 1 if torch.topk picks it, else 0."""
    return torch.zeros_like(counts).index_fill_(0, counts.topk(k).indices, 1)


def _parts(counts: torch.Tensor, k: int) -> torch.Tensor:
    """Give each unit its part, from 0 to 1, in the k places of the most frequent."""
    last = counts.topk(k).values[-1]
    above = counts > last
    tied = (counts == last) & (counts > 0)
    left = k - above.sum().double()
    return above + tied * (left / tied.sum().clamp_min(1))


def _part_of_protocol(protocol: str) -> Callable[[torch.Tensor, int], torch.Tensor]:
    _check_protocol(protocol)
    return _published_parts if protocol == "published" else _parts


def _check_ks(ks: Sequence[int], units: int) -> None:
    if not ks or min(ks) < 1 or max(ks) > units:
        raise ValueError(f"ks is {tuple(ks)}; allowed: from 1 to the number of units, {units}")


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
