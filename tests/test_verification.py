"""What is planted among the images is found, by any number of workers, however often stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora_factory import tar_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clip_mixtures.archives import Member, list_members
from clip_mixtures.errors import UserError
from clip_mixtures.images import decode_rgb
from clip_mixtures.index import Index, nullable_integers, write_index
from clip_mixtures.judgement import MEANINGS, REMARKS, UNREADABLE, perceptual_hash
from clip_mixtures.verification import (
    SCHEMA,
    check_share,
    quarantine,
    read_verification,
    remarks,
    verify,
    write_verification,
)

PLACES = ("folder", "stored zip", "deflated zip", "tar")
PATIENCE = 60.0


class Plant(NamedTuple):
    """The bytes of an image and what there is to be found about it."""

    data: bytes
    findings: str = ""
    header: tuple[str, str] | None = None


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """Draw soft blobs of colour, which survive encoding as a photograph does."""
    noise = np.random.default_rng(seed).integers(0, 256, size=(9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def palette(transparent: bool) -> bytes:
    image = picture(5).quantize(8)
    return encoded(image, "PNG", transparency=2) if transparent else encoded(image, "PNG")


def png_of_size(width: int, height: int) -> bytes:
    """Make a PNG that claims a size; there are no pixels in it."""
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    end = b"IEND"
    chunks = (
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, end)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


JPEG, PNG = encoded(picture(1), "JPEG"), encoded(picture(2), "PNG")
GIF, WEBP = encoded(picture(3), "GIF"), encoded(picture(4), "WEBP")
FRAMES: dict[str, Any] = {"save_all": True, "append_images": [picture(11), picture(12)]}
WITH_PICTURE_INSIDE = encoded(picture(6), "JPEG", exif=b"Exif\0\0" + JPEG)
SIXTEEN = np.linspace(0, 65535, 48 * 40).reshape(40, 48).astype(np.uint16)
RANDOM = np.random.default_rng(0).bytes(3000)

WHOLE = {
    "whole/photo.jpg": Plant(JPEG, header=("JPEG", "RGB")),
    "whole/photo.jpeg": Plant(JPEG, header=("JPEG", "RGB")),
    "whole/PHOTO.JPG": Plant(JPEG, header=("JPEG", "RGB")),
    "whole/PHOTO.JPEG": Plant(encoded(picture(7), "JPEG", progressive=True)),
    "whole/inside.jpg": Plant(WITH_PICTURE_INSIDE),
    "whole/drawing.png": Plant(PNG, header=("PNG", "RGB")),
    "whole/DRAWING.PNG": Plant(PNG),
    "whole/a.b.c.png": Plant(PNG),
    "whole/still.gif": Plant(GIF, header=("GIF", "P")),
    "whole/still.webp": Plant(WEBP, header=("WEBP", "RGB")),
    "whole/lossless.webp": Plant(encoded(picture(4), "WEBP", lossless=True)),
    "whole/scan.tiff": Plant(encoded(picture(8), "TIFF"), header=("TIFF", "RGB")),
    "whole/old.bmp": Plant(encoded(picture(8), "BMP"), header=("BMP", "RGB")),
    "whole/grey.png": Plant(encoded(picture(9).convert("L"), "PNG"), header=("PNG", "L")),
    "whole/grey.jpg": Plant(encoded(picture(9).convert("L"), "JPEG"), header=("JPEG", "L")),
    "whole/sixteen.png": Plant(encoded(Image.fromarray(SIXTEEN), "PNG"), header=("PNG", "I;16")),
    "whole/colours.png": Plant(palette(transparent=False), header=("PNG", "P")),
    "whole/Grüße aus Köln.jpg": Plant(JPEG),
    "whole/ねこ/三毛 猫.png": Plant(PNG),
}
REMARKED = {
    "odd/moves.gif": Plant(encoded(picture(10), "GIF", **FRAMES), "animated"),
    "odd/moves.webp": Plant(encoded(picture(10), "WEBP", **FRAMES), "animated"),
    "odd/moves.png": Plant(encoded(picture(10), "PNG", **FRAMES), "animated"),
    "odd/camera.jpg": Plant(
        encoded(picture(10), "MPO", **FRAMES), "animated", header=("MPO", "RGB")
    ),
    "odd/print.jpg": Plant(
        encoded(picture(13).convert("CMYK"), "JPEG"), "cmyk", header=("JPEG", "CMYK")
    ),
    "odd/alpha.png": Plant(encoded(picture(14).convert("RGBA"), "PNG"), "alpha"),
    "odd/alpha.webp": Plant(encoded(Image.new("RGBA", (9, 9), (9, 9, 9, 99)), "WEBP"), "alpha"),
    "odd/grey_alpha.png": Plant(encoded(picture(14).convert("LA"), "PNG"), "alpha"),
    "odd/one_colour.png": Plant(palette(transparent=True), "alpha", header=("PNG", "P")),
    "odd/colour_key.png": Plant(encoded(picture(15), "PNG", transparency=(1, 2, 3)), "alpha"),
    "odd/png.jpg": Plant(PNG, "wrong_extension", header=("PNG", "RGB")),
    "odd/jpeg.PNG": Plant(JPEG, "wrong_extension"),
    "odd/photo.jpg.bak": Plant(JPEG, "wrong_extension"),
    "odd/nameless": Plant(JPEG, "wrong_extension"),
    "odd/alpha_png.jpg": Plant(
        encoded(picture(14).convert("RGBA"), "PNG"), "alpha wrong_extension"
    ),
    "odd/print.webp": Plant(encoded(picture(13).convert("CMYK"), "JPEG"), "cmyk wrong_extension"),
}
BROKEN = {
    "bad/nothing.jpg": Plant(b"", "zero_byte"),
    "bad/half.jpg": Plant(JPEG[:-100], "truncated", header=("JPEG", "RGB")),
    "bad/without_end.jpg": Plant(JPEG[:-2], "truncated"),
    "bad/behind_inside.jpg": Plant(WITH_PICTURE_INSIDE[: len(JPEG) + 150], "truncated"),
    "bad/header.jpg": Plant(JPEG[:8], "truncated"),
    "bad/before_the_size.jpg": Plant(JPEG[:158], "truncated"),
    "bad/filled_up.jpg": Plant(JPEG[:158] + bytes(4000), "truncated"),
    "bad/half.png": Plant(PNG[: len(PNG) // 2], "truncated", header=("PNG", "RGB")),
    "bad/header.png": Plant(PNG[:20], "truncated"),
    "bad/half.gif": Plant(GIF[: len(GIF) // 2], "truncated"),
    "bad/header.gif": Plant(GIF[:11], "truncated"),
    "bad/half.webp": Plant(WEBP[: len(WEBP) // 2], "truncated"),
    "bad/half_of_moves.webp": Plant(encoded(picture(10), "WEBP", **FRAMES)[:900], "truncated"),
    "bad/checksum.png": Plant(flipped(PNG, 60), "corrupt"),
    "bad/in_header.png": Plant(flipped(PNG, 18), "corrupt"),
    "bad/in_header.webp": Plant(WEBP[:13] + bytes(9) + WEBP[22:], "corrupt"),
    "bad/no_tables.jpg": Plant(b"\xff\xd8\xff\xda" + bytes(40) + b"\xff\xd9", "corrupt"),
    "bad/random.jpg": Plant(RANDOM, "not_an_image"),
    "bad/text.jpg": Plant(b"I am a photograph of a polar bear.\n", "not_an_image"),
    "bad/page.png": Plant(b"<!DOCTYPE html><title>404 Not Found</title>", "not_an_image"),
    "bad/zeros.png": Plant(bytes(500), "not_an_image"),
    "bad/one_byte.png": Plant(b"\x89", "not_an_image"),
    "bad/bomb.png": Plant(png_of_size(40000, 30000), "too_large"),
}
PLANTED = WHOLE | REMARKED | BROKEN


def rows_of(members: Sequence[Member], archive: str | None, prefix: str = "") -> pd.DataFrame:
    """Make an index's rows; a prefix keeps paths of several archives apart."""
    count = len(members)
    facts: dict[str, Any] = {
        "path": [prefix + member.name for member in members],
        "corpus": "tiny",
        "domain": "real",
        "class_id": 0,
        "class_name": "ant",
        "caption": "an ant",
        "aligned_caption": None,
        "split": "train",
        "archive": [archive] * count,
        "offset": nullable_integers([member.offset for member in members]),
        "length": nullable_integers([member.length for member in members]),
        "compression": [member.compression for member in members],
    }
    return pd.DataFrame(facts, index=range(count))


def files_of(root: Path, files: Mapping[str, bytes]) -> pd.DataFrame:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    members = [Member(name) for name in files]
    return rows_of(members, None)


def zip_of(root: Path, files: Mapping[str, bytes], method: int, name: str) -> pd.DataFrame:
    with zipfile.ZipFile(root / name, "w", method) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return rows_of(list_members(root / name), name, prefix=f"{name}/")


def tar_of(root: Path, files: Mapping[str, bytes], name: str = "real.tar") -> pd.DataFrame:
    (root / name).write_bytes(tar_bytes(dict(files)))
    return rows_of(list_members(root / name), name, prefix=f"{name}/")


def lay_out(root: Path, files: Mapping[str, bytes], place: str) -> Index:
    root.mkdir(parents=True, exist_ok=True)
    if place == "folder":
        return Index(files_of(root, files), root)
    if place == "tar":
        return Index(tar_of(root, files), root)
    method = zipfile.ZIP_STORED if place == "stored zip" else zipfile.ZIP_DEFLATED
    return Index(zip_of(root, files, method, f"{place.replace(' ', '_')}.zip"), root)


def everywhere(root: Path) -> tuple[Index, list[str]]:
    """Lay every plant out in every way, with one missing file; return the findings due as well."""
    files = {name: plant.data for name, plant in PLANTED.items()}
    frames = [lay_out(root, files, place).frame for place in PLACES]
    missing = rows_of([Member("bad/gone.jpg")], None)
    due = [plant.findings for plant in PLANTED.values()]
    return Index(pd.concat([*frames, missing], ignore_index=True), root), due * 4 + ["missing"]


def plain(root: Path, count: int) -> Index:
    """Lay out images that are files of their own and all different."""
    images = {f"{n:03}.png": encoded(picture(100 + n, 24, 20), "PNG") for n in range(count)}
    return Index(files_of(root, images), root)


def chunks(scratch: Path) -> list[Path]:
    return sorted(scratch.glob("*/*.parquet"))


def states(scratch: Path) -> dict[Path, tuple[int, int]]:
    """Tell a file that was written again from one that was left alone."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in chunks(scratch)}


def test_every_name_of_the_vocabulary_has_a_meaning() -> None:
    assert tuple(MEANINGS) == UNREADABLE + REMARKS
    assert all(meaning and "\n" not in meaning for meaning in MEANINGS.values())
    found = {name for plant in PLANTED.values() for name in plant.findings.split()}
    assert found == {*MEANINGS} - {"missing"}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_planted_is_found_and_nothing_else(tmp_path: Path, place: str) -> None:
    index = lay_out(tmp_path / "root", {name: p.data for name, p in PLANTED.items()}, place)
    table = verify(index, tmp_path / "scratch", workers=1)
    assert list(table.columns) == SCHEMA.names
    assert table["row"].tolist() == list(range(len(PLANTED)))
    due = {name: plant.findings for name, plant in PLANTED.items()}
    assert dict(zip(PLANTED, table["findings"], strict=True)) == due
    assert table["readable"].tolist() == [name not in BROKEN for name in PLANTED]
    for (name, plant), row in zip(PLANTED.items(), table.itertuples(), strict=True):
        assert row.bytes == len(plant.data), name
        assert row.digest == hashlib.blake2b(plant.data, digest_size=16).hexdigest(), name
        if plant.header is not None:
            assert (row.format, row.mode, row.width, row.height) == (*plant.header, 48, 40), name
        if row.readable:
            assert not isinstance(row.message, str), name
            assert row.perceptual_hash == perceptual_hash(decode_rgb(plant.data)), name
        else:
            assert isinstance(row.message, str), name
            assert row.message, name
            assert row.perceptual_hash is pd.NA, name


def test_messages_are_what_the_decoder_said(tmp_path: Path) -> None:
    index = lay_out(tmp_path, {name: plant.data for name, plant in BROKEN.items()}, "folder")
    table = verify(index, tmp_path / "scratch", workers=1)
    said = dict(zip(BROKEN, table["message"], strict=True))
    assert said["bad/nothing.jpg"] == "no bytes"
    assert said["bad/text.jpg"] == "cannot identify image file"
    assert said["bad/half.jpg"].startswith("image file is truncated (")
    assert said["bad/bomb.png"].startswith("Image size (1200000000 pixels) exceeds limit")
    assert all(len(message) <= 200 and message.isprintable() for message in said.values())


def test_number_of_workers_and_size_of_chunks_make_no_difference(tmp_path: Path) -> None:
    index, due = everywhere(tmp_path / "root")
    one = verify(index, tmp_path / "one", workers=1)
    assert one["findings"].tolist() == due
    two = verify(index, tmp_path / "two", workers=2, chunk=16)
    pd.testing.assert_frame_equal(two, one)
    assert len(chunks(tmp_path / "one")) == 1
    assert len(chunks(tmp_path / "two")) == -(-len(index) // 16)
    # Chunks of another size are no use and no harm.
    pd.testing.assert_frame_equal(verify(index, tmp_path / "two", workers=1, chunk=50), one)


def test_columns_of_a_row_without_an_image(tmp_path: Path) -> None:
    index = plain(tmp_path / "root", 2)
    (tmp_path / "root/001.png").unlink()
    table = verify(index, tmp_path / "scratch", workers=1)
    assert table.loc[1, "findings"] == "missing"
    assert table.loc[1, "message"] == "No such file or directory"
    assert table.loc[1, SCHEMA.names[4:]].isna().all()
    assert [str(table[name].dtype) for name in ("row", "readable", "width", "bytes")] == [
        "int64",
        "bool",
        "Int32",
        "Int64",
    ]
    assert str(table["perceptual_hash"].dtype) == "UInt64"


@pytest.mark.parametrize("name", ["folder.png", "in/file.png/1.png", "null\0byte.png", "x" * 300])
def test_names_that_no_file_can_have_are_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file.png").write_bytes(PNG)
    frame = rows_of([Member(name)], None)
    table = verify(Index(frame, tmp_path), tmp_path / "scratch", workers=1)
    assert table["findings"].tolist() == ["missing"]


def test_archive_that_ends_inside_an_image(tmp_path: Path) -> None:
    index = lay_out(tmp_path / "root", {"a.png": PNG, "b.png": PNG, "c.png": PNG}, "tar")
    archive = tmp_path / "root/real.tar"
    os.truncate(archive, int(index.frame["offset"][1]) + 70)
    table = verify(index, tmp_path / "scratch", workers=1)
    assert table["findings"].tolist() == ["", "truncated", "truncated"]
    assert table["message"][1] == (
        f"ends inside real.tar/b.png (70 of {len(PNG)} bytes); the archive is truncated"
    )
    assert table["bytes"].isna().tolist() == [False, True, True]


def test_damaged_deflate_streams(tmp_path: Path) -> None:
    index = lay_out(tmp_path / "root", {"a.png": PNG, "b.png": PNG}, "deflated zip")
    frame = index.frame.copy()
    frame.loc[0, "length"] = int(frame["length"][0]) - 9
    archive = tmp_path / "root/deflated_zip.zip"
    # A block of a kind that there is not.
    data = bytearray(archive.read_bytes())
    data[int(frame["offset"][1])] = 0xFF
    archive.write_bytes(data)
    table = verify(Index(frame, index.root), tmp_path / "scratch", workers=1)
    assert table["findings"].tolist() == ["truncated", "corrupt"]
    assert table["message"].str.startswith("Error -").all()


def test_absent_archive_or_root_is_one_line(tmp_path: Path) -> None:
    index = lay_out(tmp_path / "root", {"a.png": PNG}, "tar")
    (tmp_path / "root/real.tar").unlink()
    with pytest.raises(UserError, match=r"root/real\.tar: no such archive, .*; fetch it"):
        verify(index, tmp_path / "scratch", workers=1)
    (tmp_path / "root").rmdir()
    with pytest.raises(UserError, match=r"root: no such folder"):
        verify(index, tmp_path / "scratch", workers=1)


def test_error_that_is_not_the_images_fault_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = plain(tmp_path / "root", 3)
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "002.png":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        with pytest.raises(UserError, match=r"002\.png: Permission denied; what is done is kept"):
            verify(index, tmp_path / "scratch", workers=1, chunk=2)
    assert len(chunks(tmp_path / "scratch")) == 1
    assert verify(index, tmp_path / "scratch", workers=1, chunk=2)["readable"].all()


def test_failing_disk_under_an_archive_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = lay_out(tmp_path / "root", {"a.png": PNG}, "tar")

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(UserError, match=r"real\.tar: Input/output error at real\.tar/a\.png; "):
        verify(index, tmp_path / "scratch", workers=1)


def test_decoders_are_not_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Warns that it may be a bomb, in Python.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 40 - 1)
    # Complains about its tables, in C.
    cut = encoded(picture(16), "TIFF", compression="jpeg")
    tables = cut.index(b"\xff\xdb")
    text = PngInfo()
    text.add_text("Comment", "x" * 2_000_000, zip=True)
    files = {
        "large.png": PNG,
        "jpeg.tiff": flipped(cut, tables + 1),
        "text.png": encoded(picture(17, 20, 20), "PNG", pnginfo=text),
    }
    index = lay_out(tmp_path / "root", files, "folder")
    table = verify(index, tmp_path / "scratch", workers=1)
    assert table["findings"].tolist() == ["", "corrupt", "too_large"]
    assert capfd.readouterr() == ("", "")
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"


def test_empty_index(tmp_path: Path) -> None:
    index = Index(plain(tmp_path, 1).frame.iloc[:0], tmp_path)
    table = write_verification(index, tmp_path / "out.parquet", tmp_path / "scratch")
    assert len(table) == 0
    assert list(table.columns) == SCHEMA.names
    assert len(read_verification(tmp_path / "out.parquet", 0)) == 0
    check_share(table, 0.0, "nothing")


@pytest.mark.parametrize(("workers", "chunk"), [(0, 4), (1, 0)])
def test_workers_and_chunk_must_be_some(tmp_path: Path, workers: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        verify(plain(tmp_path, 1), tmp_path / "scratch", workers=workers, chunk=chunk)


def test_index_that_was_read_without_its_captions_will_do(tmp_path: Path) -> None:
    index = lay_out(tmp_path, {"a.png": PNG, "b.png": PNG}, "tar")
    frame = index.frame[["path", "archive", "offset", "length", "compression"]]
    assert verify(Index(frame, tmp_path), tmp_path / "scratch", workers=1)["readable"].all()


# Interruptions


def test_finished_chunks_are_counted_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, scratch = plain(tmp_path / "root", 10), tmp_path / "scratch"
    first = verify(index, scratch, workers=1, chunk=3, progress="verifying")
    assert "verifying: 100%" in capsys.readouterr().err
    before = states(scratch)
    assert len(before) == 4
    lost = chunks(scratch)[1]
    lost.unlink()
    again = verify(index, scratch, workers=1, chunk=3, progress="verifying")
    pd.testing.assert_frame_equal(again, first)
    # The bar begins with what was there.
    assert "verifying:  70%" in capsys.readouterr().err.split("\r")[1]
    after = states(scratch)
    assert {path for path in after if after[path] != before[path]} == {lost}
    verify(index, scratch, workers=1, chunk=3)
    assert capsys.readouterr() == ("", "")


def spoil_bytes(chunk: Path) -> None:
    data = chunk.read_bytes()
    chunk.write_bytes(flipped(data, 40))


def spoil_end(chunk: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[:-30])


def spoil_by_nothing(chunk: Path) -> None:
    chunk.write_bytes(b"")


def spoil_by_other_rows(chunk: Path) -> None:
    chunk.write_bytes(chunks(chunk.parents[1])[0].read_bytes())


def spoil_by_other_columns(chunk: Path) -> None:
    pq.write_table(pq.read_table(chunk).drop_columns(["digest"]), chunk)


@pytest.mark.parametrize(
    "spoil",
    [spoil_bytes, spoil_end, spoil_by_nothing, spoil_by_other_rows, spoil_by_other_columns],
)
def test_damaged_chunk_is_done_again(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    index, scratch = plain(tmp_path / "root", 6), tmp_path / "scratch"
    whole = verify(index, scratch, workers=1, chunk=3)
    spoil(chunks(scratch)[1])
    before = states(scratch)
    pd.testing.assert_frame_equal(verify(index, scratch, workers=1, chunk=3), whole)
    after = states(scratch)
    assert [after[path] != before[path] for path in chunks(scratch)] == [False, True]
    pd.testing.assert_frame_equal(verify(index, scratch, workers=1, chunk=3), whole)
    assert states(scratch) == after


def test_changed_archive_rows_or_root_begin_anew(tmp_path: Path) -> None:
    index = lay_out(tmp_path / "root", {"a.png": PNG, "b.png": PNG}, "tar")
    archive, scratch = tmp_path / "root/real.tar", tmp_path / "scratch"
    assert verify(index, scratch, workers=1)["readable"].all()
    # The same length, another time, and other bytes.
    data = bytearray(archive.read_bytes())
    data[int(index.frame["offset"][1]) + 60] ^= 0xFF
    archive.write_bytes(data)
    os.utime(archive, ns=(0, 1_000_000_000))
    assert verify(index, scratch, workers=1)["findings"].tolist() == ["", "corrupt"]
    assert len(chunks(scratch)) == 2
    swapped = Index(index.frame.iloc[::-1].reset_index(drop=True), index.root)
    assert verify(swapped, scratch, workers=1)["findings"].tolist() == ["corrupt", ""]
    moved = Index(index.frame, (tmp_path / "root").rename(tmp_path / "moved"))
    assert verify(moved, scratch, workers=1)["findings"].tolist() == ["", "corrupt"]
    assert len(chunks(scratch)) == 4


VERIFY = """
import signal
import sys
from pathlib import Path
from clip_mixtures.index import read_index
from clip_mixtures.verification import verify

if __name__ == "__main__":
    # Whoever runs the tests in the background may have had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    verify(read_index(Path(sys.argv[1])), Path(sys.argv[2]), workers=2, chunk=3)
"""


@dataclasses.dataclass(frozen=True)
class Stuck:
    """A corpus of eight chunks; an image of the third is a pipe, so reading it takes for ever."""

    index: Index
    scratch: Path
    pipe: Path
    data: bytes

    def wait_for_the_rest(self) -> None:
        until(lambda: len(chunks(self.scratch)) == 7)

    def mend(self) -> None:
        self.pipe.unlink()
        self.pipe.write_bytes(self.data)

    def release(self) -> None:
        """Let whoever reads the pipe go on."""
        self.pipe.write_bytes(self.data)


@pytest.fixture
def stuck(tmp_path: Path) -> Stuck:
    index = plain(tmp_path / "root", 24)
    pipe = tmp_path / "root/007.png"
    data = pipe.read_bytes()
    pipe.unlink()
    os.mkfifo(pipe)
    write_index(tmp_path / "index.parquet", index)
    return Stuck(index, tmp_path / "scratch", pipe, data)


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def running(stuck: Stuck) -> Iterator[subprocess.Popen[bytes]]:
    """Start verifying in a process of its own, up to where it is stuck."""
    paths = [str(stuck.scratch.parent / "index.parquet"), str(stuck.scratch)]
    process = subprocess.Popen(
        [sys.executable, "-c", VERIFY, *paths], stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        stuck.wait_for_the_rest()
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def children(process: subprocess.Popen[bytes]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    # Only Linux has it, and only Linux promises that they end with their parent.
    return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []


def is_running(pid: int) -> bool:
    try:
        # Ended but not yet waited for is as good as gone.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_killed_run_goes_on(tmp_path: Path, stuck: Stuck, running: subprocess.Popen[bytes]) -> None:
    workers = children(running)
    running.send_signal(signal.SIGKILL)
    running.wait()
    until(lambda: not any(is_running(pid) for pid in workers))
    stuck.mend()
    before = states(stuck.scratch)
    table = verify(stuck.index, stuck.scratch, workers=1, chunk=3)
    after = states(stuck.scratch)
    assert len(after) == 8
    assert {path: after[path] for path in before} == before
    pd.testing.assert_frame_equal(table, verify(stuck.index, tmp_path / "other", workers=1))


def test_interrupted_run_ends_soon_and_goes_on(
    tmp_path: Path, stuck: Stuck, running: subprocess.Popen[bytes]
) -> None:
    before = states(stuck.scratch)
    # As Ctrl-C does it: to all processes of the terminal.
    os.killpg(running.pid, signal.SIGINT)
    stuck.release()
    _, said = running.communicate(timeout=PATIENCE)
    assert running.returncode == -signal.SIGINT
    assert said.decode().count("Traceback") == 1, said.decode()
    stuck.mend()
    table = verify(stuck.index, stuck.scratch, workers=1, chunk=3)
    after = states(stuck.scratch)
    assert {path: after[path] for path in before} == before
    pd.testing.assert_frame_equal(table, verify(stuck.index, tmp_path / "other", workers=1))


def test_killed_worker_is_one_line(tmp_path: Path, stuck: Stuck) -> None:
    def kill() -> None:
        stuck.wait_for_the_rest()
        for process in multiprocessing.active_children():
            process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match=r"verification-\w+: a worker was killed.*is kept, and"):
        verify(stuck.index, stuck.scratch, workers=2, chunk=3)
    killer.join()
    stuck.mend()
    before = states(stuck.scratch)
    table = verify(stuck.index, stuck.scratch, workers=1, chunk=3)
    after = states(stuck.scratch)
    assert {path: after[path] for path in before} == before
    assert table["readable"].all()


def test_workers_need_not_import_torch() -> None:
    code = "import sys, clip_mixtures.verification as v; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Tables


def test_written_table_is_read_back_and_scratch_is_gone(tmp_path: Path) -> None:
    index, _ = everywhere(tmp_path / "root")
    out = tmp_path / "tables/real.parquet"
    (tmp_path / "scratch/other").mkdir(parents=True)
    table = write_verification(index, out, tmp_path / "scratch", workers=1)
    pd.testing.assert_frame_equal(read_verification(out, len(index)), table)
    assert os.listdir(tmp_path / "scratch") == ["other"]
    assert os.listdir(out.parent) == [out.name]
    assert pq.read_schema(out).equals(SCHEMA)
    assert pq.ParquetFile(out).metadata.row_group(0).column(0).compression == "ZSTD"


def test_faulty_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "real.parquet"
    with pytest.raises(UserError, match=r"real\.parquet: no such file; verify the images first"):
        read_verification(path, 4)
    path.write_bytes(b"PAR1 it is not")
    with pytest.raises(UserError, match=r"real\.parquet: not a readable Parquet file .*again$"):
        read_verification(path, 4)
    pq.write_table(pa.table({"row": [0, 1, 2, 3]}), path)
    with pytest.raises(UserError, match=r"real\.parquet: not a table of verified images; "):
        read_verification(path, 4)
    write_verification(plain(tmp_path / "root", 4), path, tmp_path / "scratch", workers=1)
    assert len(read_verification(path, 4)) == 4
    with pytest.raises(UserError, match=r"has 4 rows where the index has 5, .*; run it again$"):
        read_verification(path, 5)
    path.write_bytes(flipped(path.read_bytes(), 40))
    with pytest.raises(UserError, match=r"real\.parquet: not a readable Parquet file"):
        read_verification(path, 4)


def test_quarantine_lists_reasons_and_places(tmp_path: Path) -> None:
    tar = tar_of(tmp_path, {"whole.png": PNG, "text.png": b"text"})
    files = files_of(tmp_path, {"nothing.jpg": b"", "whole.jpg": JPEG})
    index = Index(pd.concat([tar, files], ignore_index=True), tmp_path)
    table = verify(index, tmp_path / "scratch", workers=1)
    listed = quarantine(table, index)
    assert list(listed.columns) == ["row", "path", "archive", "reason", "message"]
    assert listed["row"].tolist() == [1, 2]
    assert listed["path"].tolist() == ["real.tar/text.png", "nothing.jpg"]
    assert listed["archive"][0] == "real.tar"
    assert pd.isna(listed["archive"][1])
    assert listed["reason"].tolist() == ["not_an_image", "zero_byte"]
    assert listed["message"].tolist() == ["cannot identify image file", "no bytes"]
    with pytest.raises(ValueError, match="the table has 4 rows, the index 2"):
        quarantine(table, Index(files, tmp_path))


def test_nothing_to_quarantine(tmp_path: Path) -> None:
    index = plain(tmp_path, 2)
    assert len(quarantine(verify(index, tmp_path / "scratch", workers=1), index)) == 0


def table_of(*findings: str) -> pd.DataFrame:
    readable = [not set(names.split()) & set(UNREADABLE) for names in findings]
    return pd.DataFrame({"readable": readable, "findings": list(findings)})


def test_remarks_are_counted() -> None:
    table = table_of("", "alpha", "alpha wrong_extension", "truncated", "cmyk", "")
    assert remarks(table) == {"animated": 0, "cmyk": 1, "alpha": 2, "wrong_extension": 1}


@pytest.mark.parametrize(
    ("unreadable", "images", "allowed", "passes"),
    [
        (0, 10, 0.0, True),
        (1, 10, 0.1, True),
        (1, 10, 0.0999, False),
        (3, 10, 0.3, True),
        (4, 10, 0.3, False),
        (1, 1000, 0.0, False),
        (10, 10, 1.0, True),
    ],
)
def test_share_of_unreadable_images(
    unreadable: int, images: int, allowed: float, passes: bool
) -> None:
    table = table_of(*["missing"] * unreadable, *["alpha"] * (images - unreadable))
    if passes:
        check_share(table, allowed, "real")
        return
    with pytest.raises(UserError, match=f"^real: {unreadable} of {images} images"):
        check_share(table, allowed, "real")


def test_share_that_is_too_large_is_told_in_one_line() -> None:
    table = table_of("truncated", "missing", "truncated", *["alpha"] * 37)
    with pytest.raises(UserError) as refused:
        check_share(table, 0.001, "real.parquet")
    assert str(refused.value) == (
        "real.parquet: 3 of 40 images (7.5 %) cannot be read, allowed are 0.1 % "
        "(1 missing, 2 truncated); mend the corpus or raise the allowed share"
    )


# Whatever the bytes


@st.composite
def damaged_images(draw: st.DrawFn) -> bytes:
    data = draw(st.sampled_from([plant.data for plant in PLANTED.values() if plant.data]))
    for _ in range(draw(st.integers(0, 3))):
        data = flipped(data, draw(st.integers(0, len(data) - 1)))
    return data[: draw(st.integers(1, len(data)))]


def decodes(data: bytes) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode_rgb(data).mode == "RGB"
    except Exception:
        return False


@settings(max_examples=40, deadline=None)
@given(blobs=st.lists(st.binary(max_size=400) | damaged_images(), min_size=1, max_size=12))
def test_images_are_readable_if_and_only_if_they_decode(blobs: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = lay_out(Path(folder), {f"{n}.jpg": data for n, data in enumerate(blobs)}, "tar")
        table = verify(index, Path(folder) / "scratch", workers=1)
    assert table["readable"].tolist() == [decodes(data) for data in blobs]
    for row in table.itertuples():
        names = str(row.findings).split()
        if row.readable:
            assert names == [name for name in REMARKS if name in names]
        else:
            assert names[0] in UNREADABLE
            assert len(names) == 1
            assert isinstance(row.message, str)
            assert row.message.isprintable()


# Perceptual hash


def distance(one: Image.Image, other: Image.Image) -> int:
    return (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()


SIZES = st.tuples(st.integers(90, 400), st.integers(90, 400))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=SIZES, quality=st.integers(40, 95))
def test_hash_survives_resizing_and_encoding(
    seed: int, size: tuple[int, int], quality: int
) -> None:
    image = picture(seed, 256, 192)
    smaller_or_larger = image.resize(size, Image.Resampling.BICUBIC)
    again = decode_rgb(encoded(image, "JPEG", quality=quality))
    assert distance(image, smaller_or_larger) <= 6
    assert distance(image, again) <= 6
    assert 0 <= perceptual_hash(image) < 2**64


def test_hash_of_large_images_is_that_of_small_ones() -> None:
    image = picture(3, 1500, 1100)
    assert distance(image, image.resize((150, 110), Image.Resampling.LANCZOS)) <= 4


def test_hashes_of_different_images_are_far_apart() -> None:
    images = [picture(seed, 128, 128) for seed in range(30)]
    pairs = [distance(a, b) for n, a in enumerate(images) for b in images[:n]]
    assert min(pairs) >= 14
    assert 28 <= np.mean(pairs) <= 36


@given(colour=st.tuples(*[st.integers(0, 255)] * 3), width=st.integers(1, 70))
def test_hash_of_one_colour_is_zero(colour: tuple[int, int, int], width: int) -> None:
    assert perceptual_hash(Image.new("RGB", (width, 20), colour)) == 0


def test_hash_is_what_it_was() -> None:
    # Tables keep it, so it must not change unnoticed.
    x, y = np.arange(32), np.arange(32)[:, None]
    pattern = ((7 * x * x + 13 * x * y + 5 * y) % 251).astype(np.uint8)
    found = perceptual_hash(Image.fromarray(pattern).convert("RGB"))
    # The transform as it is written in books, up to a scale that does not matter.
    waves = np.cos(np.pi * np.arange(8)[:, None] * (2 * x + 1) / 64)
    waves[0] /= np.sqrt(2)
    lowest = (waves @ pattern @ waves.T).ravel()
    above = lowest > np.median(lowest[1:])
    assert found == sum(1 << (63 - n) for n in range(1, 64) if above[n])
    assert found == 7206000665640025444
