"""Centred kernel alignment (CKA): how alike two domains are represented, layer by layer.

A representation is the mean activation of every class. CKA compares how the classes lie to each
other in one domain with how they lie in the other, through a kernel matrix over classes for each.
It is the cosine between the two matrices after U-centring, hence between -1 and 1, and it is what
the unbiased estimate HSIC_1 gives, for HSIC_1(K, L) = <U(K), U(L)> / (n (n - 3)). So every kernel
is centred once, and all pairs of domains and all intervals are inner products of centred kernels.

The interval is for the choice of classes and comes from the jackknife. The bootstrap is wrong
here: a class that is drawn twice is perfectly like itself in both domains, which lifts every
resample. In a simulation with 40 classes and a true linear CKA of 0.27 the percentile bootstrap
held the truth in 19 % of 200 studies, the jackknife in 97 %.

HSIC_1 is unbiased for the class means that it is given; the means themselves are noisy where a
class has few images, and noise lowers CKA. With w the variance within classes over that between
them, the one spread over directions as the other, and m images a class in a domain, CKA is about
its value for exact means over (1 + w / m_a) (1 + w / m_b). With the same 345 classes in both
domains, hence a true CKA of 1, and w = 18, a simulation gave 0.80 for 150 images each, 0.62 for
150 and 42, 0.49 for 42 and 42, and 0.02 for 3 and 3. (In DomainNet's test lists a class has 150
images in quickdraw and real, 42 in clipart, on average.) So a difference between pairs of domains
may be one of numbers of images: compare pairs with like numbers, or one pair between networks or
layers of like w.

Sources:
    The study, Figure 6a.
    Kornblith, S., Norouzi, M., Lee, H. and Hinton, G. (2019). Similarity of neural network
        representations revisited. ICML. (CKA, equation 4; bandwidth by the median distance)
    Song, L., Smola, A., Gretton, A., Bedo, J. and Borgwardt, K. (2012). Feature selection via
        dependence maximization. JMLR 13, 1393-1434, equation 5. (HSIC_1)
    Nguyen, T., Raghu, M. and Kornblith, S. (2021). Do wide and deep networks learn the same
        things? ICLR, section 2. (CKA of HSIC_1)
    Arvesen, J. N. (1969). Jackknifing U-statistics. Annals of Mathematical Statistics 40,
        2076-2100. (jackknife of a function of U-statistics, with Student's t)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import stats
from tqdm import tqdm

from clip_mixtures.errors import unknown
from clip_mixtures.mechanisms.config import KERNELS
from clip_mixtures.mechanisms.kernels import (
    gaussian_kernel,
    gram_matrix,
    has_variation,
    squared_distances,
    u_centred,
)
from clip_mixtures.mixtures.spec import PROTOCOLS

Array = npt.NDArray[Any] | torch.Tensor
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Pair = tuple[int, int]

SUBSETS = ("all", "held_out", "seen")
# The order in which the published analysis loads domains: the last one sets the classes.
PUBLISHED_ORDER = ("real", "quickdraw", "sketch", "clipart", "infograph", "painting")

_FEWEST = 4  # classes: n (n - 3) must be positive
# What is left of an inner product without a class is rounding below this share.
_FLAT = 1e-12


def hsic1(k: Array, l: Array) -> float:  # noqa: E741 (the usual name of the second kernel)
    """Estimate the Hilbert-Schmidt independence criterion without bias (Song et al. 2012).

    Args:
        k: symmetric kernel matrix, shape (n, n); its diagonal is not used.
        l: the other kernel matrix over the same n items in the same order, shape (n, n).

    Returns:
        HSIC_1 in the product of the kernels' units; it may be negative.

    Raises:
        ValueError: fewer than 4 items, or matrices that are not finite, not square and symmetric,
            or of different shapes.
    """
    first, second = _rows(k, "k"), _rows(l, "l")
    for name, kernel in (("k", first), ("l", second)):
        if kernel.shape[0] != kernel.shape[1] or not np.allclose(kernel, kernel.T):
            raise ValueError(f"{name} of shape {kernel.shape} is not a symmetric kernel matrix")
    count = _common_count(first, second, "k", "l")
    inner = float((u_centred(first) * u_centred(second)).sum())
    return inner / (count * (count - 3))


def linear_cka(x: Array, y: Array) -> float:
    """Compare two representations of the same items by CKA with the linear kernel.

    Args:
        x: activations, shape (n, d1), of any real dtype; computed in float64.
        y: activations of the same n items in the same order, shape (n, d2).

    Returns:
        CKA from HSIC_1, between -1 and 1 and not clipped at 0; 1 for representations that are
        equal up to rotation, scale and shift. NaN if one of the two does not vary (at all, or but
        for a single item), for then there is nothing to compare.

    Raises:
        ValueError: fewer than 4 items, unequal numbers of items, arrays that are not of shape
            (n, d), or values that are not finite.
    """
    first, second = _rows(x, "x"), _rows(y, "y")
    _common_count(first, second, "x", "y")
    return _cka(gram_matrix(first), gram_matrix(second))


def rbf_cka(x: Array, y: Array, sigma: float | None = None) -> float:
    """Compare two representations of the same items by CKA with a Gaussian kernel.

    The kernel is exp(-d^2 / (2 sigma^2)) with the Euclidean distance d.

    Args:
        x: activations, shape (n, d1), of any real dtype; computed in float64.
        y: activations of the same n items in the same order, shape (n, d2).
        sigma: bandwidth in the unit of the activations, for both. None takes for each of the two
            the median distance between its items: the lower median, equal items left out.

    Returns:
        CKA from HSIC_1, as ``linear_cka`` returns it; NaN in the same cases.

    Raises:
        ValueError: as for ``linear_cka``, or a ``sigma`` that is not a positive number.
    """
    first, second = _rows(x, "x"), _rows(y, "y")
    _common_count(first, second, "x", "y")
    if sigma is not None and not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma}; give a positive bandwidth, or None for the median")
    square = None if sigma is None else float(sigma) ** 2
    kernels = [
        gaussian_kernel(squared_distances(gram_matrix(rows)), square) for rows in (first, second)
    ]
    return _cka(kernels[0], kernels[1])


def cka_table(
    class_means: Mapping[str, Array],
    domains: Sequence[str],
    held_out: Collection[int],
    *,
    kernels: Sequence[str] = KERNELS,
    protocol: str = "corrected",
    confidence: float = 0.95,
    progress: bool = False,
) -> pd.DataFrame:
    """Compare all pairs of domains in all layers, on all, the held-out and the seen classes.

    The interval says how far CKA would change with other classes of the same kind; it knows
    nothing of the choice of images or of the training seed. It is the delete-one jackknife of
    Fisher's z, atanh(CKA), with Student's t for n - 1 degrees of freedom, which keeps it within
    -1 and 1; with HSIC_1 the n estimates follow from the centred kernels in one step. The
    bandwidth of the Gaussian kernel stays that of all classes of the row, for the jackknife does
    not hold for medians.

    Args:
        class_means: for each layer, in network order, the mean activation of every class in every
            domain, shape (domains, classes, channels). Index on the second axis is the class id.
            All channels of a class that a domain has no images of are NaN.
        domains: names along the first axis, at least two.
        held_out: class ids of the ``held_out`` subset; the others are ``seen``.
        kernels: "linear", "rbf" or both.
        protocol: "corrected" compares each pair on the classes that both have. "published" takes
            for every pair the classes of the last domain in the published order (painting, if it
            is there) and all held-out ones, so that a class that another domain lacks gives NaN.
        confidence: coverage aimed at, between 0 and 1.
        progress: show a progress bar over layers.

    Returns:
        A row a layer, pair of domains, subset and kernel, in this order: ``layer``, ``domain_a``,
        ``domain_b``, ``subset``, ``kernel``, ``cka``, ``low``, ``high`` (float64), ``classes``
        (int64, compared) and ``note``. Where ``cka`` or its interval is NaN, as for activations
        that do not vary or fewer than 4 classes (5 for an interval), ``note`` says why; otherwise
        it is empty.

    Raises:
        UserError: unknown kernel, protocol or, with "published", domain.
        ValueError: no kernel or one twice, layers, domains or class ids that do not fit, values
            that are infinite or only partly NaN, or a confidence out of its range.
    """
    _check_kernels(kernels)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a fraction between 0 and 1, as 0.95")
    present = _present(class_means, domains)
    selections = _selections(present, domains, held_out, protocol)
    found: dict[tuple[str, Pair, str, str], dict[str, Any]] = {}
    for layer, means in tqdm(class_means.items(), unit="layer", disable=not progress):
        grams = _grams(_float64(means), present)
        for kernel in kernels:
            base = grams if kernel == "linear" else squared_distances(grams)
            for selection in selections:
                cells = _compare(base, kernel, selection, domains, confidence)
                found |= {(layer, pair, selection.subset, kernel): cells[pair] for pair in cells}
    return pd.DataFrame(
        [
            {
                "layer": layer,
                "domain_a": domains[a],
                "domain_b": domains[b],
                "subset": subset,
                "kernel": kernel,
                **found[layer, (a, b), subset, kernel],
            }
            for layer in class_means
            for a, b in _pairs(domains)
            for subset in SUBSETS
            for kernel in kernels
        ]
    )


@dataclass(frozen=True)
class _Selection:
    """Classes of one subset and the pairs of domains that are compared on just these.

    Attributes:
        subset: one of ``SUBSETS``.
        classes: class ids, ascending.
        pairs: indices of domains.
        note: why nothing can be computed; empty if it can.
    """

    subset: str
    classes: IntArray
    pairs: tuple[Pair, ...]
    note: str


def _pairs(domains: Sequence[str]) -> list[Pair]:
    return list(itertools.combinations(range(len(domains)), 2))


def _selections(
    present: npt.NDArray[np.bool_],
    domains: Sequence[str],
    held_out: Collection[int],
    protocol: str,
) -> list[_Selection]:
    """Sort pairs by the classes they are compared on, so that each kernel is made once."""
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS, "protocol of CKA")
    inside = np.zeros(present.shape[1], dtype=bool)
    for label in held_out:
        if not 0 <= label < len(inside):
            raise ValueError(f"held_out has class {label}; there are 0 to {len(inside) - 1}")
        inside[label] = True
    last = _last_published(domains) if protocol == "published" else None
    grouped: dict[tuple[str, str, tuple[int, ...]], list[Pair]] = {}
    for a, b in _pairs(domains):
        both = present[a] & present[b]
        basis = both if last is None else present[last]
        masks = (basis, basis & inside if last is None else inside, basis & ~inside)
        for subset, mask in zip(SUBSETS, masks, strict=True):
            missing = np.flatnonzero(mask & ~both)
            note = "" if mask.sum() >= _FEWEST else f"fewer than {_FEWEST} classes in both domains"
            if missing.size:
                lacking = domains[b if present[a, missing[0]] else a]
                note = f"no images of class {missing[0]} in {lacking}"
            key = (subset, note, tuple(np.flatnonzero(mask).tolist()))
            grouped.setdefault(key, []).append((a, b))
    return [
        _Selection(subset, np.array(classes, dtype=np.int64), tuple(pairs), note)
        for (subset, note, classes), pairs in grouped.items()
    ]


def _last_published(domains: Sequence[str]) -> int:
    for name in domains:
        if name not in PUBLISHED_ORDER:
            raise unknown("domain", name, PUBLISHED_ORDER, "protocol 'published' of CKA")
    return max(range(len(domains)), key=lambda index: PUBLISHED_ORDER.index(domains[index]))


def _compare(
    base: FloatArray,
    kernel: str,
    selection: _Selection,
    domains: Sequence[str],
    confidence: float,
) -> dict[Pair, dict[str, Any]]:
    """Compare the pairs of a selection; ``base`` are Gram matrices or squared distances."""
    count = len(selection.classes)
    if selection.note:
        empty = _cell(math.nan, (math.nan, math.nan), count, selection.note)
        return dict.fromkeys(selection.pairs, empty)
    members = np.unique(selection.pairs)
    chosen = base[np.ix_(members, selection.classes, selection.classes)]
    if kernel == "rbf":
        chosen = np.stack([gaussian_kernel(distances) for distances in chosen])
    centred = u_centred(chosen)
    varies = has_variation(chosen, centred)
    # Shares of the classes in the inner products of all pairs, shape (classes, members, members).
    shares = centred.transpose(1, 0, 2) @ centred.transpose(1, 2, 0)
    quantile = float(stats.t.ppf(0.5 + confidence / 2, count - 1))
    cells = {}
    for pair in selection.pairs:
        a, b = np.searchsorted(members, pair)
        flat = [index for index, place in zip(pair, (a, b), strict=True) if not varies[place]]
        if flat:
            names = " and ".join(domains[index] for index in flat)
            note = f"activations do not vary between classes in {names}"
            cells[pair] = _cell(math.nan, (math.nan, math.nan), count, note)
            continue
        products = shares[:, [a, a, b], [b, a, b]]
        low, high, note = _jackknife(products, quantile)
        cells[pair] = _cell(float(_cosine(products.sum(axis=0))), (low, high), count, note)
    return cells


def _cell(cka: float, ends: tuple[float, float], classes: int, note: str) -> dict[str, Any]:
    return {"cka": cka, "low": ends[0], "high": ends[1], "classes": classes, "note": note}


def _jackknife(products: FloatArray, quantile: float) -> tuple[float, float, str]:
    """Make the interval of CKA from each class's share in <A, B>, <A, A> and <B, B>.

    The rows of U-centred matrices sum to zero, so that HSIC_1 without class i is, up to a factor
    that cancels in CKA, the inner product less 2 (n - 2) / (n - 3) of the share of i.

    Args:
        products: shape (n, 3).
        quantile: of Student's t, for the half width in standard errors.

    Returns:
        Low and high end, and why they are NaN if they are.
    """
    count = len(products)
    if count <= _FEWEST:
        return math.nan, math.nan, f"no interval: fewer than {_FEWEST + 1} classes"
    totals = products.sum(axis=0)
    without = totals - 2 * (count - 2) / (count - 3) * products
    if (without[:, 1:] <= _FLAT * totals[1:]).any():
        return math.nan, math.nan, "no interval: a single class holds all variation"
    # The limit keeps z finite for representations that are the same.
    estimate = float(_cosine(totals))
    centre, left_out = (
        np.arctanh(np.clip(value, _FLAT - 1, 1 - _FLAT)) for value in (estimate, _cosine(without))
    )
    error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    low, high = math.tanh(centre - quantile * error), math.tanh(centre + quantile * error)
    return min(low, estimate), max(high, estimate), ""


def _cosine(products: FloatArray) -> FloatArray:
    """Divide <A, B> by the root of <A, A> <B, B>, all on the last axis."""
    # Two roots, for the product of two small numbers may vanish; rounding may carry it past 1.
    lengths = np.sqrt(products[..., 1]) * np.sqrt(products[..., 2])
    cosine: FloatArray = np.clip(products[..., 0] / lengths, -1, 1)
    return cosine


def _cka(first: FloatArray, second: FloatArray) -> float:
    kernels = np.stack([first, second])
    centred = u_centred(kernels)
    if not has_variation(kernels, centred).all():
        return math.nan
    one, other = centred
    products = ((one * other).sum(), (one * one).sum(), (other * other).sum())
    return float(_cosine(np.array(products)))


def _grams(means: FloatArray, present: npt.NDArray[np.bool_]) -> FloatArray:
    """Make a Gram matrix a domain, shape (domains, classes, classes), zero for absent classes."""
    grams = np.zeros((*present.shape, present.shape[1]))
    for gram, rows, there in zip(grams, means, present, strict=True):
        if there.any():
            gram[np.ix_(there, there)] = gram_matrix(rows[there])
    return grams


def _check_kernels(kernels: Sequence[str]) -> None:
    if not kernels:
        raise ValueError("kernels is empty; give linear, rbf or both")
    for place, kernel in enumerate(kernels):
        if kernel not in KERNELS:
            raise unknown("kernel", kernel, KERNELS, "kernels of CKA")
        if kernel in kernels[:place]:
            raise ValueError(f"kernels names {kernel!r} twice; name it once")


def _present(class_means: Mapping[str, Array], domains: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Check the arrays of all layers; say which domain has which class, (domains, classes)."""
    if len(domains) < 2 or len(set(domains)) < len(domains):
        raise ValueError(f"domains are {list(domains)}; give at least two different ones")
    if not class_means:
        raise ValueError("class_means has no layers; give one array a layer")
    found = {layer: _classes_there(layer, means, domains) for layer, means in class_means.items()}
    first, present = next(iter(found.items()))
    for layer, there in found.items():
        if there.shape != present.shape:
            raise ValueError(
                f"layer {layer!r} has {there.shape[1]} classes but layer {first!r} has "
                f"{present.shape[1]}; average all layers over the same images"
            )
        if (there != present).any():
            raise ValueError(
                f"layers {first!r} and {layer!r} lack different classes; average all layers over "
                "the same images"
            )
    return present


def _classes_there(layer: str, means: Array, domains: Sequence[str]) -> npt.NDArray[np.bool_]:
    array = _numpy(means)
    if array.ndim != 3 or len(array) != len(domains) or 0 in array.shape:
        raise ValueError(
            f"layer {layer!r} has shape {array.shape}; give (domains, classes, channels) "
            f"with {len(domains)} domains"
        )
    finite = np.isfinite(array)
    absent = np.isnan(array).all(axis=2)
    strange = int((~finite).sum()) - int(absent.sum()) * array.shape[2]
    if strange:
        raise ValueError(
            f"layer {layer!r} has {strange} values that are not finite; look for an overflow "
            "in half precision (only a class without images may be NaN, in all channels)"
        )
    there: npt.NDArray[np.bool_] = ~absent
    return there


def _rows(values: Array, name: str) -> FloatArray:
    array = _float64(values)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} has shape {array.shape}; give one row an item, (n, d)")
    strange = int((~np.isfinite(array)).sum())
    if strange:
        raise ValueError(
            f"{name} has {strange} values that are not finite (NaN or infinite); look for a "
            "diverged checkpoint or an overflow in half precision"
        )
    return array


def _common_count(first: FloatArray, second: FloatArray, *names: str) -> int:
    count = len(first)
    if len(second) != count:
        raise ValueError(
            f"{names[0]} has {count} rows but {names[1]} has {len(second)}; both must describe "
            "the same items in the same order"
        )
    if count < _FEWEST:
        raise ValueError(f"n is {count}; HSIC_1 needs at least {_FEWEST} items")
    return count


def _float64(values: Array) -> FloatArray:
    return _numpy(values).astype(np.float64)


def _numpy(values: Array) -> npt.NDArray[Any]:
    # Half precision of torch's own kind, bfloat16, is unknown to NumPy.
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values)
