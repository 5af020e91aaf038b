"""Pillow's bicubic resampling of RGB images, to the bit and several times as fast.

Pillow resamples 8-bit images in two passes, from left to right and from top to bottom. In each, a
pixel is a weighted sum of its neighbours with fixed-point weights of 22 bits, rounded and clipped
to 8 bits (libImaging/Resample.c; the kernel is Keys' with a = -0.5, widened for antialiasing where
an image shrinks). Both passes are made here as sums of whole lines, which processors do many
numbers at a time; for the pass from left to right the image is turned on its side, in bands.

Numba compiles the loops in the first process that needs them, and keeps the result beside this file
or in the user's cache folder for all others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import PIL

Box = tuple[int, int, int, int]
Pixels = npt.NDArray[np.uint8]
# Red, green, blue and a byte without meaning as one number, so that they move together.
Words = npt.NDArray[np.uint32]
Firsts = npt.NDArray[np.int64]
Weights = npt.NDArray[np.int32]
_Function = TypeVar("_Function", bound=Callable[..., object])

_BITS = 22
# Pixels are turned in squares of this side, which fit the registers, in bands that fit the cache.
_SQUARE = 8
_BAND = 64
# Pillow 13 begins from top to bottom where that leaves less to do, and rounds in another place.
_DOWN_FIRST = int(PIL.__version__.partition(".")[0]) >= 13


def _compiled(function: _Function) -> _Function:
    try:
        compiled = cast(_Function, numba.njit(cache=True)(function))
    except RuntimeError:
        # There is no folder to keep the result in: every process compiles for itself.
        compiled = cast(_Function, numba.njit(function))
    return compiled


def resize(pixels: Pixels, box: Box, width: int, height: int, mirrored: bool = False) -> Pixels:
    """Cut a box out of an image and bring it to size, as Pillow's crop and resize do.

    Args:
        pixels: (H, W, 3) uint8 in C order.
        box: left, top, right, bottom; pixels beside it are not looked at.
        width: of the result, in pixels.
        height: of the result, in pixels.
        mirrored: swap left and right in the result.

    Returns:
        (height, width, 3) uint8.
    """
    left, top, right, bottom = box
    wide, tall = right - left, bottom - top
    across, down = _weights(wide, width, mirrored), _weights(tall, height, False)
    lines = pixels[top:bottom].reshape(tall, -1)
    if _DOWN_FIRST and tall > height and tall - height > 2 * (wide - width):
        out = _across(_down(lines, 3 * left, 3 * right, *down), 0, *across, wide)
    else:
        out = _down(_across(lines, left, *across, wide), 0, 3 * width, *down)
    return out.reshape(height, width, 3)


@functools.lru_cache(maxsize=512)
def _weights(length: int, size: int, backwards: bool) -> tuple[Firsts, Weights]:
    """Return which pixels of a line make up the pixels of the result, and how much each counts.

    Args:
        length: of the line, in pixels.
        size: length of the result.
        backwards: give the last pixel of the result first.

    Returns:
        (size,) the first pixel that counts, and (size, taps) the weights of it and the following.
    """
    firsts, weights = _bicubic(length, size)
    return (firsts[::-1].copy(), weights[::-1].copy()) if backwards else (firsts, weights)


@_compiled
def _bicubic(length: int, size: int) -> tuple[Firsts, Weights]:
    # Every step in double precision and in Pillow's order, since the weights are to be the same.
    scale = length / size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centres = (np.arange(size) + 0.5) * scale
    lows = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    highs = np.minimum((centres + support + 0.5).astype(np.int64), length)
    taps = (highs - lows).max()
    # All have as many weights; near the end those of no account come first.
    firsts = np.minimum(lows, length - taps)
    weights = np.zeros((size, taps), np.int32)
    values = np.empty(length)
    for i in range(size):
        total = 0.0
        for j in range(lows[i], highs[i]):
            values[j] = _keys((j - centres[i] + 0.5) * (1.0 / stretch))
            total += values[j]
        for j in range(lows[i], highs[i]):
            weight = values[j] / total * (1 << _BITS)
            weights[i, j - firsts[i]] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
    return firsts, weights


@_compiled
def _keys(x: float) -> float:
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@_compiled
def _down(lines: Pixels, start: int, stop: int, firsts: Firsts, weights: Weights) -> Pixels:
    """Resample from top to bottom: (n, m) bytes to (size, stop - start)."""
    out = np.empty((len(firsts), stop - start), np.uint8)
    _sum_lines(lines[:, start:stop], firsts, weights, out)
    return out


@_compiled
def _across(lines: Pixels, left: int, firsts: Firsts, weights: Weights, wide: int) -> Pixels:
    """Resample from left to right: (n, m) bytes to (n, 3 size)."""
    tall, size = len(lines), len(firsts)
    out = np.empty((tall, 3 * size), np.uint8)
    band = min(_BAND, tall)
    upright, resampled = np.empty((band, wide), np.uint32), np.empty((band, size), np.uint32)
    turned, summed = np.empty((wide, band), np.uint32), np.empty((size, band), np.uint32)
    for top in range(0, tall, band):
        count = min(band, tall - top)
        _widen(lines[top : top + count], left, upright.view(np.uint8))
        _turn(upright, count, wide, turned)
        _sum_lines(turned.view(np.uint8), firsts, weights, summed.view(np.uint8))
        _turn(summed, size, count, resampled)
        _narrow(resampled, out[top : top + count])
    return out


@_compiled
def _sum_lines(lines: Pixels, firsts: Firsts, weights: Weights, out: Pixels) -> None:
    """Weigh and add lines of bytes: (n, m) to (size, m)."""
    size, taps = weights.shape
    total = np.empty(out.shape[1], np.int32)
    for i in range(size):
        total[:] = 1 << (_BITS - 1)
        tap = 0
        # Four at a time, since the totals take as long to read and write as a line to add.
        while tap + 4 <= taps:
            line = firsts[i] + tap
            a, b, c, d = lines[line], lines[line + 1], lines[line + 2], lines[line + 3]
            p, q, r, s = weights[i, tap : tap + 4]
            for lane in range(total.size):
                total[lane] += (
                    p * np.int32(a[lane]) + q * np.int32(b[lane])
                    + r * np.int32(c[lane]) + s * np.int32(d[lane])
                )  # fmt: skip
            tap += 4
        while tap < taps:
            a, p = lines[firsts[i] + tap], weights[i, tap]
            for lane in range(total.size):
                total[lane] += p * np.int32(a[lane])
            tap += 1
        for lane in range(total.size):
            out[i, lane] = min(max(total[lane] >> _BITS, 0), 255)


@_compiled
def _turn(words: Words, tall: int, wide: int, out: Words) -> None:
    """Swap rows and columns of the top left corner."""
    for y in range(0, tall - tall % _SQUARE, _SQUARE):
        for x in range(0, wide - wide % _SQUARE, _SQUARE):
            for i in range(_SQUARE):
                for j in range(_SQUARE):
                    out[x + i, y + j] = words[y + j, x + i]
        for x in range(wide - wide % _SQUARE, wide):
            for j in range(_SQUARE):
                out[x, y + j] = words[y + j, x]
    for y in range(tall - tall % _SQUARE, tall):
        for x in range(wide):
            out[x, y] = words[y, x]


@_compiled
def _widen(lines: Pixels, left: int, out: Pixels) -> None:
    """Take pixels of three bytes, from one on, and make them four."""
    for y in range(len(lines)):
        pixels, words = lines[y, 3 * left :], out[y]
        for x in range(words.size // 4):
            words[4 * x] = pixels[3 * x]
            words[4 * x + 1] = pixels[3 * x + 1]
            words[4 * x + 2] = pixels[3 * x + 2]
            # Written too, so that the compiler sees one run of bytes.
            words[4 * x + 3] = 0


@_compiled
def _narrow(words: Words, out: Pixels) -> None:
    """Make pixels of four bytes three."""
    for y in range(len(out)):
        for x in range(words.shape[1]):
            word = words[y, x]
            out[y, 3 * x] = np.uint8(word)
            out[y, 3 * x + 1] = np.uint8(word >> np.uint32(8))
            out[y, 3 * x + 2] = np.uint8(word >> np.uint32(16))
