"""Emoji drawings as SVG: read from icon packages, posed, turned into wireframes, rasterised.

Everything that decides a pixel is either integer arithmetic or the one pinned rasteriser (resvg),
so that two machines draw the same bytes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import resvg_py
from PIL import Image

from clip_mixtures.errors import UserError

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)

# What gives a shape its paint or hides a part of it. A wireframe keeps the geometry alone.
_PAINT = frozenset(
    [
        "fill",
        "stroke",
        "stroke-width",
        "opacity",
        "fill-opacity",
        "stroke-opacity",
        "style",
        "filter",
        "mask",
        "clip-path",
        "color",
        "stroke-dasharray",
        "stroke-linejoin",
        "stroke-linecap",
        "stroke-miterlimit",
        "mix-blend-mode",
    ]
)
_PAINT_SERVERS = frozenset(
    ["linearGradient", "radialGradient", "filter", "mask", "clipPath", "style", "image", "pattern"]
)

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """The body of one icon and the box it is drawn in, in its own units."""

    body: str
    left: float
    top: float
    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class IconSet:
    """The icons of one package by name, aliases resolved.

    Attributes:
        name: the set's name, such as ``"twemoji"``.
        icons: icon name to drawing.
        categories: icon name to category, lower case, where the package gives one.
    """

    name: str
    icons: dict[str, Drawing]
    categories: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Pose:
    """How a drawing is placed on its square canvas.

    Attributes:
        rotation: in degrees.
        scale: side of the drawing over the side of the canvas.
        mirrored: swap left and right.
        dx: shift to the right as a share of the side.
        dy: shift downwards as a share of the side.
        stroke: width of a wireframe's lines, in 64ths of the drawing's side.
    """

    rotation: int = 0
    scale: float = 1.0
    mirrored: bool = False
    dx: float = 0.0
    dy: float = 0.0
    stroke: float = 1.6


def read_icon_set(name: str, package: Path) -> IconSet:
    """Read an icon set from its package archive (.tgz).

    Raises:
        UserError: when the archive is damaged or is not such a package.
    """
    try:
        with tarfile.open(package, "r:gz") as archive:
            icons = json.load(archive.extractfile("package/icons.json"))  # type: ignore[arg-type]
            metadata = json.load(archive.extractfile("package/metadata.json"))  # type: ignore[arg-type]
    except (tarfile.TarError, zlib.error, EOFError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{package}: not a readable icon package ({error}); delete it") from error
    drawings = {icon: _drawing(icons, entry) for icon, entry in icons["icons"].items()}
    for alias in icons.get("aliases", {}):
        parent = alias
        # An alias of an alias is followed, but never further than there are aliases.
        for _ in icons["aliases"]:
            if parent in icons["aliases"] and parent not in drawings:
                parent = icons["aliases"][parent]["parent"]
        if parent in drawings:
            drawings[alias] = drawings[parent]
    categories = {
        icon: category.lower().replace(" & ", " ")
        for category, members in sorted(metadata.get("categories", {}).items())
        for icon in members
    }
    return IconSet(name, drawings, categories)


def _drawing(icons: dict[str, Any], entry: dict[str, Any]) -> Drawing:
    def value(key: str, default: float) -> float:
        return float(entry.get(key, icons.get(key, default)))

    return Drawing(
        entry["body"], value("left", 0), value("top", 0), value("width", 16), value("height", 16)
    )


def svg_document(drawing: Drawing, pose: Pose, wireframe: bool = False) -> str:
    """Place a drawing on a canvas of side 1, in colour or as the outlines of all its shapes.

    A wireframe has no fills: every shape, one that only carried a gradient included, is reduced to
    a black line of the pose's stroke width.
    """
    side = max(drawing.width, drawing.height)
    centre_x, centre_y = drawing.left + drawing.width / 2, drawing.top + drawing.height / 2
    scale = pose.scale / side
    stroke = pose.stroke * side / 64
    across = -scale if pose.mirrored else scale
    transform = (
        f"translate({0.5 + pose.dx:.6f} {0.5 + pose.dy:.6f}) rotate({pose.rotation}) "
        f"scale({across:.8f} {scale:.8f}) translate({-centre_x:.6f} {-centre_y:.6f})"
    )
    line = f'fill="none" stroke="#000" stroke-linejoin="round" stroke-width="{stroke:.6f}"'
    paint = f" {line}" if wireframe else ""
    body = _without_paint(drawing.body) if wireframe else drawing.body
    return (
        f'<svg xmlns="{_SVG}" xmlns:xlink="{_XLINK}" viewBox="0 0 1 1" width="1" height="1">'
        f'<g transform="{transform}"{paint}>{body}</g></svg>'
    )


def _without_paint(body: str) -> str:
    root = ElementTree.fromstring(f'<g xmlns="{_SVG}" xmlns:xlink="{_XLINK}">{body}</g>')
    _strip(root)
    return ElementTree.tostring(root, encoding="unicode")


def _strip(element: ElementTree.Element) -> None:
    for name in [name for name in element.attrib if name in _PAINT]:
        del element.attrib[name]
    for child in list(element):
        if child.tag.rsplit("}", 1)[-1] in _PAINT_SERVERS:
            element.remove(child)
        else:
            _strip(child)


def rasterise(document: str, size: int) -> Pixels:
    """Draw an SVG document of a square canvas.

    Returns:
        (size, size, 4) uint8, red, green, blue and straight alpha.
    """
    png = resvg_py.svg_to_bytes(
        svg_string=document, width=size, height=size, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(bytes(png))) as image:
        return np.asarray(image.convert("RGBA"))
