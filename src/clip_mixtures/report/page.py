"""The report as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import dataclasses
import html
import os
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from clip_mixtures.errors import UserError
from clip_mixtures.files import atomic_write_text

_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --back: #ffffff; --line: #d5d5d5;
  --faint: #5c5c5c; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --back: #17181a; --line: #3c3e42; --faint: #a5a5a5; } }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 3rem; color: var(--text);
  background: var(--back); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid var(--line); } td { border-bottom: 1px solid var(--line); }
.right { text-align: right; }
figure { margin: 1rem 0; }
img { max-width: 100%; width: 30rem; height: auto; background: #ffffff; padding: 0.5rem;
  box-sizing: border-box; border: 1px solid var(--line); }
figcaption, .notes { color: var(--faint); font-size: 0.9rem; max-width: 45rem; }
""".strip()


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of the report.

    Attributes:
        name: of its files.
        heading: over it on the page.
        caption: under it.
        figure: the figure.
        on_page: whether the page shows it, or it only lies beside the page.
    """

    name: str
    heading: str
    caption: str
    figure: Figure
    on_page: bool = True


def write_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    tables: Sequence[tuple[str, str]],
    figures: Sequence[tuple[str, str | os.PathLike[str], str]],
    notes: Sequence[str],
) -> None:
    """Write a self-contained HTML page with tables, figures and notes, whole or not at all.

    Args:
        path: the HTML file to write.
        title: title of the page.
        tables: (heading, Markdown) pairs, see ``markdown_to_html`` for what is understood.
        figures: (heading, path of a PNG file, caption) triples; the images are embedded.
        notes: paragraphs for the end of the page, plain text.

    Raises:
        UserError: an image does not exist or is not a PNG file.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for heading, markdown in tables:
        parts.append(f"<section>\n<h2>{html.escape(heading)}</h2>")
        parts.append(markdown_to_html(markdown) + "\n</section>")
    parts += [_figure(*figure) for figure in figures]
    if notes:
        items = "\n".join(f"<li>{html.escape(note)}</li>" for note in notes)
        parts.append(f'<section class="notes">\n<h2>Notes</h2>\n<ul>\n{items}\n</ul>\n</section>')
    body = "\n".join(parts)
    atomic_write_text(
        path,
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n",
    )


def markdown_to_html(markdown: str) -> str:
    """Turn the small part of Markdown that the tables use into HTML.

    Blocks are parted by blank lines. A block of lines that begin with ``|`` is a table (header,
    rule, rows; a rule such as ``---:`` aligns to the right), one that begins with ``#`` is a
    heading, anything else a paragraph. Text is escaped: markup inside it shows as it was written.
    """
    blocks = re.split(r"\n\s*\n", markdown.strip())
    return "\n".join(_block(block.strip().splitlines()) for block in blocks if block.strip())


def _block(lines: Sequence[str]) -> str:
    if len(lines) >= 2 and all(line.lstrip().startswith("|") for line in lines):
        return _table(lines)
    if len(lines) == 1 and lines[0].startswith("#"):
        return f"<h3>{_text(lines[0].lstrip('#'))}</h3>"
    return f"<p>{_text(' '.join(lines))}</p>"


def _table(lines: Sequence[str]) -> str:
    header, rule, *rows = (_cells(line) for line in lines)
    right = [cell.endswith(":") and not cell.startswith(":") for cell in rule]
    head = _row("th", header, right)
    body = "\n".join(_row("td", row, right) for row in rows)
    return (
        f'<div class="table"><table>\n<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table></div>"
    )


def _row(tag: str, cells: Sequence[str], right: Sequence[bool]) -> str:
    # A row may be longer or shorter than the rule; what has no rule goes to the left.
    aligned = [*right, *[False] * len(cells)]
    written = [
        f'<{tag} class="right">{cell}</{tag}>' if to_right else f"<{tag}>{cell}</{tag}>"
        for cell, to_right in zip(map(_text, cells), aligned, strict=False)
    ]
    return f"<tr>{''.join(written)}</tr>"


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|").removesuffix("|")
    # A pipe after a backslash belongs to the text of its cell.
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


def _text(markdown: str) -> str:
    # The tables write entities for the characters of HTML, so undo these before escaping anew.
    return html.escape(html.unescape(markdown.strip()))


def _figure(heading: str, png_path: str | os.PathLike[str], caption: str) -> str:
    try:
        data = Path(png_path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{png_path}: cannot read the figure ({error.strerror}); draw it before the page"
        ) from error
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UserError(f"{png_path}: not a PNG file; write the figure with save_figure")
    encoded = base64.b64encode(data).decode("ascii")
    return (
        f"<section>\n<h2>{html.escape(heading)}</h2>\n<figure>\n"
        f'<img src="data:image/png;base64,{encoded}" alt="{html.escape(heading)}">\n'
        f"<figcaption>{html.escape(caption)}</figcaption>\n</figure>\n</section>"
    )
