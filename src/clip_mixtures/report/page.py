"""The report as one HTML file that needs nothing beside it and asks nothing of the network.

Figures are inside the page, but for those that a report of many cells has too many of: they lie
beside it and are linked. A content policy in the page's head forbids every request.
"""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path

import jinja2
from PIL import Image

from clip_mixtures.errors import UserError
from clip_mixtures.files import atomic_write_text
from clip_mixtures.report.document import Document

# CSS pixels for each pixel of a figure: print size at 200 dots an inch, a third larger.
_SCALE = 0.64
# Formats that a page may hold, by what Pillow calls them.
_TYPES = {"PNG": "image/png", "WEBP": "image/webp"}
_TEMPLATE = "page.html.j2"


def write_page(path: str | os.PathLike[str], document: Document) -> None:
    """Write a report as a self-contained HTML page, whole or not at all.

    Args:
        path: of the file; paths in the document are relative to its folder.
        document: the report.

    Raises:
        UserError: an image that the page holds does not exist or is neither PNG nor WebP.
    """
    folder = Path(path).parent
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clip_mixtures.report", "templates/"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["image"] = lambda relative: _embedded(folder / relative)
    environment.filters["anchor"] = _anchor
    page = environment.get_template(_TEMPLATE).render(document=document)
    atomic_write_text(path, page + "\n")


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _embedded(path: Path) -> dict[str, object]:
    """Return an image as a data URL, with its size in CSS pixels."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the figure ({error.strerror}); draw it before the page"
        ) from error
    try:
        with Image.open(io.BytesIO(data), formats=list(_TYPES)) as image:
            (width, height), media_type = image.size, _TYPES[str(image.format)]
    except OSError as error:
        raise UserError(
            f"{path}: neither PNG nor WebP; write the figure with save_figure"
        ) from error
    return {
        "url": f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}",
        "width": round(width * _SCALE),
        "height": round(height * _SCALE),
    }
