"""The look of every figure, and how a figure becomes files that do not change between runs.

Figures are plain ``matplotlib.figure.Figure`` objects: without pyplot there is no global list of
open figures and no choice of backend; PNG goes through Agg.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from clip_mixtures.files import atomic_write_bytes

COLUMN_WIDTH = 3.3  # inches: one column of a two-column page
PNG_DPI = 200
FORMATS = ("png", "pdf")
# Of 255: lighter than this is white.
_PAPER = 252

# Okabe and Ito's palette, told apart with every common form of colour blindness
# (https://jfly.uni-koeln.de/color/). Yellow comes last, for it is faint on white.
OKABE_ITO = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
    "#F0E442",
)
NEUTRAL = "#8A8A8A"
_DARKER = 0.55

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so it is the same everywhere
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "figure.labelsize": 7.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a dollar sign in a name is just that
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # text in the PDF stays text that can be searched and edited
}


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Draw the figures of the block in the project's style; settings outside stay untouched."""
    # Only what STYLE leaves open comes from the user's own settings, so the look is the same
    # on every machine: start from matplotlib's defaults, without touching the backend.
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE}
    del settings["backend"]
    with matplotlib.rc_context(settings):
        yield


def colours(names: Iterable[str]) -> dict[str, str]:
    """Give each name a colour by its place in the order; repeated names keep their first one.

    Beyond the eight colours of the palette, darker shades of the same colours follow.

    Args:
        names: mixtures, or domains, in the order of the report.

    Returns:
        Hexadecimal colour (``"#rrggbb"``) of each name.
    """
    return {name: _colour(index) for index, name in enumerate(dict.fromkeys(names))}


def save_figure(
    figure: Figure,
    path_without_suffix: str | os.PathLike[str],
    formats: Sequence[str] = FORMATS,
) -> tuple[Path, ...]:
    """Write a figure to files that are each whole or not there.

    The files hold no date and no program name, so the same figure gives the same bytes with the
    same version of matplotlib.

    Args:
        figure: the figure.
        path_without_suffix: where to write; ``.png`` and ``.pdf`` are added to the whole name, so
            a name may hold dots.
        formats: ``"png"`` (200 dots an inch, 256 colours: a quarter of the bytes of all colours,
            and charts have fewer) and ``"pdf"``.

    Returns:
        Paths of the files, in the order of the formats.

    Raises:
        ValueError: for a format that is neither.
    """
    strange = [name for name in formats if name not in FORMATS]
    if strange:
        raise ValueError(f"formats: is {strange[0]!r}; allowed: {', '.join(FORMATS)}")
    base = Path(path_without_suffix)
    layout = figure.get_layout_engine()
    written = []
    try:
        with figure_style():
            pixels = _drawn(figure)
            # Laying out takes as long as drawing, so the PDF has the layout of the pixels.
            figure.set_layout_engine(None)
            for name in formats:
                path = base.with_name(f"{base.name}.{name}")
                atomic_write_bytes(path, _png(pixels) if name == "png" else _pdf(figure))
                written.append(path)
    finally:
        figure.set_layout_engine(layout)
    return tuple(written)


def _drawn(figure: Figure) -> Image.Image:
    """Lay out and draw once; ``savefig`` does both twice."""
    dpi = figure.dpi
    figure.dpi = PNG_DPI
    try:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        return Image.fromarray(pixels).convert("RGB")
    finally:
        figure.dpi = dpi


def _png(pixels: Image.Image) -> bytes:
    few = pixels.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = np.array(few.getpalette(), dtype=np.uint8).reshape(-1, 3)
    # Near white is the paper, rounded.
    palette[(palette >= _PAPER).all(axis=1)] = 255
    few.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    few.save(buffer, format="PNG", dpi=(PNG_DPI, PNG_DPI))
    return buffer.getvalue()


def _pdf(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf", dpi=PNG_DPI, metadata={"CreationDate": None})
    return buffer.getvalue()


def _colour(index: int) -> str:
    turn, place = divmod(index, len(OKABE_ITO))
    red, green, blue = matplotlib.colors.to_rgb(OKABE_ITO[place])
    shade = _DARKER**turn
    return matplotlib.colors.to_hex((red * shade, green * shade, blue * shade)).upper()
