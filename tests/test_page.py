"""A report written as a page and as Markdown, read back; and figures drawn several at a time."""

from __future__ import annotations

import base64
import os
import re
import signal
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from matplotlib.figure import Figure
from PIL import Image

from clip_mixtures.errors import UserError
from clip_mixtures.report.document import (
    Bar,
    Block,
    Column,
    Command,
    Document,
    Entry,
    Fold,
    Illustration,
    Paragraph,
    Section,
    Table,
    Thumbnail,
    text_table,
)
from clip_mixtures.report.drawings import Drawing, save_drawings
from clip_mixtures.report.examples import webp
from clip_mixtures.report.markdown import table_markdown, write_markdown
from clip_mixtures.report.page import write_page

VOID = {"meta", "img", "link"}


class Reader(HTMLParser):
    """Collects what is on a page, and checks that its tags close."""

    def __init__(self) -> None:
        """Start with nothing read."""
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag, and begin a row or a cell."""
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag that has nothing in it."""
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        """Check that the tag closes the one opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Add the text to the cell it stands in."""
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of all tags of a name."""
        return [attributes for name, attributes in self.tags if name == tag]


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def document(*blocks: Block, title: str = "A report") -> Document:
    return Document(title, (("Cells", "8"),), (Section("one", "One", blocks),))


def picture(path: Path, size: tuple[int, int] = (60, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


TABLE = Table(
    "Numbers",
    "What was found.",
    (Column("Name", heads_row=True), Column("Value", is_number=True)),
    (
        (Entry("ten"), Entry("10", 10.0, "[9, 11]", Bar(0.2, 0.5, 1.0), shade=3)),
        (Entry("none"), Entry("-")),
    ),
)


def test_a_page_holds_its_figures_and_asks_for_nothing(tmp_path: Path) -> None:
    png = picture(tmp_path / "figures" / "x.png")
    figure = Illustration("Red", Path("figures/x.png"), "A red box.", "It is red.")
    target = tmp_path / "index.html"
    write_page(target, document(TABLE, figure, Paragraph("So it is."), Command("ls -l")))
    reader = read(target)
    (image,) = reader.of("img")
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == png.read_bytes()
    assert image["alt"] == "A red box."
    assert (image["width"], image["height"]) == ("38", "26")
    assert [row[0].strip() for row in reader.rows] == ["Name", "ten", "none"]
    assert " ".join(reader.rows[1][1].split()) == "10 [9, 11]"
    text = target.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)|url\(|@import|https?:', text)
    assert "default-src 'none'" in text
    assert "It is red." in text
    assert "ls -l" in text


def test_a_tables_headers_have_scope_and_its_numbers_their_order(tmp_path: Path) -> None:
    target = tmp_path / "index.html"
    write_page(target, document(TABLE))
    reader = read(target)
    assert [head["scope"] for head in reader.of("th")] == ["col", "col", "row", "row"]
    assert [cell.get("data-order") for cell in reader.of("td")] == ["10.0", None]
    assert [cell.get("class") for cell in reader.of("td")] == ["number shade3", "number"]
    assert len(reader.of("button")) == 2
    # From 3 to 97, so that a dot at either end shows whole.
    assert [shape["d"] for shape in reader.of("path")] == ["M21.8 4H97.0"]
    assert [shape["cx"] for shape in reader.of("circle")] == ["50.0"]


def test_an_interval_without_ends_is_a_dot(tmp_path: Path) -> None:
    bare = Entry("10", 10.0, bar=Bar(float("nan"), 0.5, float("nan")))
    target = tmp_path / "index.html"
    write_page(target, document(Table("", "", (Column("x"),), ((bare,),), sortable=False)))
    reader = read(target)
    assert reader.of("path") == []
    assert len(reader.of("circle")) == 1
    assert reader.of("button") == []


def test_right_and_wrong_are_said_in_words_too(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(webp(np.zeros((8, 8, 3), dtype=np.uint8)))
    answers = (
        Entry("ant", thumbnail=Thumbnail(Path("a.webp"), "an ant")),
        Entry("ant", mark="right"),
        Entry("bee", mark="wrong"),
    )
    columns = (Column("Image"), Column("x"), Column("y"))
    write_page(tmp_path / "index.html", document(Table("", "", columns, (answers,))))
    reader = read(tmp_path / "index.html")
    assert [mark["aria-label"] for mark in reader.of("span")] == ["right:", "wrong:"]
    (image,) = reader.of("img")
    assert image["src"].startswith("data:image/webp;base64,")
    assert image["alt"] == "an ant"
    write_markdown(tmp_path / "report.md", document(Table("", "", columns, (answers,))))
    assert "| ![an ant](<a.webp>) ant | ✓ ant | ✗ bee |" in (tmp_path / "report.md").read_text()


def test_what_is_beside_the_page_is_linked_and_not_read(tmp_path: Path) -> None:
    figure = Illustration("Away", Path("figures/far off.png"), "", "", embedded=False)
    write_page(tmp_path / "index.html", document(Fold("More", (figure,))))
    reader = read(tmp_path / "index.html")
    assert reader.of("img") == []
    assert reader.of("a")[-1]["href"] == "figures/far%20off.png"
    assert len(reader.of("details")) == 1
    write_markdown(tmp_path / "report.md", document(Fold("More", (figure,))))
    text = (tmp_path / "report.md").read_text()
    assert "### More\n\n#### Away\n\n[Away](<figures/far off.png>)" in text


STRANGE = '<script>alert("a|b")</script>&amp;'


def test_markup_in_names_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    table = text_table(STRANGE, STRANGE, [STRANGE, "n"], [[STRANGE, 1]])
    whole = document(table, Paragraph(STRANGE), Fold(STRANGE, (Command(STRANGE),)), title=STRANGE)
    write_page(tmp_path / "index.html", whole)
    reader = read(tmp_path / "index.html")
    # The one script of the page is its own.
    assert len(reader.of("script")) == 1
    assert reader.rows[1][0].strip() == STRANGE
    text = (tmp_path / "index.html").read_text()
    assert STRANGE not in text
    write_markdown(tmp_path / "report.md", whole)
    rows = [line for line in (tmp_path / "report.md").read_text().splitlines() if line[0:1] == "|"]
    assert {row.count("|") for row in rows} == {3}


@given(st.lists(st.text(), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_any_text_keeps_a_markdown_table_a_table(texts: list[str]) -> None:
    lines = table_markdown(text_table("", "", ["a", "b"], [[one, one] for one in texts])).split(
        "\n"
    )
    assert len(lines) == 2 + len(texts)
    assert {line.count("|") for line in lines} == {3}


def test_sections_without_anything_are_left_out(tmp_path: Path) -> None:
    empty = Section("none", "Nothing", ())
    whole = Document("T", (), (empty, Section("one", "Some", (Paragraph("x"),))))
    write_page(tmp_path / "index.html", whole)
    write_markdown(tmp_path / "report.md", whole)
    for name in ("index.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "Some" in text
        assert "Nothing" not in text


def test_a_figure_that_cannot_be_embedded_is_named(tmp_path: Path) -> None:
    (tmp_path / "figure.png").write_text("not an image")
    for name, message in (
        ("figure.png", r"figure\.png: neither PNG nor WebP"),
        ("missing.png", r"missing\.png: cannot read"),
    ):
        with pytest.raises(UserError, match=message):
            write_page(tmp_path / "index.html", document(Illustration("", Path(name), "", "")))
    assert not (tmp_path / "index.html").exists()


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 2 entries under 1 columns"):
        Table("t", "", (Column("a"),), ((Entry("1"), Entry("2")),))


def test_values_know_whether_they_are_numbers() -> None:
    table = text_table(
        "", "", ["a", "b", "c", "d"], [["x", 12345, 0.5, "1"], ["y", None, 2.0, "z"]]
    )
    assert [column.is_number for column in table.columns] == [False, True, True, False]
    assert [entry.text for entry in table.rows[0]] == ["x", "12,345", "0.5", "1"]
    assert table.rows[1][1] == Entry("-")
    assert table.rows[0][1].order == 12345


# Drawing


def figure(colour: str = "red") -> Figure:
    made = Figure(figsize=(1, 1))
    made.subplots().plot([0, 1], color=colour)
    return made


def killed() -> Figure:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def refused() -> Figure:
    raise UserError("data: no rows; evaluate first")


def drawing(name: str, **options: object) -> Drawing:
    return Drawing(name, f"About {name}", "Lines.", partial(figure), **options)  # type: ignore[arg-type]


def test_any_number_of_processes_draws_the_same_files(tmp_path: Path) -> None:
    drawings = [drawing("a"), drawing("deep/b", run="r"), drawing("c", is_beside=True)]
    for workers in (1, 3):
        save_drawings(drawings, tmp_path / str(workers), workers)
    found = {
        workers: {
            path.relative_to(tmp_path / str(workers)).as_posix(): path.read_bytes()
            for path in (tmp_path / str(workers)).rglob("*.*")
        }
        for workers in (1, 3)
    }
    assert found[1] == found[3]
    # Figures of the study are for print as well.
    assert sorted(found[1]) == ["a.pdf", "a.png", "c.png", "deep/b.png"]


def test_a_drawing_that_fails_stops_the_report(tmp_path: Path) -> None:
    for workers in (1, 2):
        drawings = [Drawing("x", "", "", refused), drawing("b")]
        with pytest.raises(UserError, match="data: no rows"):
            save_drawings(drawings, tmp_path, workers)


def test_a_killed_process_is_an_error_and_not_a_missing_figure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a process that draws was killed"):
        save_drawings([Drawing("x", "", "", killed), drawing("b")], tmp_path, 2)


def test_two_drawings_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two drawings are called 'a'"):
        save_drawings([drawing("a"), drawing("a")], tmp_path)


def test_a_drawing_tells_where_it_goes_and_what_it_shows() -> None:
    shown = drawing("a").illustration(Path("figures"))
    assert shown.path == Path("figures/a.png")
    assert shown.alt == "Chart: About a. Lines."
    assert shown.embedded
    assert not drawing("a", is_beside=True).illustration(Path("figures")).embedded
    assert not drawing("a").illustration(Path("figures"), embedded=False).embedded
    assert drawing("a", alt="A line.").illustration(Path("figures")).alt == "A line."
