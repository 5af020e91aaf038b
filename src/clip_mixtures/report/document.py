"""A report as a plain value, written as a page by ``page.py`` and as Markdown by ``markdown.py``.

Whatever is said in the report is said once, here: both files show the same sections in the same
order. Texts are plain; the writers escape them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

# What stands where there is nothing to say.
MISSING = "-"
# Shades of a cell, from none to full.
SHADES = 6

Mark: TypeAlias = Literal["", "right", "wrong"]


@dataclasses.dataclass(frozen=True)
class Bar:
    """An estimate and its interval, drawn small beside the numbers.

    Attributes:
        low: lower end as a share of the table's scale, 0 to 1; NaN where there is none.
        middle: the estimate, likewise.
        high: upper end, likewise.
    """

    low: float
    middle: float
    high: float

    @property
    def has_ends(self) -> bool:
        """Whether there is an interval to draw."""
        return not (math.isnan(self.low) or math.isnan(self.high))


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A small image in a table.

    Attributes:
        path: of the file, relative to the report's folder.
        alt: what it shows.
        side: of the square on the page, in CSS pixels.
    """

    path: Path
    alt: str
    side: int = 48


@dataclasses.dataclass(frozen=True)
class Entry:
    """What stands in one place of a table.

    Attributes:
        text: what is read.
        order: number that the column is sorted by; None for the text.
        note: smaller print behind the text, such as an interval.
        bar: the same numbers, drawn.
        mark: whether an answer is right or wrong.
        shade: how dark the place is, 0 to ``SHADES`` - 1.
        thumbnail: an image before the text.
    """

    text: str
    order: float | None = None
    note: str = ""
    bar: Bar | None = None
    mark: Mark = ""
    shade: int = 0
    thumbnail: Thumbnail | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its header.
        is_number: whether it is set to the right, and sorted largest first.
        heads_row: whether its entries are the headers of their rows.
    """

    name: str
    is_number: bool = False
    heads_row: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it is called, a few words.
        caption: what it holds, and how it is read.
        columns: from left to right.
        rows: each with as many entries as there are columns.
        sortable: whether the page lets a reader sort it.
    """

    kind: ClassVar[str] = "table"
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    sortable: bool = True

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: a row of {len(row)} entries under "
                    f"{len(self.columns)} columns"
                )


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclasses.dataclass(frozen=True)
class Command:
    """A line to type in a shell."""

    kind: ClassVar[str] = "command"
    text: str


@dataclasses.dataclass(frozen=True)
class Illustration:
    """A figure.

    Attributes:
        heading: over it.
        path: of its PNG file, relative to the report's folder.
        alt: what can be seen in it, for those who cannot see it.
        caption: under it.
        embedded: whether the page holds it, or links to the file beside the page.
    """

    kind: ClassVar[str] = "illustration"
    heading: str
    path: Path
    alt: str
    caption: str
    embedded: bool = True


@dataclasses.dataclass(frozen=True)
class Fold:
    """Details that the page shows on demand."""

    kind: ClassVar[str] = "fold"
    heading: str
    blocks: tuple[Block, ...]


Block: TypeAlias = Table | Paragraph | Command | Illustration | Fold


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report with an entry in its table of contents.

    Attributes:
        anchor: what a link ends in: letters, digits and hyphens.
        heading: its title.
        blocks: what is in it; a section without any is left out.
    """

    anchor: str
    heading: str
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: of the page.
        facts: (name, value) pairs that are read first.
        sections: from top to bottom.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]

    @property
    def filled(self) -> tuple[Section, ...]:
        """The sections that have something in them."""
        return tuple(section for section in self.sections if section.blocks)


def text_table(
    title: str, caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]
) -> Table:
    """Return a table of plain values; numbers are set to the right and sort as numbers.

    Args:
        title: what it is called, a few words.
        caption: what it holds.
        header: names of the columns; the first heads the rows.
        rows: text, integers or floats; None for a dash.
    """
    numbers = [
        any(_is_number(row[place]) for row in rows)
        and all(_is_number(row[place]) or row[place] is None for row in rows)
        for place in range(len(header))
    ]
    columns = tuple(
        Column(name, is_number=number, heads_row=place == 0)
        for place, (name, number) in enumerate(zip(header, numbers, strict=True))
    )
    return Table(title, caption, columns, tuple(tuple(map(_entry, row)) for row in rows))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _entry(value: object) -> Entry:
    if value is None:
        return Entry(MISSING)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Entry(str(value))
    return Entry(f"{value:,}" if isinstance(value, int) else f"{value:.4g}", order=float(value))
