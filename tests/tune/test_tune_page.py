from __future__ import annotations

import re

import pytest

from afina.tune.tune_page import BEST, JSON, PAGE, page, write

from ..compare import browser
from ..compare.test_page import Tags, needs_browser
from .made import contender, ended, found


@pytest.fixture
def result(recipe):
    return found(recipe, contender(recipe, "rate=0.02", 0.02, **ended(0.9)))


def test_page_is_well_formed_and_needs_nothing_from_anywhere(result):
    text = page(result)
    tags = Tags(text)
    assert tags.open == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert all("src" not in attrs for _, attrs in tags.seen)
    assert text.count("<script>") == 1
    assert "&lt;b&gt;" in text


def test_page_has_every_candidate_in_the_table_and_in_the_plots(result):
    tags = Tags(page(result)).seen
    names = [tag for tag, _ in tags]
    assert names.count("tr") == 1 + 4
    lines = [attrs for _, attrs in tags if attrs.get("class", "").startswith("line")]
    assert [attrs["class"] for attrs in lines] == ["line chosen", "line", "line"]  # the failed one has no held-out loss
    assert names.count("svg") == 1 + 4
    assert names.count("circle") == 3 + 3 + 1
    assert sum(attrs.get("class") == "chosen" for tag, attrs in tags if tag == "tr") == 1
    assert "out at step 20: significantly worse than rate=0.01" in page(result)


def test_files_are_written_and_a_former_best_recipe_goes(result, tmp_path):
    assert [path.name for path in write(tmp_path, result)] == [BEST, PAGE, JSON]
    assert (tmp_path / BEST).read_text() == result["best_recipe"]
    assert [path.name for path in write(tmp_path, {**result, "best": "", "best_recipe": None})] == [PAGE, JSON]
    assert not (tmp_path / BEST).exists()


def test_page_of_a_search_without_any_loss_still_says_why(result):
    result["rows"] = [row for row in result["rows"] if row["status"] == "failed"]
    text = page({**result, "best": "", "best_recipe": None})
    assert Tags(text).open == []
    assert "No candidate came to its end" in text


@needs_browser
def test_browser_shows_the_page_whole_and_quietly(result, tmp_path):
    chromium = browser.Browser(browser.find())
    try:
        path = write(tmp_path, result)[1]
        for width in (390, 1200):
            chromium.open(path, width=width, scheme="light")
            assert chromium.value("document.documentElement.scrollWidth <= innerWidth")
            boxes = "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
            assert chromium.value(f"{boxes}.filter(b => b.width > 100 && b.height > 50).length") == 5
            inside = """[...document.querySelectorAll('circle, .line')].every(c => {
                const p = c.getBoundingClientRect(), s = c.closest('svg').getBoundingClientRect();
                return p.left >= s.left && p.right <= s.right && p.top >= s.top && p.bottom <= s.bottom})"""
            assert chromium.value(inside)
            assert chromium.said("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    finally:
        chromium.close()
