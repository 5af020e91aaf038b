"""Kernel matrices over items, and what is left of them after U-centring.

Everything is in double precision. Squared distances and centred kernels come out of subtractions of
larger numbers; what is below a tiny share of those is rounding and is taken for zero: the distance
of two equal rows, or the variation of activations that are constant.

Source:
    Szekely, G. and Rizzo, M. (2014). Partial distance correlation with methods for
        dissimilarities. Annals of Statistics 42, 2382-2412, section 3. (U-centring)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_EQUAL = 1e-13
_FLAT = 1e-12


def gram_matrix(rows: FloatArray) -> FloatArray:
    """Multiply rows, shape (n, d), with each other, their mean taken off: shape (n, n).

    No U-centred kernel and no distance changes by the mean, and taking it off saves digits.
    """
    centred = rows - rows.mean(axis=0)
    # Of equal values the mean may be off by rounding, which scaling would blow up.
    centred[:, (rows == rows[0]).all(axis=0)] = 0
    return np.asarray(centred @ centred.T, dtype=np.float64)


def squared_distances(grams: FloatArray) -> FloatArray:
    """Turn Gram matrices, shape (..., n, n), into squared Euclidean distances of the rows."""
    squares = np.diagonal(grams, axis1=-2, axis2=-1)
    sums = squares[..., :, None] + squares[..., None, :]
    distances = sums - 2 * grams
    distances[distances <= _EQUAL * sums] = 0
    return distances


def gaussian_kernel(distances: FloatArray, square: float | None = None) -> FloatArray:
    """Make the kernel exp(-d^2 / (2 sigma^2)).

    Args:
        distances: squared distances d^2, shape (n, n).
        square: sigma^2; None for the lower median of the squared distances that are not zero.
    """
    if square is None:
        values = distances.ravel()
        zeros = values.size - np.count_nonzero(values)
        # Both triangles count; the middle of them all is that of one.
        middle = zeros + (values.size - zeros - 1) // 2
        square = float(np.partition(values, middle)[middle]) if zeros < values.size else 1.0
    return np.asarray(np.exp(distances / (-2 * square)), dtype=np.float64)


def u_centred(kernels: FloatArray) -> FloatArray:
    """U-centre kernels, shape (..., n, n): diagonal and sums of rows become zero; n is above 2.

    HSIC_1(K, L) is the inner product of the centred kernels over n (n - 3).
    """
    count = kernels.shape[-1]
    diagonal = np.arange(count)
    centred = kernels.copy()
    centred[..., diagonal, diagonal] = 0
    rows = centred.sum(axis=-1) / (count - 2)
    total = rows.sum(axis=-1)[..., None, None] / (count - 1)
    centred -= rows[..., :, None]
    centred -= rows[..., None, :]
    centred += total
    centred[..., diagonal, diagonal] = 0
    return centred


def has_variation(kernels: FloatArray, centred: FloatArray) -> npt.NDArray[np.bool_]:
    """Say for each kernel, shape (..., n, n), whether more than rounding is left after centring."""
    left: npt.NDArray[Any] = np.abs(centred).max(axis=(-2, -1))
    return np.asarray(left > _FLAT * np.abs(kernels).max(axis=(-2, -1)), dtype=bool)
