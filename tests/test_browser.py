"""The page as a browser shows it: nothing is asked of the network, it sorts, it fits a phone.

Wants Chromium or Chrome: `apt-get install chromium` on Debian; CHROMIUM names another one.

python -m pytest -m browser tests/test_browser.py
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, browser, find_browser
from PIL import Image
from study_factory import make_study

import compare
import examples

pytestmark = pytest.mark.browser

MIXTURES: dict[str, dict[str, Any]] = {
    "natural-only": {"kind": "natural_only"},
    "a-mixture-whose-name-is-too-long-for-any-phone": {"kind": "leave_out_domain"},
    "cg-high": {"kind": "cg_high_diversity"},
    "cg-high-allow-50": {"kind": "cg_high_diversity", "allow": 0.5},
}
PHONE, DESK = 360, 1200


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "study"
    make_study(folder, MIXTURES, models=("rn", "vit"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        examples.main()
        compare.main()
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = find_browser()
    if found is None:
        pytest.skip("no browser here: install chromium, or say where it is by CHROMIUM=/path")
    with browser(found, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def opened(chromium: Browser, page: Path) -> Browser:
    chromium.resize(DESK)
    chromium.media()
    chromium.open(page)
    return chromium


def load_images(opened: Browser) -> list[list[int]]:
    """Load what is only loaded when it is seen; return each image's size, 0 if it is broken."""
    found: list[list[int]] = opened.value(
        "Promise.all([...document.images].map(async image => { image.loading = 'eager';"
        "await image.decode().catch(() => 0); return [image.naturalWidth, image.naturalHeight];}))"
    )
    return found


def column(opened: Browser, place: int) -> list[str]:
    """Return a column of the first table, top to bottom."""
    found: list[str] = opened.value(
        "[...document.querySelector('table.sortable').tBodies[0].rows]"
        f".map(row => row.cells[{place}].textContent.trim())"
    )
    return found


def numbers(texts: list[str]) -> list[float]:
    return [float(text.split()[0].replace(",", "")) for text in texts]


def orders(opened: Browser) -> list[str | None]:
    found: list[str | None] = opened.value(
        "[...document.querySelector('table.sortable').tHead.rows[0].cells]"
        ".map(head => head.getAttribute('aria-sort'))"
    )
    return found


def test_nothing_goes_wrong_and_nothing_is_asked_of_the_network(
    opened: Browser, page: Path
) -> None:
    sizes = load_images(opened)
    assert len(sizes) > 8
    assert all(width > 0 and height > 0 for width, height in sizes)
    wrong = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    assert [event for event in opened.events if event.get("method") in wrong] == []
    asked = {
        event["params"]["request"]["url"].split(",")[0]
        for event in opened.events
        if event.get("method") == "Network.requestWillBeSent"
    }
    allowed = {page.as_uri(), "data:image/png;base64", "data:image/webp;base64", "data:"}
    assert page.as_uri() in asked
    assert asked <= allowed


def test_the_page_could_ask_for_nothing_if_it_wanted(opened: Browser) -> None:
    refused = opened.value(
        "fetch('http://127.0.0.1:9/').then(() => 'sent', error => error.constructor.name)"
    )
    assert refused == "TypeError"
    assert any(
        "Content Security Policy" in event["params"]["entry"]["text"]
        for event in opened.events
        if event.get("method") == "Log.entryAdded"
    )


def test_a_click_on_a_header_sorts_and_another_turns_the_order(opened: Browser) -> None:
    names = opened.value(
        "[...document.querySelector('table.sortable').tHead.rows[0].cells]"
        ".map(head => head.textContent.trim())"
    )
    place = names.index("Held-out, sketch")
    head = f"table.sortable thead th:nth-child({place + 1}) button"
    before = column(opened, place)
    opened.click(head)
    assert orders(opened)[place] == "descending"
    found = numbers(column(opened, place))
    assert found == sorted(numbers(before), reverse=True)
    assert found != numbers(before)
    opened.click(head)
    assert orders(opened)[place] == "ascending"
    assert numbers(column(opened, place)) == sorted(found)
    # Another column takes over, and a name begins with the first letter.
    opened.click("table.sortable thead th:first-child button")
    assert [order for order in orders(opened) if order] == ["ascending"]
    assert column(opened, 0) == sorted(column(opened, 0))


def test_keys_alone_sort(opened: Browser) -> None:
    opened.value("document.querySelector('nav a:last-child').focus(); 1")
    for _ in range(40):
        opened.press("Tab", 9)
        if opened.value("document.activeElement.textContent.trim()") == "Held-out, sketch":
            break
    else:
        raise AssertionError("the header is not reached by the Tab key")
    place = opened.value("document.activeElement.closest('th').cellIndex")
    opened.press("Enter", 13, text="\r")
    found = numbers(column(opened, place))
    assert found == sorted(found, reverse=True)
    opened.press(" ", 32, text=" ")
    assert orders(opened)[place] == "ascending"
    # Where one is can be seen.
    assert opened.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_what_is_missing_stays_at_the_end(opened: Browser) -> None:
    opened.value(
        "(() => { const row = document.querySelector('table.sortable').tBodies[0].rows[0];"
        "const cell = row.cells[row.cells.length - 1]; cell.textContent = '-';"
        "delete cell.dataset.order; return 1; })()"
    )
    place = opened.value("document.querySelector('table.sortable').rows[0].cells.length") - 1
    for _ in range(2):
        opened.click(f"table.sortable thead th:nth-child({place + 1}) button")
        assert column(opened, place)[-1] == "-"


@pytest.mark.parametrize("width", [PHONE, 768, DESK])
def test_the_page_is_never_wider_than_the_screen(opened: Browser, page: Path, width: int) -> None:
    opened.resize(width)
    opened.open(page)
    load_images(opened)
    opened.value("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert opened.value("document.documentElement.scrollWidth") <= width
    outside = opened.value(
        "[...document.querySelectorAll('h1, h2, h3, p, figcaption, summary, dd, nav a')]"
        f".filter(it => it.getBoundingClientRect().right > {width}).map(it => it.textContent)"
    )
    assert outside == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(opened: Browser, page: Path, scheme: str) -> None:
    opened.media(scheme=scheme)
    opened.open(page)
    opened.value("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    # The ground of an element is that of the nearest one behind it, mixed where it is see-through.
    found = opened.value(
        """(() => {
        const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
                                return [r, g, b, a]; };
        const ground = it => {
          if (!it) return [255, 255, 255];
          const [r, g, b, a] = parse(getComputedStyle(it).backgroundColor);
          if (a === 0) return ground(it.parentElement);
          const behind = a < 1 ? ground(it.parentElement) : [0, 0, 0];
          return [r, g, b].map((part, place) => a * part + (1 - a) * behind[place]);
        };
        return [...document.querySelectorAll('body *')]
          .filter(it => [...it.childNodes].some(n => n.nodeType === 3 && n.data.trim())
                        && !['SCRIPT', 'STYLE'].includes(it.tagName))
          .map(it => [it.tagName, parse(getComputedStyle(it).color).slice(0, 3), ground(it)]);
        })()"""
    )
    assert len(found) > 100
    low = {(tag, round(contrast(text, back), 2)) for tag, text, back in found}
    # WCAG 2.2, success criterion 1.4.3.
    assert {one for one in low if one[1] < 4.5} == set()


def contrast(text: list[float], ground: list[float]) -> float:
    """Return the contrast ratio of two sRGB colours as WCAG 2.2 defines it."""
    light = []
    for colour in (text, ground):
        share = np.array(colour) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_the_dark_page_is_dark(opened: Browser, page: Path, tmp_path: Path) -> None:
    means = {}
    for scheme in ("light", "dark"):
        opened.media(scheme=scheme)
        opened.open(page)
        opened.screenshot(tmp_path / f"{scheme}.png", whole=False)
        with Image.open(tmp_path / f"{scheme}.png") as image:
            means[scheme] = float(np.asarray(image.convert("L")).mean())
    assert means["dark"] < 80 < 200 < means["light"]


def test_paper_shows_what_is_folded(opened: Browser) -> None:
    folded = "[...document.querySelectorAll('details')].map(fold => fold.open)"
    assert not any(opened.value(folded))
    printed = opened.call("Page.printToPDF", printBackground=False)
    assert printed["data"].startswith("JVBERi")  # %PDF-
    # It is folded again when it is printed.
    assert not any(opened.value(folded))
    opened.value("dispatchEvent(new Event('beforeprint')); 1")
    assert all(opened.value(folded))
    opened.value("dispatchEvent(new Event('afterprint')); 1")
    assert not any(opened.value(folded))


def test_every_image_and_header_has_words(opened: Browser) -> None:
    assert opened.value("[...document.images].filter(image => !image.alt).length") == 0
    assert opened.value("document.querySelectorAll('th:not([scope])').length") == 0
    assert opened.value("document.documentElement.lang") == "en"
    levels = opened.value("[...document.querySelectorAll('h1,h2,h3,h4')].map(it => +it.tagName[1])")
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    targets = opened.value(
        "[...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.hash))"
    )
    assert all(targets)
