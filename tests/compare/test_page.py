from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import pytest

from afina.compare.page import page

from . import browser
from .made import NAMES, comparison

BROWSER = browser.find()
needs_browser = pytest.mark.skipif(
    BROWSER is None or sys.platform == "win32", reason="no Chromium found (install chromium, or set AFINA_BROWSER)"
)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_has_everything():
    text = page(comparison())
    tags = Tags(text)
    assert tags.open == []
    names = [tag for tag, _ in tags.seen]
    assert names.count("tr") == 1 + 10
    assert names.count("svg") == 3 + len(NAMES)
    assert names.count("circle") == 3 * len(NAMES)
    assert sum(attrs.get("class") == "loss" for _, attrs in tags.seen) == 3 * len(NAMES)
    assert sum(attrs.get("class") == "mean" for _, attrs in tags.seen) == len(NAMES)
    assert "Take lora: cheap &amp; good." in text
    assert "killed by SIGKILL" in text


def test_page_needs_nothing_from_anywhere():
    text = page(comparison())
    assert not re.search(r"https?://|@import|url\(", text)
    assert all("src" not in attrs for _, attrs in Tags(text).seen)


def test_what_users_wrote_is_text_and_no_markup():
    text = page(comparison())
    assert "tweets &lt;script&gt;" in text
    assert "no layer has a bias &lt;b&gt;" in text
    assert text.count("<script>") == 1


def test_page_without_a_finished_method_still_says_why():
    made = comparison(best="", recommended="", recommendation="No method could be trained.")
    made["rows"] = made["rows"][8:]
    text = page(made)
    assert Tags(text).open == []
    assert "No method could be trained." in text


def test_losses_are_not_called_accuracy():
    text = page(comparison(metric="loss"))
    assert "lower is better" in text
    assert "accuracy" not in text


@pytest.fixture(scope="module")
def chromium():
    out = browser.Browser(BROWSER)
    yield out
    out.close()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "comparison.html"
    path.write_text(page(comparison()), encoding="utf-8")
    return path


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_browser_shows_the_page_whole_and_quietly(chromium, file, width, scheme):
    chromium.open(file, width=width, scheme=scheme)
    assert chromium.value("document.documentElement.scrollWidth <= innerWidth")
    boxes = "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
    assert chromium.value(f"{boxes}.filter(b => b.width > 100 && b.height > 50).length") == 3 + len(NAMES)
    # No image is loaded, so none can be missing; every plot has its points within its frame.
    assert chromium.value("document.images.length") == 0
    inside = """[...document.querySelectorAll('circle')].every(c => {
        const p = c.getBoundingClientRect(), s = c.closest('svg').getBoundingClientRect();
        return p.width > 0 && p.left >= s.left && p.right <= s.right && p.top >= s.top && p.bottom <= s.bottom})"""
    assert chromium.value(inside)
    assert chromium.said("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    asked = [event["request"]["url"] for event in chromium.said("Network.requestWillBeSent")]
    assert {url for url in asked if not url.startswith("data:")} == {file.absolute().as_uri()}


@needs_browser
def test_light_and_dark_differ_and_text_stands_out_in_both(chromium, file):
    back = {}
    for scheme in ("light", "dark"):
        chromium.open(file, width=390, scheme=scheme)
        style = "getComputedStyle(document.body)"
        paper, ink = (luminance(chromium.value(f"{style}.{key}")) for key in ("backgroundColor", "color"))
        assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 7  # WCAG's AAA contrast
        back[scheme] = paper
    assert back["light"] > 0.9
    assert back["dark"] < 0.1


def luminance(colour):
    """Relative luminance of `rgb(r, g, b)`, as WCAG defines it."""
    parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@needs_browser
def test_click_on_a_head_sorts_and_errors_stay_at_the_end(chromium, file):
    chromium.open(file, width=1200, scheme="light")
    names = "[...document.querySelectorAll('tbody tr')].map(r => r.cells[0].textContent)"
    trained = "document.querySelectorAll('th button')[4]"
    assert chromium.value(f"{trained}.textContent") == "trained"
    before = chromium.value(names)
    chromium.value(f"{trained}.click()")
    after = chromium.value(names)
    assert after[:8] != before[:8]
    assert after[:2] == ["prefix_tuning", "last_layers"]  # 10 to the 4th parameters each, in the order they had
    assert after[8:] == ["bitfit", "loha"]
    chromium.value(f"{trained}.click()")
    assert chromium.value(names)[0] in ("full", "lora")
