"""The drawing side: PNG bytes, placed drawings and wireframes, and the five styles."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_mixtures.corpora import styles
from clip_mixtures.corpora.png import encode_png
from clip_mixtures.corpora.styles import random_pose, random_stream, render
from clip_mixtures.corpora.svg import Drawing, Pixels, Pose, rasterise, svg_document

SIZE = 64
COLOURED = ("clipart", "painting", "real")
INK = ("quickdraw", "sketch")


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.asarray(np.random.RandomState(seed).randint(0, 256, shape), dtype=np.uint8)


# ---- PNG


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    colour=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_pillow_reads_the_same_pixels(height: int, width: int, colour: bool, seed: int) -> None:
    image = noise(height, width, 3, seed=seed) if colour else noise(height, width, seed=seed)
    with Image.open(io.BytesIO(encode_png(image))) as read:
        assert read.format == "PNG"
        assert read.mode == ("RGB" if colour else "L")
        np.testing.assert_array_equal(np.asarray(read), image)


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Split a PNG into its chunks, checking their checksums."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, position = [], 8
    while position < len(png):
        (length,) = struct.unpack_from(">I", png, position)
        kind = png[position + 4 : position + 8]
        data = png[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", png, position + 8 + length)
        assert checksum == zlib.crc32(kind + data)
        found.append((kind, data))
        position += 12 + length
    return found


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((3, 5, 3), id="one block"),
        # A row is its filter byte and its pixels: 257 rows of 255 are one full block exactly.
        pytest.param((257, 254), id="full block"),
        pytest.param((150, 200, 3), id="two blocks"),
        pytest.param((300, 300, 3), id="five blocks"),
    ],
)
def test_no_compressor_has_a_say_in_the_bytes(shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    (header, _), (kind, data), end = chunks(encode_png(image))
    assert (header, kind, end) == (b"IHDR", b"IDAT", (b"IEND", b""))
    raw = b"".join(b"\x00" + row.tobytes() for row in image)
    assert zlib.decompress(data) == raw
    # Walk the deflate blocks: each is stored, so its bytes are the pixels themselves.
    position, content, last = 2, b"", 0
    while not last:
        head, length, inverse = struct.unpack_from("<BHH", data, position)
        last, block_type = head & 1, head >> 1
        assert block_type == 0
        assert length ^ inverse == 0xFFFF
        content += data[position + 5 : position + 5 + length]
        position += 5 + length
    assert content == raw
    assert data[position:] == struct.pack(">I", zlib.adler32(raw))


def test_rows_of_a_view_are_encoded_in_reading_order() -> None:
    image = noise(6, 8, 3)
    turned = image[::-1, ::2].swapaxes(0, 1)
    assert encode_png(turned) == encode_png(turned.copy())


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(np.zeros(4, dtype=np.uint8), id="one axis"),
        pytest.param(np.zeros((4, 4, 1), dtype=np.uint8), id="one channel"),
        pytest.param(np.zeros((4, 4, 4), dtype=np.uint8), id="alpha"),
        pytest.param(np.zeros((3, 4, 4, 3), dtype=np.uint8), id="batch"),
        pytest.param(np.zeros((4, 4), dtype=np.int64), id="integers"),
        pytest.param(np.zeros((4, 4, 3), dtype=np.float32), id="fractions"),
    ],
)
def test_other_shapes_and_types_raise(image: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="cannot encode"):
        encode_png(image)


# ---- SVG

# All in a box of 16 units, so that a unit is four pixels of 64.
CORNER = Drawing('<path fill="#f00" d="M0 0h4v4h-4z"/>', 0, 0, 16, 16)
SQUARE = Drawing('<path fill="#c03010" d="M4 4h8v8h-8z"/>', 0, 0, 16, 16)
GRADIENT = Drawing(
    '<defs><linearGradient id="g"><stop offset="0" stop-color="#f00"/>'
    '<stop offset="1" stop-color="#00f"/></linearGradient></defs>'
    '<g style="opacity:.5"><path fill="url(#g)" d="M4 4h8v8h-8z"/></g>',
    0,
    0,
    16,
    16,
)


def drawn(drawing: Drawing, pose: Pose | None = None, wireframe: bool = False) -> Pixels:
    return rasterise(svg_document(drawing, pose or Pose(), wireframe), SIZE)


def box_of(pixels: Pixels) -> list[int]:
    """Return top, bottom, left and right of what is opaque; all else must be clear."""
    assert set(np.unique(pixels[..., 3])) == {0, 255}
    down, across = np.nonzero(pixels[..., 3])
    return [int(down.min()), int(down.max()), int(across.min()), int(across.max())]


def test_drawing_fills_its_place_in_its_colour() -> None:
    image = drawn(CORNER)
    assert box_of(image) == [0, 15, 0, 15]
    assert image[8, 8].tolist() == [255, 0, 0, 255]


@pytest.mark.parametrize(
    "drawing",
    [
        pytest.param(SQUARE, id="fill"),
        pytest.param(GRADIENT, id="gradient only"),
        pytest.param(
            Drawing('<rect x="4" y="4" width="8" height="8" opacity="0"/>', 0, 0, 16, 16),
            id="invisible",
        ),
        pytest.param(
            Drawing(
                '<clipPath id="c"><path d="M0 0h6v6h-6z"/></clipPath>'
                '<path clip-path="url(#c)" stroke-dasharray="1" d="M4 4h8v8h-8z"/>',
                0,
                0,
                16,
                16,
            ),
            id="clipped and dashed",
        ),
    ],
)
def test_wireframe_is_the_outline_alone(drawing: Drawing) -> None:
    # A line four 64ths wide covers two pixels on either side of the edge at pixels 16 and 48.
    image = drawn(drawing, Pose(stroke=4), wireframe=True)
    assert box_of(image[:, 20:44]) == [14, 49, 0, 23]
    assert image[20:44, 20:44, 3].max() == 0
    for across in (14, 17, 46, 49):
        assert image[32, across].tolist() == [0, 0, 0, 255]


def test_wireframe_keeps_the_shapes_that_a_colour_hides() -> None:
    covered = Drawing('<path d="M6 6h4v4h-4z"/><path fill="#fff" d="M2 2h12v12H2z"/>', 0, 0, 16, 16)
    image = drawn(covered, Pose(stroke=4), wireframe=True)
    assert image[32, 24, 3] == 255
    assert image[32, 8, 3] == 255
    assert image[32, 16, 3] == 0


def test_wider_stroke_draws_a_wider_line() -> None:
    covered = [
        int((drawn(SQUARE, Pose(stroke=stroke), wireframe=True)[..., 3] > 127).sum())
        for stroke in (2, 4, 8)
    ]
    assert covered[0] < covered[1] < covered[2]


@pytest.mark.parametrize(
    "body", ['<rect xlink:href="#a" width="16" height="16"/>', "<g><defs/><g/></g>"]
)
def test_wireframe_understands_links_and_empty_groups(body: str) -> None:
    assert drawn(Drawing(body, 0, 0, 16, 16), wireframe=True).shape == (SIZE, SIZE, 4)


def test_pose_moves_the_pixels_as_it_says() -> None:
    upright = drawn(CORNER)
    assert np.array_equal(drawn(CORNER, Pose(mirrored=True)), upright[:, ::-1])
    # Degrees turn clockwise, as in SVG.
    assert np.array_equal(drawn(CORNER, Pose(rotation=90)), np.rot90(upright, -1))
    assert np.array_equal(drawn(CORNER, Pose(dx=0.25)), np.roll(upright, 16, axis=1))
    assert np.array_equal(drawn(CORNER, Pose(dy=0.125)), np.roll(upright, 8, axis=0))
    # Half the size about the middle: the corner of 16 pixels goes to 16 and is 8 wide.
    assert box_of(drawn(CORNER, Pose(scale=0.5))) == [16, 23, 16, 23]


def test_mirror_image_is_turned_after_it_is_mirrored() -> None:
    turned = drawn(CORNER, Pose(mirrored=True, rotation=90))
    assert np.array_equal(turned, np.rot90(drawn(CORNER)[:, ::-1], -1))


@pytest.mark.parametrize(
    ("drawing", "box"),
    [
        pytest.param(Drawing('<path d="M0 0h16v8H0z"/>', 0, 0, 16, 8), [16, 47, 0, 63], id="wide"),
        pytest.param(Drawing('<path d="M0 0h8v16H0z"/>', 0, 0, 8, 16), [0, 63, 16, 47], id="tall"),
        pytest.param(
            Drawing('<path d="M-2 1h16v8h-16z"/>', -2, 1, 16, 8), [16, 47, 0, 63], id="off origin"
        ),
    ],
)
def test_box_that_is_no_square_is_centred(drawing: Drawing, box: list[int]) -> None:
    assert box_of(drawn(drawing)) == box


# ---- styles


@pytest.mark.parametrize("domain", [*COLOURED, *INK])
@pytest.mark.parametrize("size", [16, 64])
def test_each_domain_pictures_in_its_own_shape(domain: str, size: int) -> None:
    image = render(domain, GRADIENT, "twemoji", Pose(), size, random_stream("x"))
    assert image.dtype == np.uint8
    assert image.shape == ((size, size, 3) if domain in COLOURED else (size, size))
    assert image.std() > 5


@pytest.mark.parametrize("domain", [*COLOURED, *INK])
def test_same_key_pictures_the_same(domain: str) -> None:
    def picture(key: str) -> Pixels:
        return render(domain, GRADIENT, "twemoji", Pose(), SIZE, random_stream("a", key))

    np.testing.assert_array_equal(picture("1"), picture("1"))
    # Ground and brush are left to chance; flat colour and ink are not.
    assert np.array_equal(picture("1"), picture("2")) == (domain not in ("painting", "real"))


def test_unknown_domain_raises() -> None:
    with pytest.raises(ValueError, match="no style for domain 'engraving'"):
        render("engraving", SQUARE, "twemoji", Pose(), SIZE, random_stream())


def test_clipart_is_flat_colour_on_white() -> None:
    image = render("clipart", SQUARE, "twemoji", Pose(), SIZE, random_stream())
    expected = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
    expected[16:48, 16:48] = [0xC0, 0x30, 0x10]
    np.testing.assert_array_equal(image, expected)


def test_sketch_is_black_lines_on_white() -> None:
    image = render("sketch", SQUARE, "twemoji", Pose(stroke=4), SIZE, random_stream())
    np.testing.assert_array_equal(image[32, [14, 17, 46, 49]], 0)
    assert (image[20:44, 20:44] == 255).all()


def test_quickdraw_of_a_square_is_its_silhouette() -> None:
    expected = np.full((SIZE, SIZE), 255, dtype=np.uint8)
    expected[16:48, 16:48] = 0
    image = render("quickdraw", SQUARE, "twemoji", Pose(), SIZE, random_stream())
    np.testing.assert_array_equal(image, expected)


def test_quickdraw_keeps_the_inner_lines_of_one_ink_sets() -> None:
    faint = Drawing('<path fill-opacity=".2" d="M4 4h8v8h-8z"/>', 0, 0, 16, 16)
    cut = render("quickdraw", faint, "twemoji", Pose(), SIZE, random_stream())
    kept = render("quickdraw", faint, "emojione-monotone", Pose(), SIZE, random_stream())
    assert (cut == 255).all()
    assert kept[32, 32] == 255 - 51
    assert kept[0, 0] == 255


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_random_pose_stays_on_the_canvas(seed: int) -> None:
    pose = random_pose(random_stream("pose", seed))
    assert -12 <= pose.rotation <= 12
    assert 0.78 <= pose.scale <= 1
    assert max(abs(pose.dx), abs(pose.dy)) <= 0.05
    assert 1 <= pose.stroke <= 2.6
    assert pose == random_pose(random_stream("pose", seed))


def test_poses_differ_and_half_are_mirrored() -> None:
    poses = [random_pose(random_stream("pose", number)) for number in range(400)]
    assert len(set(poses)) > 390
    assert 150 < sum(pose.mirrored for pose in poses) < 250


def test_random_stream_is_frozen() -> None:
    # NumPy promises that the legacy generator never changes; the sample's bytes rest on it.
    assert random_stream("a", 1).randint(0, 1000, 4).tolist() == [213, 172, 764, 206]
    assert random_stream("a", 1).randint(2**31) == random_stream("a/1").randint(2**31)
    assert random_stream("a", 1).randint(2**31) != random_stream("a", 2).randint(2**31)


@settings(max_examples=100, deadline=None)
@given(colour=st.integers(0, 255), alpha=st.integers(0, 255), ground=st.integers(0, 255))
def test_compositing_rounds_to_the_nearest(colour: int, alpha: int, ground: int) -> None:
    rgba = np.array([[[colour, colour, colour, alpha]]], dtype=np.uint8)
    exact = (colour * alpha + ground * (255 - alpha)) / 255
    mixed = styles._over(rgba, np.int64(ground))
    assert mixed.shape == (1, 1, 3)
    assert np.abs(mixed - exact).max() <= 0.5


def slow_kuwahara(image: styles.Integers, radius: int) -> styles.Integers:
    """Filter pixel by pixel, as the definition says."""
    height, width, channels = image.shape
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            best: tuple[float, styles.Integers] | None = None
            for down in (0, radius):
                for right in (0, radius):
                    top, left = row + down, column + right
                    window = padded[top : top + radius + 1, left : left + radius + 1]
                    values = window.reshape(-1, channels)
                    # Exact: the variance times the square of the number of values.
                    spread = len(values) * (values**2).sum(axis=0) - values.sum(axis=0) ** 2
                    if best is None or spread.sum() < best[0]:
                        best = (spread.sum(), values.sum(axis=0) // len(values))
            assert best is not None
            result[row, column] = best[1]
    return result


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    radius=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_kuwahara_equals_its_definition(height: int, width: int, radius: int, seed: int) -> None:
    image = noise(height, width, 3, seed=seed).astype(np.int64)
    np.testing.assert_array_equal(styles._kuwahara(image, radius), slow_kuwahara(image, radius))


def test_kuwahara_keeps_edges_and_flattens_specks() -> None:
    image = np.zeros((16, 16, 3), dtype=np.int64)
    image[:, 8:] = 200
    np.testing.assert_array_equal(styles._kuwahara(image, 2), image)
    speckled = image.copy()
    speckled[4, 4] = 255
    # All four squares of the speck hold it, so that a ninth of it is what remains at most.
    filtered = styles._kuwahara(speckled, 2)
    assert filtered[:, :8].max() == 255 // 9
    assert (filtered[:, 8:] == 200).all()


def test_real_sets_the_drawing_before_a_ground_with_a_shadow() -> None:
    def picture(drawing: Drawing) -> npt.NDArray[np.int64]:
        image = render("real", drawing, "twemoji", Pose(), SIZE, random_stream("scene"))
        return image.astype(np.int64)

    difference = picture(SQUARE) - picture(Drawing("", 0, 0, 16, 16))
    # The scene is otherwise the same: its far corners, grain included, are untouched.
    assert (difference[:4, :4] == 0).all()
    changed = difference.any(axis=2)
    assert 26 * 26 < changed.sum() < 34 * 34
    # Right below the square the ground is darker, never lighter.
    down, across = np.nonzero(changed)
    below = difference[down.max(), across.min() + 8 : across.max() - 4]
    assert (below <= 0).all()
    assert (below < 0).any()
