"""How the page looks and is used: by day and by night, on a phone, from the keyboard."""

from __future__ import annotations

import pytest

from tests.page.conftest import answered, ask, until

pytestmark = pytest.mark.page

PHONE = {"width": 390, "height": 780}
LIGHTNESS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  return ['backgroundColor', 'color'].map((name) => {
    canvas.fillStyle = getComputedStyle(document.documentElement)[name];
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data;
    return (r + g + b) / 765;
  });
}"""


def is_dark(page) -> bool:
    paper, ink = page.evaluate(LIGHTNESS)
    assert abs(paper - ink) > 0.6, "hard to read"
    return paper < ink


@pytest.mark.parametrize("system", ["light", "dark"])
def test_colours_are_the_systems_until_one_chooses(serve, visit, system):
    page = visit(serve().url, color_scheme=system)
    assert is_dark(page) == (system == "dark")
    page.click("#theme")
    assert is_dark(page) == (system == "light")
    page.reload()
    assert is_dark(page) == (system == "light")
    page.click("#theme")
    assert is_dark(page) == (system == "dark")


def test_on_a_phone_all_is_within_reach(serve, visit):
    code = (
        "```\n"
        + "x" * 300
        + "\n```\n\n"
        + "y" * 300
        + "\n\n| "
        + " | ".join("abcdefghijklmnop")
        + " |\n|"
        + "--|" * 16
    )
    page = visit(serve(code).url, viewport=PHONE, has_touch=True, is_mobile=True)
    ask(page, "A long line: " + "z" * 200)
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.getElementById('thread').scrollWidth <= innerWidth")
    for button in ("#send", "#open-sidebar", "#toggle-live", "#toggle-settings", "#theme"):
        box = page.locator(button).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] and box["height"] >= 35
    assert not page.is_visible("#new")
    page.tap("#open-sidebar")
    page.wait_for_timeout(300)
    assert page.is_visible("#new")
    page.tap("#conversations .name")
    page.wait_for_timeout(300)
    assert not page.is_visible("#new")
    page.tap("#toggle-settings")
    assert page.locator("#panel").bounding_box()["width"] == PHONE["width"]
    page.tap("#close-panel")
    assert not page.is_visible("#panel")


def test_everything_can_be_reached_by_keyboard_and_is_named(serve, visit):
    page = visit(serve("Hello.").url)
    ask(page, "Hi")
    answered(page)
    page.click("#toggle-settings")
    names = """() => [...document.querySelectorAll('button, input, select, textarea, a')]
      .filter((one) => one.checkVisibility())
      .filter((one) => !(one.ariaLabel || one.innerText?.trim() || one.labels?.length))
      .map((one) => one.outerHTML)"""
    assert page.evaluate(names) == []
    page.evaluate("document.activeElement.blur()")
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        shown_otherwise = page.evaluate("document.activeElement.matches('body, #input')")
        assert outline != "none" or shown_otherwise
    assert {"new", "input", "send", "thread", "toggle-live", "theme", "system", "effort", "quiet"} <= seen
    page.focus("#tab-settings")
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#tab-inside", "aria-selected") == "true" and page.is_visible("#inside")
    page.keyboard.press("Escape")
    assert not page.is_visible("#panel")
    assert page.evaluate("document.activeElement.id") == "toggle-settings"


def test_the_end_is_followed_unless_one_reads_elsewhere(serve, visit):
    served = serve("\n\n".join(f"line {n}" for n in range(120)), pause=0.002)
    page = visit(served.url)
    ask(page, "Go")
    answered(page)
    thread = "document.getElementById('thread')"
    at_end = f"{thread}.scrollHeight - {thread}.scrollTop - {thread}.clientHeight < 5"
    until(page, at_end)
    page.evaluate("document.getElementById('thread').scrollTop = 0")
    page.wait_for_selector("#latest:visible")
    page.click("#latest")
    until(page, at_end)
    assert not page.is_visible("#latest")
