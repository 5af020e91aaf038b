"""Whose neighbours an image has in the embedding: the share of each group among the nearest.

The nearest are found exactly, a block of images at a time; no index is built that could miss some.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from clip_mixtures.mechanisms.embedding import IntArray

FloatArray = npt.NDArray[np.float64]

_TIE = 1e-6  # cosines in single precision that are equal but for rounding
_BLOCK = 512  # images whose cosines with all others are in memory at a time


def neighbour_shares(
    rows: FloatArray, groupings: list[IntArray], neighbours: int
) -> list[FloatArray]:
    """Find which share of each image's nearest neighbours every group has, by cosine.

    Images that are equally far, as copies are, share the last places among them, so that the
    result does not depend on the order of images.

    Args:
        rows: unit vectors, shape (N, D), float64; cosines are computed in single precision.
        groupings: several groupings of the same images, each the number of each image's group,
            shape (N,), from 0 without a gap.
        neighbours: number of neighbours k, from 1 to N - 1.

    Returns:
        For each grouping the shares, shape (N, G), from 0 to 1; each row sums to 1.
    """
    single = rows.astype(np.float32)
    members = [_members(codes) for codes in groupings]
    shares = [np.empty((len(rows), one.shape[1])) for one in members]
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(rows)))
        cosines = single[block] @ single.T
        # An image is no neighbour of itself.
        np.fill_diagonal(cosines[:, block], -np.inf)
        last = np.partition(cosines, -neighbours, axis=1)[:, -neighbours, None]
        gap = cosines - last
        nearer = gap > _TIE
        tied = np.abs(gap) <= _TIE
        # Places that the nearer ones leave, spread evenly over those that are tied for them.
        places = neighbours - nearer.sum(axis=1, keepdims=True)
        each = places / tied.sum(axis=1, keepdims=True)
        near = sparse.csr_array((nearer + each * tied) / neighbours)
        for found, one in zip(shares, members, strict=True):
            found[block] = (near @ one).toarray()
    return shares


def purity(shares: FloatArray, own: IntArray) -> FloatArray:
    """Pick the share that each image's own group has among its neighbours.

    Args:
        shares: share of each image's neighbours in each group, shape (N, G).
        own: number of each image's group, shape (N,), from 0 without a gap.

    Returns:
        Purity of each image, shape (N,), from 0 to 1.
    """
    return np.asarray(shares[np.arange(len(own)), own], dtype=np.float64)


def purity_by_chance(shares: FloatArray, groups: IntArray, within: IntArray) -> FloatArray:
    """Compute the purity to expect if groups were dealt out anew, keeping another grouping.

    The neighbours stay, and so does how many images of each group g are in each group w of the
    other grouping, n(w, g) of n(w). An image in v then agrees with a neighbour in w with
    probability sum_g n(v, g) n(w, g) / (n(v) n(w)); within its own v, where the image itself is
    not its neighbour, with sum_g n(v, g) (n(v, g) - 1) / (n(v) (n(v) - 1)).

    Args:
        shares: share of each image's neighbours in each group of the other grouping, shape (N, W).
        groups: number of each image's group, shape (N,), from 0 without a gap.
        within: number of each image's group in the other grouping, shape (N,), likewise.

    Returns:
        Expected purity of each image, shape (N,), from 0 to 1.
    """
    counts = (_members(within).T @ _members(groups)).toarray()
    sizes = counts.sum(axis=1)
    agreement = (counts @ counts.T) / np.outer(sizes, sizes)
    # A group of one leaves no neighbour in itself, so that its entry is never used.
    pairs = np.maximum(sizes * (sizes - 1), 1)
    np.fill_diagonal(agreement, (counts * (counts - 1)).sum(axis=1) / pairs)
    return np.asarray((shares * agreement[within]).sum(axis=1), dtype=np.float64)


def _members(codes: IntArray) -> sparse.csr_array:
    """Return the matrix (N, G) with a one where image i is of group g."""
    everyone = np.arange(len(codes))
    return sparse.csr_array((np.ones(len(codes)), (everyone, codes)))
