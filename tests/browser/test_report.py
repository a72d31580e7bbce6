"""The report in a real browser: it asks for nothing, fits any screen, and can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airloop.contract import Interval
from airloop.report import page as pages
from tests import report_manifests as made
from tests.browser.conftest import WITHIN_MS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FEBRUARY = Interval.parse({"start": made.START, "end": made.END})

CONTRAST = """
() => {
  const parse = text => {
    const found = text.match(/rgba?\\(([^)]+)\\)/)[1].split(/[,\\s/]+/).map(Number);
    return {rgb: found.slice(0, 3), alpha: found.length > 3 ? found[3] : 1};
  };
  const luminance = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const {rgb, alpha} = parse(getComputedStyle(at).backgroundColor);
      if (alpha === 1) return rgb;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const element = walker.currentNode.parentElement;
    if (!text || !element.getClientRects().length || element.closest('title')) continue;
    const style = getComputedStyle(element);
    const color = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [luminance(parse(color).rgb), luminance(behind(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.slice(0, 40), color]);
  }
  return found;
}
"""

OUTSIDE = """
() => {
  // What reaches beyond the window without a box of its own that scrolls.
  const width = document.documentElement.clientWidth;
  return [...document.querySelectorAll('body *')]
    .filter(e => !e.closest('.scroll') && !e.closest('nav') && !e.closest('details:not([open])'))
    .map(e => [e.getBoundingClientRect(), e])
    .filter(([box]) => box.width && (box.right > width + 1 || box.left < -1))
    .map(([box, e]) => `${e.tagName} ${e.textContent.trim().slice(0, 30)} ${box.left} ${box.right}`);
}
"""

OVERLAPS = """
() => {
  // Texts of one axis that lie over each other.
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    const boxes = [...svg.querySelectorAll(':scope > text')].map(t => [t.getBoundingClientRect(), t.textContent]);
    boxes.forEach(([a, first], i) => boxes.slice(i + 1).forEach(([b, second]) => {
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
        found.push(`${first} / ${second}`);
    }));
  }
  return found;
}
"""


def first_run() -> dict[str, Any]:
    """No champion, no drift."""
    first = made.decision(champion=False, reasons=["there is no champion yet to compare with"])
    nothing = made.monitor(
        drift={"columns": [], "reason": "there was no delay model yet"}, quality={"models": []}, crossed=[]
    )
    return made.loop(first) | {"register": made.registered(1, "1", previous=None), "monitor": nothing}


def long_names() -> dict[str, Any]:
    """Names that a layout does not expect, and many slices."""
    slices = [made.slice_of("carrier_of_the_previous_leg", f"{'W' * 60}{i}", 0.002 * i) for i in range(30)]
    tasks = made.loop(made.decision(slices=slices))
    name = "an_unreasonably_long_feature_view_name__" + "and_a_feature_name_to_match" * 3
    tasks["monitor"] = made.monitor(drift={"columns": [made.column(name, 12.5, "drifted")]})
    tasks["train"]["details"]["importance"] = {name: 123456.0}
    tasks["weather.extract"]["outputs"] = {"table": {"kind": "table", "reference": "raw." + "x" * 80 + "@1"}}
    return tasks


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Pages on disk, as the step lays them out."""
    found = {}
    entries = []
    for name, tasks in {"whole": made.loop(), "first": first_run(), "long": long_names()}.items():
        origin = made.origin("unreasonably_long_" * 8 if name == "long" else "flights.csv.zip")
        page = pages.describe("loop", "Flight delays", FEBRUARY, tasks, "America/New_York", ["score"], origin)
        entries.append({**pages.entry(page, tasks, FEBRUARY), "file": f"{name}.html"})
        found[name] = tmp_path / f"{name}.html"
        found[name].write_text(pages.render(page))
    found["index"] = tmp_path / "index.html"
    found["index"].write_text(pages.render_index("loop", "Flight delays", entries))
    return found


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")], ids=lambda p: f"{p[0]}-{p[1]}")
def page(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A fresh page of each size and theme. It fails the test if anything is asked for, or said on the console."""
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    context.set_default_timeout(WITHIN_MS)
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("request", lambda asked: None if asked.is_navigation_request() else troubles.append(asked.url[:100]))
    yield page
    context.close()
    assert [t for t in troubles if t != "data:,"] == []


@pytest.mark.parametrize("name", ["whole", "first", "long", "index"])
def test_it_fits_the_screen_and_can_be_read(page: Page, files: dict[str, Path], name: str) -> None:
    page.goto(files[name].as_uri())
    for details in page.locator("summary").all():
        details.click()
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(OVERLAPS) == []
    measured = page.evaluate(CONTRAST)
    assert len(measured) > 20
    # WCAG AA for text of any size.
    assert [m for m in measured if m[0] < 4.5] == []


def test_the_decision_is_seen_first(page: Page, files: dict[str, Path]) -> None:
    page.goto(files["whole"].as_uri())
    assert page.title() == "February 2013 · Flight delays"
    for text in ("Promoted", "delay version 2 is the new champion"):
        found = page.get_by_text(text, exact=True)
        assert found.is_visible()
        box = found.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 400
    for fact in ("0.7273", "2,010", "37,435"):
        assert page.locator(".facts b", has_text=fact).is_visible()


def test_charts_are_drawn(page: Page, files: dict[str, Path]) -> None:
    page.goto(files["whole"].as_uri())
    for name in ("ROC curve", "Calibration", "Challenger's scores"):
        box = page.get_by_role("img", name=name).bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 200
    stroke = page.locator("polyline.line.a").first.evaluate("e => getComputedStyle(e).stroke")
    assert stroke.startswith("rgb")
    assert page.locator(".rows.bars rect").first.bounding_box()["width"] > 20  # type: ignore[index]


def test_details_open_and_the_index_leads_to_the_page(page: Page, files: dict[str, Path]) -> None:
    page.goto(files["index"].as_uri())
    page.get_by_role("link", name="Read why").click()
    page.get_by_role("heading", level=1, name="February 2013", exact=True).wait_for()
    key = page.locator("#tasks td.mono").first
    assert not key.is_visible()
    page.locator("#tasks summary").click()
    assert key.is_visible()
    page.get_by_role("link", name="Flight delays").click()
    page.get_by_role("heading", level=1, name="Flight delays", exact=True).wait_for()


def test_print_shows_what_is_folded(chromium: Browser, files: dict[str, Path]) -> None:
    page = chromium.new_page()
    page.goto(files["whole"].as_uri())
    page.emulate_media(media="print")
    assert page.locator("#tasks td.mono").first.is_visible()
    assert not page.locator("nav").is_visible()
    page.close()
