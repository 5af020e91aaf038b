"""The report as Markdown, for places that show no HTML: terminals, code reviews, repositories."""

from __future__ import annotations

import os
from collections.abc import Iterator

from clip_mixtures.files import atomic_write_text
from clip_mixtures.report.document import (
    Block,
    Command,
    Document,
    Entry,
    Fold,
    Illustration,
    Paragraph,
    Table,
)
from clip_mixtures.report.tables import escaped

_SIGNS = {"": "", "right": "✓ ", "wrong": "✗ "}


def write_markdown(path: str | os.PathLike[str], document: Document) -> None:
    """Write a report as Markdown, whole or not at all; figures are links to their files.

    Args:
        path: of the file; paths in the document are relative to its folder.
        document: the report.
    """
    parts = [f"# {escaped(document.title)}"]
    parts.append("\n".join(f"- {escaped(name)}: {escaped(v)}" for name, v in document.facts))
    for section in document.filled:
        parts.append(f"## {escaped(section.heading)}")
        for block in section.blocks:
            parts += _block(block, level=3)
    atomic_write_text(path, "\n\n".join(part for part in parts if part) + "\n")


def _block(block: Block, level: int) -> Iterator[str]:
    match block:
        case Fold():
            yield f"{'#' * level} {escaped(block.heading)}"
            for inner in block.blocks:
                yield from _block(inner, level + 1)
        case Table():
            yield escaped(block.caption)
            yield table_markdown(block)
        case Illustration():
            yield f"{'#' * level} {escaped(block.heading)}"
            shown = _image(block.alt, block.path)
            yield shown if block.embedded else _link(block.heading, block.path)
            yield escaped(block.caption)
        case Command():
            yield f"```sh\n{block.text}\n```"
        case Paragraph():
            yield escaped(block.text)


def table_markdown(table: Table) -> str:
    """Write a table as Markdown with pipes; what only a page can show is left out."""
    rule = ["---:" if column.is_number else "---" for column in table.columns]
    lines = [[escaped(column.name) for column in table.columns], rule]
    lines += [[_entry(entry) for entry in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _entry(entry: Entry) -> str:
    words = escaped(f"{_SIGNS[entry.mark]}{entry.text} {entry.note}")
    if entry.thumbnail is None:
        return words
    return f"{_image(entry.thumbnail.alt, entry.thumbnail.path)} {words}"


def _image(alt: str, path: os.PathLike[str]) -> str:
    return f"!{_link(alt, path)}"


def _link(text: str, path: os.PathLike[str]) -> str:
    # In angle brackets a path may hold spaces and parentheses.
    words = escaped(text).replace("[", "&#91;").replace("]", "&#93;")
    return f"[{words}](<{os.fspath(path)}>)"
