"""Images are read from where the index says, come out as RGB squares, and never go missing."""

from __future__ import annotations

import io
import types
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from corpora_factory import make_domainnet, tar_bytes, tiny_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_mixtures.archives import list_members
from clip_mixtures.corpora.domainnet import index_domainnet
from clip_mixtures.corpora.png import encode_png
from clip_mixtures.errors import UserError
from clip_mixtures.images import ImageReader, pack, resize_and_crop
from clip_mixtures.index import nullable_integers

PATH = "real/ant/1.png"


def row(**fields: Any) -> types.SimpleNamespace:
    """Make what the reader needs of an index row: by default, a file of its own."""
    place = {"path": PATH, "archive": None, "offset": None, "length": None, "compression": None}
    return types.SimpleNamespace(**{**place, **fields})


def row_of_file(root: Path, data: bytes) -> types.SimpleNamespace:
    (root / PATH).parent.mkdir(parents=True, exist_ok=True)
    (root / PATH).write_bytes(data)
    return row()


def row_in_archive(root: Path, archive: str) -> types.SimpleNamespace:
    (member,) = list_members(root / archive)
    return row(
        archive=archive,
        offset=member.offset,
        length=member.length,
        compression=member.compression,
    )


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image, dtype=np.uint8)


@pytest.mark.parametrize("place", ["folder", "stored zip", "deflated zip", "tar"])
def test_image_is_the_same_wherever_it_lies(tmp_path: Path, place: str) -> None:
    image = tiny_image(PATH)
    data = encode_png(image)
    if place == "folder":
        found = row_of_file(tmp_path, data)
    elif place == "tar":
        (tmp_path / "real.tar").write_bytes(tar_bytes({PATH: data}))
        found = row_in_archive(tmp_path, "real.tar")
    else:
        method = zipfile.ZIP_STORED if place == "stored zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(tmp_path / "real.zip", "w", method) as archive:
            archive.writestr(PATH, data)
        found = row_in_archive(tmp_path, "real.zip")
    with ImageReader(tmp_path) as reader:
        assert reader.read(found) == data
        assert reader.decode(found).mode == "RGB"
        np.testing.assert_array_equal(pixels(reader.decode(found)), image)


def test_archives_are_opened_once_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real.tar").write_bytes(tar_bytes({PATH: b"pixels"}))
    found = row_in_archive(tmp_path, "real.tar")
    reader = ImageReader(tmp_path)
    assert reader.read(found) == b"pixels"
    # An open archive is still readable once its name is gone, a reopened one would not be.
    (tmp_path / "real.tar").unlink()
    assert reader.read(found) == b"pixels"
    reader.close()
    with pytest.raises(UserError, match=r"real\.tar: No such file"):
        reader.read(found)


def test_truncated_archive_names_archive_and_image(tmp_path: Path) -> None:
    (tmp_path / "real.tar").write_bytes(tar_bytes({PATH: b"p" * 700}))
    found = row_in_archive(tmp_path, "real.tar")
    (tmp_path / "real.tar").write_bytes(tar_bytes({PATH: b"p" * 700})[: 512 + 300])
    with (
        ImageReader(tmp_path) as reader,
        pytest.raises(UserError, match=rf"real\.tar: ends inside {PATH} \(300 of 700 bytes\)"),
    ):
        reader.read(found)


def test_damaged_deflate_stream_names_archive_and_image(tmp_path: Path) -> None:
    data = zlib.compress(bytes(range(256)) * 4, wbits=-15)
    (tmp_path / "real.zip").write_bytes(data[:-9])
    found = row(archive="real.zip", offset=0, length=len(data) - 9, compression="deflate")
    with (
        ImageReader(tmp_path) as reader,
        pytest.raises(UserError, match=rf"real\.zip: {PATH}: "),
    ):
        reader.read(found)


def test_absent_file_and_absent_archive_are_named(tmp_path: Path) -> None:
    with ImageReader(tmp_path) as reader:
        with pytest.raises(UserError, match=f"{tmp_path / PATH}: No such file"):
            reader.read(row())
        with pytest.raises(UserError, match=f"{tmp_path / 'real.zip'}: No such file"):
            reader.read(row(archive="real.zip", offset=0, length=1))


WHOLE = encode_png(tiny_image(PATH, size=32))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>not an image</html>", id="no image"),
        pytest.param(WHOLE[:20], id="cut in the header"),
        pytest.param(WHOLE[: len(WHOLE) // 2], id="cut in the pixels"),
        pytest.param(WHOLE[:60] + b"\xff" + WHOLE[61:], id="wrong checksum"),
        pytest.param(
            encoded(Image.fromarray(tiny_image(PATH, size=32)), "JPEG")[:500], id="cut JPEG"
        ),
    ],
)
def test_undecodable_image_is_named(tmp_path: Path, data: bytes) -> None:
    with (
        ImageReader(tmp_path) as reader,
        pytest.raises(UserError, match=f"{PATH} is not a readable image"),
    ):
        reader.decode(row_of_file(tmp_path, data))


def test_image_too_large_to_decode_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with (
        ImageReader(tmp_path) as reader,
        pytest.raises(UserError, match=f"{PATH} is not a readable image"),
    ):
        reader.decode(row_of_file(tmp_path, WHOLE))


SMALL = tiny_image("small", size=4)
GREY = SMALL[..., 0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encode_png(GREY), np.stack([GREY] * 3, axis=-1), id="grey"),
        pytest.param(encoded(Image.fromarray(np.dstack([SMALL, GREY]), "RGBA")), SMALL, id="alpha"),
        pytest.param(
            encoded(Image.fromarray(np.dstack([GREY, 255 - GREY]), "LA")),
            np.stack([GREY] * 3, axis=-1),
            id="grey with alpha",
        ),
        pytest.param(
            encoded(Image.fromarray(np.where(GREY > 128, np.uint8(255), np.uint8(0))).convert("1")),
            np.stack([np.where(GREY > 128, 255, 0)] * 3, axis=-1),
            id="one bit",
        ),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(
    tmp_path: Path, data: bytes, expected: npt.NDArray[np.uint8]
) -> None:
    with ImageReader(tmp_path) as reader:
        image = reader.decode(row_of_file(tmp_path, data))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(pixels(image), expected)


def palette_image() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1], [2, 0]], dtype=np.uint8), "L").convert("P")
    image.putpalette([200, 0, 0, 0, 150, 0, 0, 0, 100])
    return image


@pytest.mark.parametrize(
    "transparency",
    [
        pytest.param(None, id="opaque"),
        pytest.param(1, id="one colour transparent"),
        pytest.param(
            bytes([0, 128, 255]),
            id="an alpha a colour",
        ),
    ],
)
def test_palette_becomes_rgb(tmp_path: Path, transparency: int | bytes | None) -> None:
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    data = encoded(palette_image(), **options)
    with ImageReader(tmp_path) as reader:
        image = reader.decode(row_of_file(tmp_path, data))
    red, green, blue = [200, 0, 0], [0, 150, 0], [0, 0, 100]
    assert pixels(image).tolist() == [[red, green], [blue, red]]


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40))
def test_every_image_becomes_a_square_without_losing_its_colour(
    width: int, height: int, size: int
) -> None:
    square = resize_and_crop(Image.new("RGB", (width, height), (10, 128, 250)), size)
    assert square.shape == (size, size, 3)
    assert square.dtype == np.uint8
    # Antialiasing must not mix in anything from beyond the edges.
    assert (square == [10, 128, 250]).all()


def test_image_that_fits_is_left_as_it_is() -> None:
    image = tiny_image("fits", size=24)
    np.testing.assert_array_equal(resize_and_crop(Image.fromarray(image), 24), image)


@pytest.mark.parametrize("across", [True, False], ids=["wide", "tall"])
def test_crop_takes_the_middle(across: bool) -> None:
    # Three squares side by side, of which the middle one is kept pixel by pixel.
    middle = tiny_image("middle", size=8)
    strip = np.concatenate([np.zeros_like(middle), middle, np.full_like(middle, 255)])
    image = Image.fromarray(strip.swapaxes(0, 1) if across else strip)
    kept = resize_and_crop(image, 8)
    np.testing.assert_array_equal(kept, middle.swapaxes(0, 1) if across else middle)


def test_shorter_side_is_scaled_up_or_down_to_size() -> None:
    # Left half black, right half white: the edge stays in the middle whatever the scale.
    for side in (6, 48):
        halves = np.zeros((side, side, 3), dtype=np.uint8)
        halves[:, side // 2 :] = 255
        scaled = resize_and_crop(Image.fromarray(halves), 16)
        assert (scaled[:, :5] < 30).all()
        assert (scaled[:, 11:] > 225).all()


@pytest.fixture
def images_and_index(tmp_path: Path) -> tuple[dict[str, npt.NDArray[np.uint8]], pd.DataFrame]:
    images = make_domainnet(tmp_path, ["clipart"], ["ant", "bee"], train=2, test=1, size=8)
    images |= make_domainnet(tmp_path, ["real"], ["ant", "bee"], train=2, test=1, archive=False)
    return images, index_domainnet(tmp_path, ["clipart", "real"]).frame


def test_pack_keeps_the_order_of_the_rows(
    tmp_path: Path, images_and_index: tuple[dict[str, npt.NDArray[np.uint8]], pd.DataFrame]
) -> None:
    images, frame = images_and_index
    shuffled = frame.iloc[np.random.RandomState(0).permutation(len(frame))]
    packed = pack(shuffled, tmp_path, 8, progress="packing")
    assert packed.shape == (12, 8, 8, 3)
    assert packed.dtype == np.uint8
    for path, image in zip(shuffled["path"], packed, strict=True):
        expected = resize_and_crop(Image.fromarray(images[path]), 8)
        np.testing.assert_array_equal(image, expected, err_msg=path)


def test_pack_fills_what_it_is_given(
    tmp_path: Path, images_and_index: tuple[dict[str, npt.NDArray[np.uint8]], pd.DataFrame]
) -> None:
    _, frame = images_and_index
    out = np.zeros((12, 8, 8, 3), dtype=np.uint8)
    assert pack(frame, tmp_path, 8, out=out) is out
    np.testing.assert_array_equal(out, pack(frame, tmp_path, 8))


@pytest.mark.parametrize("shape", [(11, 8, 8, 3), (12, 3, 8, 8), (12, 8, 8)])
def test_pack_refuses_memory_of_another_shape(
    tmp_path: Path,
    images_and_index: tuple[dict[str, npt.NDArray[np.uint8]], pd.DataFrame],
    shape: tuple[int, ...],
) -> None:
    _, frame = images_and_index
    with pytest.raises(ValueError, match="out has shape"):
        pack(frame, tmp_path, 8, out=np.zeros(shape, dtype=np.uint8))


def test_pack_stops_at_the_first_image_that_cannot_be_read(
    tmp_path: Path, images_and_index: tuple[dict[str, npt.NDArray[np.uint8]], pd.DataFrame]
) -> None:
    _, frame = images_and_index
    (tmp_path / "real/bee/train_1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"real/bee/train_1\.png is not a readable image"):
        pack(frame, tmp_path, 8)


def test_pack_of_no_rows(
    tmp_path: Path, images_and_index: tuple[dict[str, npt.NDArray[np.uint8]], pd.DataFrame]
) -> None:
    _, frame = images_and_index
    assert pack(frame.iloc[:0], tmp_path, 8).shape == (0, 8, 8, 3)


def test_pack_reads_rows_whose_nulls_are_of_any_kind(tmp_path: Path) -> None:
    image = tiny_image(PATH, size=8)
    row_of_file(tmp_path, encode_png(image))
    for null in (None, float("nan"), pd.NA):
        frame = pd.DataFrame(
            {
                "path": [PATH],
                "archive": pd.Series([null], dtype=object),
                "offset": nullable_integers([None]),
                "length": nullable_integers([None]),
                "compression": pd.Series([null], dtype=object),
            }
        )
        np.testing.assert_array_equal(pack(frame, tmp_path, 8)[0], image)
