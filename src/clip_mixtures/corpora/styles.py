"""Five ways to picture one drawing: the domains of the sample corpus.

``real`` sets the shaded drawing before a lit ground with a shadow, ``clipart`` leaves flat colour
on white, ``sketch`` keeps the outlines, ``quickdraw`` the silhouette, and ``painting`` lays it on
in broad strokes. All arithmetic after the rasteriser is in integers, and the random streams are
NumPy's legacy generator, whose output is frozen; the bytes therefore depend on no library version
but the rasteriser's.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from clip_mixtures.corpora.svg import Drawing, Pixels, Pose, rasterise, svg_document

Integers = npt.NDArray[np.int64]

WHITE = 255
# Silhouettes are cut where the drawing covers more than this (of 255).
_SOLID = 110
# Sets that are drawn in one ink already: their white inner lines are part of the drawing.
ONE_INK_SETS = frozenset({"emojione-monotone", "fluent-emoji-high-contrast"})


def random_stream(*key: object) -> np.random.RandomState:
    """Return a random stream that belongs to ``key`` alone, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "little"))


def random_pose(stream: np.random.RandomState) -> Pose:
    """Draw a pose: a slight turn, shift and change of size, a mirror image half the time."""
    return Pose(
        rotation=int(stream.randint(-12, 13)),
        scale=int(stream.randint(78, 101)) / 100,
        mirrored=bool(stream.randint(0, 2)),
        dx=int(stream.randint(-5, 6)) / 100,
        dy=int(stream.randint(-5, 6)) / 100,
        stroke=int(stream.randint(10, 27)) / 10,
    )


def render(
    domain: str,
    drawing: Drawing,
    icon_set: str,
    pose: Pose,
    size: int,
    stream: np.random.RandomState,
) -> Pixels:
    """Picture a drawing in the style of a domain.

    Returns:
        (size, size, 3) uint8 for real, clipart and painting; (size, size) for the two domains
        without colour, sketch and quickdraw.
    """
    if domain == "clipart":
        return _over(rasterise(svg_document(drawing, pose), size), np.int64(WHITE))
    if domain == "sketch":
        return _ink(rasterise(svg_document(drawing, pose, wireframe=True), size))
    if domain == "quickdraw":
        return _quickdraw(svg_document(drawing, pose), icon_set, size)
    if domain == "real":
        return _real(svg_document(drawing, pose), size, stream)
    if domain == "painting":
        return _painting(svg_document(drawing, pose), size, stream)
    raise ValueError(f"no style for domain {domain!r}")


def _over(rgba: Pixels, ground: Integers | np.int64) -> Pixels:
    """Composite straight-alpha pixels over an opaque ground, rounding to the nearest integer."""
    image = rgba.astype(np.int64)
    alpha = image[..., 3:]
    mixed = (image[..., :3] * alpha + ground * (255 - alpha) + 127) // 255
    return np.asarray(mixed, dtype=np.uint8)


def _ink(rgba: Pixels) -> Pixels:
    """Keep how much of each pixel is covered: black lines on white, (H, W)."""
    return np.asarray(WHITE - rgba[..., 3], dtype=np.uint8)


def _quickdraw(document: str, icon_set: str, size: int) -> Pixels:
    if icon_set in ONE_INK_SETS:
        return _ink(rasterise(document, size))
    solid = rasterise(document, 2 * size)[..., 3] > _SOLID
    covered = solid.reshape(size, 2, size, 2).sum(axis=(1, 3), dtype=np.int64)
    return np.asarray(WHITE - covered * 255 // 4, dtype=np.uint8)


def _ground(stream: np.random.RandomState, size: int, spread: int) -> Integers:
    """A vertical blend of two related colours with light from one side, (size, size, 3)."""
    base = stream.randint(70, 230)
    top = np.clip(base + stream.randint(-spread, spread, 3), 20, 250)
    bottom = np.clip(base + stream.randint(-spread, spread, 3) - 20, 20, 250)
    down = np.arange(size)[:, None, None]
    across = np.arange(size)[None, :, None]
    blend = (top * (size - 1 - down) + bottom * down) // (size - 1)
    return np.asarray(np.clip(blend + (across * stream.randint(-24, 25)) // size, 0, 255))


def _placed(rgba: Pixels, size: int, top: int, left: int) -> Pixels:
    canvas = np.zeros((size, size, 4), dtype=np.uint8)
    canvas[top : top + rgba.shape[0], left : left + rgba.shape[1]] = rgba
    return canvas


def _real(document: str, size: int, stream: np.random.RandomState) -> Pixels:
    object_size = size * 13 // 16
    margin = size - object_size
    top, left = (int(stream.randint(margin // 4, margin - margin // 4 + 1)) for _ in range(2))
    canvas = _placed(rasterise(document, object_size), size, top, left)
    ground = _ground(stream, size, spread=70)
    offset = max(size // 20, 1)
    shadow = np.roll(canvas[..., 3].astype(np.int64), (offset, offset), axis=(0, 1))
    for axis in (0, 1):
        for _ in range(2):
            shadow = (np.roll(shadow, 1, axis) + 2 * shadow + np.roll(shadow, -1, axis)) // 4
    lit = ground * (510 - shadow[..., None]) // 510
    grain = stream.randint(-6, 7, (size, size, 1))
    grained = np.clip(_over(canvas, lit).astype(np.int64) + grain, 0, 255)
    return np.asarray(grained, dtype=np.uint8)


def _painting(document: str, size: int, stream: np.random.RandomState) -> Pixels:
    side = 2 * size
    object_size = side * 7 // 8
    start = (side - object_size) // 2
    canvas = _placed(rasterise(document, object_size), side, start, start)
    pigment = _blocks(stream, side, block=8, spread=20, channels=3)
    ground = np.clip(_ground(stream, side, spread=60) + pigment, 0, 255)
    image = _over(canvas, ground).astype(np.int64)
    image += _blocks(stream, side, block=4, spread=20, channels=1)
    # An unsteady hand: rows shift together, a brush's width at a time.
    for row, shift in enumerate(stream.randint(-3, 4, side // 8).repeat(8)):
        image[row] = np.roll(image[row], shift, axis=0)
    image = _kuwahara(_kuwahara(np.clip(image, 0, 255), 4), 2)
    image = image * 9 // 10 + np.array([18, 12, 4])
    small = image.reshape(size, 2, size, 2, 3).sum(axis=(1, 3)) // 4
    return np.asarray(np.clip(small, 0, 255), dtype=np.uint8)


def _blocks(
    stream: np.random.RandomState, side: int, block: int, spread: int, channels: int
) -> Integers:
    coarse = stream.randint(-spread, spread + 1, (side // block, side // block, channels))
    return np.asarray(coarse.repeat(block, axis=0).repeat(block, axis=1))


def _kuwahara(image: Integers, radius: int) -> Integers:
    """Replace each pixel by the mean of its calmest neighbouring square (Kuwahara, 1976).

    Of the four squares of side ``radius + 1`` with the pixel in a corner, the one of least variance
    wins: flat strokes with sharp edges. Window sums come from integral images.
    """
    height, width, _ = image.shape
    side = radius + 1
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="edge")

    def window_sums(values: Integers) -> Integers:
        total = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0), (0, 0)))
        return np.asarray(
            total[side:, side:]
            - total[:-side, side:]
            - total[side:, :-side]
            + total[:-side, :-side]
        )

    sums = window_sums(padded)
    variance = (side**2 * window_sums(padded * padded) - sums * sums).sum(axis=2)
    corners = [(down, right) for down in (0, radius) for right in (0, radius)]
    variances = np.stack([variance[d : d + height, r : r + width] for d, r in corners])
    means = np.stack([sums[d : d + height, r : r + width] for d, r in corners]) // side**2
    calmest = variances.argmin(axis=0)[None, :, :, None]
    return np.asarray(np.take_along_axis(means, calmest, axis=0)[0])
