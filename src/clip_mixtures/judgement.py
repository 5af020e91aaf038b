"""What an image is, and whether it can be read: the judgement that verifying is made of."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.fft
from PIL import Image, UnidentifiedImageError

from clip_mixtures.errors import UserError
from clip_mixtures.images import ImageReader, decode_rgb

# An unreadable image has exactly one of these.
UNREADABLE = ("missing", "zero_byte", "truncated", "corrupt", "not_an_image", "too_large")

# A readable image may have several of these, in this order.
REMARKS = ("animated", "cmyk", "alpha", "wrong_extension")

MEANINGS = {
    "missing": "the file is not there",
    "zero_byte": "the file is there and empty",
    "truncated": "the image, or the archive that it lies in, ends too early",
    "corrupt": "the format is known but the content does not decode",
    "not_an_image": "the content is of no known image format",
    "too_large": "the content unpacks to more than Pillow allows (a decompression bomb)",
    "animated": "there is more than one frame, of which the first is used",
    "cmyk": "the colours are those of print, converted to RGB without a profile",
    "alpha": "there is an alpha channel or a transparent colour, which is dropped",
    "wrong_extension": "the name's ending belongs to another format or to none",
}

_MESSAGE_LENGTH = 200

_HASH_SIDE = 32
_HASH_FREQUENCIES = 8

# The formats that image corpora are made of: how a file begins and, if fixed, how it ends.
_ENDS = {
    b"\xff\xd8\xff": b"\xff\xd9",
    b"\x89PNG": b"IEND\xaeB`\x82",
    b"GIF8": b";",
}
_OTHER_STARTS = (b"II*\0", b"MM\0*")
_AVIF_BRANDS = (b"ftypavif", b"ftypavis")

# How Pillow's decoders say that they wanted more data than there were.
_CUT = re.compile(
    r"truncated|unexpected end|end of file|reached eof|not enough image data|only got",
    re.IGNORECASE,
)

# These say that there is no such file; other errors (no permission, a failing disk, a server that
# does not answer) say nothing about the image.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


# For errors that are the disk's or the reader's and not an image's.
GOES_ON = "what is done is kept, and the same command goes on from it"


class Place(NamedTuple):
    """Where an image's bytes are: the columns of an index that a worker needs."""

    path: str
    archive: str | None
    offset: int | None
    length: int | None
    compression: str | None


@dataclasses.dataclass(frozen=True)
class _Fault:
    """Why an image cannot be read, and what was said about it."""

    reason: str
    message: str


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image says about itself before a pixel is decoded; nothing if that is damaged."""

    format: str | None = None
    mode: str | None = None
    width: int | None = None
    height: int | None = None
    animated: bool = False
    alpha: bool = False


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A row of the table but for its number."""

    readable: bool
    findings: str
    message: str | None
    header: Header
    bytes: int | None
    digest: str | None
    perceptual_hash: int | None


def perceptual_hash(image: Image.Image) -> int:
    """Return 64 bits that stay almost the same when an image is resized or encoded anew.

    The image becomes 32 x 32 grey values; of their cosine transform, the 8 x 8 lowest frequencies
    each give a bit, set if the coefficient is above the median. The constant part (the first bit)
    is left out of the median and its bit is 0. Row by row, the first bit is the highest.

    Args:
        image: an RGB image of any size.

    Returns:
        0 <= hash < 2**64; 0 for an image of one colour.
    """
    # With the gap, large images are first averaged in whole blocks: as good here, and faster.
    grey = image.convert("L").resize(
        (_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0
    )
    transformed = scipy.fft.dctn(np.asarray(grey, dtype=np.float64), type=2, norm="ortho")
    # Coefficients that are zero come out as 1e-14 or so, of either sign.
    lowest = transformed[:_HASH_FREQUENCIES, :_HASH_FREQUENCIES].round(3).ravel()
    bits = lowest > np.median(lowest[1:])
    bits[0] = False
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def judge(place: Place, reader: ImageReader) -> Verdict:
    """Open an image as training does, and say what it is or why it cannot be read.

    Raises:
        UserError: for an error that says nothing about the image, such as a failing disk.
    """
    data = _read(place, reader)
    if isinstance(data, _Fault):
        return _refuse(data, Header())
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    if not data:
        return _refuse(_Fault("zero_byte", "no bytes"), Header(), 0, digest)
    header = _read_header(data)
    try:
        # From the bytes once more, so that it is what training does, whatever was tried before.
        image = decode_rgb(data)
    # Damaged data make Pillow's decoders raise nearly everything there is.
    except Exception as error:
        fault = _Fault(_reason(error, data), _one_line(str(error) or type(error).__name__))
        return _refuse(fault, header, len(data), digest)
    return Verdict(
        readable=True,
        findings=" ".join(_remarks(header, place.path)),
        message=None,
        header=header,
        bytes=len(data),
        digest=digest,
        perceptual_hash=perceptual_hash(image),
    )


def _refuse(
    fault: _Fault, header: Header, length: int | None = None, digest: str | None = None
) -> Verdict:
    return Verdict(False, fault.reason, fault.message, header, length, digest, None)


def _read(place: Place, reader: ImageReader) -> bytes | _Fault:
    """Return the encoded image, or why there is none.

    Raises:
        UserError: for an error that says nothing about the image.
    """
    try:
        return reader.read(place)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, OSError):
            if place.archive is not None or cause.errno not in _ABSENT:
                raise UserError(f"{error}; {GOES_ON}") from error
            return _Fault("missing", os.strerror(cause.errno))
        if isinstance(cause, zlib.error):
            message = str(cause)
            return _Fault("truncated" if _CUT.search(message) else "corrupt", _one_line(message))
        # The archive's own path would make the table differ from one machine to the next.
        return _Fault("truncated", _one_line(str(error).partition(f"{place.archive}: ")[2]))
    except OSError as error:
        where = place.archive or place.path
        raise UserError(f"{where}: {error.strerror} at {place.path}; {GOES_ON}") from error
    except ValueError as error:
        # No file can have a name with a null byte in it.
        return _Fault("missing", _one_line(str(error)))


def _read_header(data: bytes) -> Header:
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            alpha = image.has_transparency_data
            return Header(image.format, image.mode, width, height, _is_animated(image), alpha)
    except Exception:
        return Header()


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    # What follows the first frame is damaged, which is as good as nothing following it.
    except Exception:
        return False


def _remarks(header: Header, path: str) -> Iterator[str]:
    if header.animated:
        yield "animated"
    if header.mode == "CMYK":
        yield "cmyk"
    if header.alpha:
        yield "alpha"
    named = Image.registered_extensions().get(os.path.splitext(path)[1].lower())
    # Cameras put a second picture behind the first, which makes a JPEG what Pillow calls an MPO.
    if named != header.format and (named, header.format) != ("JPEG", "MPO"):
        yield "wrong_extension"


def _reason(error: Exception, data: bytes) -> str:
    message = str(error)
    # Pillow refuses compressed text in a PNG that unpacks to megabytes with a plain ValueError.
    if isinstance(error, Image.DecompressionBombError | MemoryError) or "too large" in message:
        return "too_large"
    if isinstance(error, UnidentifiedImageError) and not _has_known_start(data):
        return "not_an_image"
    cut = isinstance(error, EOFError) or bool(_CUT.search(message)) or _lacks_end(data)
    return "truncated" if cut else "corrupt"


def _has_known_start(data: bytes) -> bool:
    # An image that is cut or damaged in its header is not identified, and yet one.
    return (
        data.startswith((*_ENDS, *_OTHER_STARTS))
        or data[4:12] in _AVIF_BRANDS
        or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    )


def _lacks_end(data: bytes) -> bool:
    if data[:4] == b"RIFF":
        return 8 + int.from_bytes(data[4:8], "little") > len(data)
    for start, end in _ENDS.items():
        if data.startswith(start):
            # Downloads that broke off may have been filled up with zeros.
            return not data.rstrip(b"\0").endswith(end)
    return False


def _one_line(message: str) -> str:
    """Return a message fit for a table and a terminal, and the same in every run."""
    without_addresses = re.sub(r" ?<[^<>]* object at 0x[0-9a-fA-F]+>", "", message)
    line = " ".join(without_addresses.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:_MESSAGE_LENGTH]
