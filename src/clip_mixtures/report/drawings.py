"""Figures that are yet to be drawn, and how many of them are drawn at a time.

Layout and rasterising take a core tenths of a second for each figure, and no figure needs another:
each core draws its own. What is written does not depend on how many do.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from matplotlib.figure import Figure

from clip_mixtures.errors import UserError
from clip_mixtures.report.document import Illustration
from clip_mixtures.report.style import save_figure

# More processes than this wait for memory rather than draw.
_MOST_WORKERS = 8


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of the report.

    Attributes:
        name: of its files, without suffix; may hold folders.
        heading: over it on the page.
        caption: under it.
        draw: makes the figure.
        alt: what can be seen in it; the heading and the caption if empty.
        run: the cell that it is about; None for one about the study, which is a PDF as well.
        is_beside: whether it only lies beside the page, which links to it.
    """

    name: str
    heading: str
    caption: str
    draw: Callable[[], Figure]
    alt: str = ""
    run: str | None = None
    is_beside: bool = False

    @property
    def formats(self) -> tuple[str, ...]:
        """What it is written as."""
        return ("png",) if self.run or self.is_beside else ("png", "pdf")

    def illustration(self, folder: Path, *, embedded: bool = True) -> Illustration:
        """Return it as a part of a report.

        Args:
            folder: of the figures, relative to the report's.
            embedded: whether the page may hold it.
        """
        alt = self.alt or f"Chart: {self.heading}. {self.caption}"
        path = folder / f"{self.name}.png"
        return Illustration(
            self.heading, path, alt, self.caption, embedded=embedded and not self.is_beside
        )


def save_drawings(
    drawings: Sequence[Drawing], folder: str | os.PathLike[str], workers: int | None = None
) -> None:
    """Draw figures and write their files, several at a time.

    Args:
        drawings: what to draw; no two of the same name.
        folder: where the files go.
        workers: processes that draw; None for one on each core that this process may use.

    Raises:
        UserError: what a drawing raises, or a drawing process was killed.
        ValueError: two drawings have one name.
    """
    names = [drawing.name for drawing in drawings]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(
            f"two drawings are called {twice[0]!r}; the second would replace the first"
        )
    workers = min(workers or _cores(), _MOST_WORKERS, len(drawings))
    # Elsewhere than on Linux a process with threads cannot be copied safely.
    if workers <= 1 or sys.platform != "linux":
        for drawing in drawings:
            _save(drawing, Path(folder))
        return
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, such as BLAS has; the copies call nothing that needs them.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pool = ProcessPoolExecutor(workers, context, _start, (drawings, Path(folder)))
        try:
            for _ in pool.map(_save_at, range(len(drawings))):
                pass
        except BrokenProcessPool as error:
            raise UserError(
                "figures: a process that draws was killed, perhaps for want of memory; run it again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_inherited: tuple[Sequence[Drawing], Path] | None = None


def _start(drawings: Sequence[Drawing], folder: Path) -> None:
    # A copied process has the drawings already; nothing is sent to it but their numbers.
    global _inherited
    _inherited = (drawings, folder)


def _save_at(number: int) -> None:
    if _inherited is None:
        raise RuntimeError("drawing processes begin with _start")
    drawings, folder = _inherited
    _save(drawings[number], folder)


def _save(drawing: Drawing, folder: Path) -> None:
    save_figure(drawing.draw(), folder / drawing.name, drawing.formats)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
