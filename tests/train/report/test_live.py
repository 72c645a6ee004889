"""The page that follows a run: what it holds, and, in a browser, that it shows it and follows."""

from __future__ import annotations

import json
import re
import sys
import time
from types import SimpleNamespace

import pytest

from afina.train.report import live
from afina.train.report.events import Progress, Reporter
from afina.train.report.live import Live, live_path, thinned

from ...compare import browser

BROWSER = browser.find()
needs_browser = pytest.mark.skipif(
    BROWSER is None or sys.platform == "win32", reason="no Chromium found (install chromium, or set AFINA_BROWSER)"
)
SAMPLE = {"prompt": "a </script><b>prompt", "expected": "x", "got": "y"}


def followed(tmp_path, steps=40, total=100):
    """A page in the middle of a run."""
    work = tmp_path / "run"
    work.mkdir(exist_ok=True)
    lines = [{"step": 0, "eval_loss": 3.0}]
    for n in range(1, steps + 1):
        lines.append({"step": n, "loss": 3 / n, "learning_rate": 1e-3, "grad_norm": float("nan") if n == 3 else 1.0})
        lines[-1]["loss/set a"] = 1 / n
    (work / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (work / "before.json").write_text(json.dumps({"samples": [SAMPLE]}))
    page = Live(Reporter(), live_path(str(work)))
    page.note("plan: method LORA")
    page.reached("ready", {"trainer": SimpleNamespace(args=SimpleNamespace(output_dir=str(work)))})
    for n in range(1, steps + 1):
        page.progress(Progress("training", n, total, 100.0 + n, 3 / n, (500 + n) * 2**20))
    page.write()
    return page


def data_of(page):
    text = page.path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_page_has_every_number_of_the_run(tmp_path):
    page = followed(tmp_path)
    data = data_of(page)
    assert page.path == tmp_path / "run.live.html"
    assert (data["name"], data["about"], data["running"], data["step"], data["steps"]) == (
        "run", "method LORA", True, 40, 100,
    )  # fmt: skip
    series = data["series"]
    assert [len(series[k]) for k in ("loss", "held_out", "rate", "norm", "speed", "memory")] == [40, 1, 40, 39, 40, 40]
    assert series["memory"][-1] == [40, 540.0]
    facts = dict(data["facts"])
    assert facts["loss on set a"] == "0.025"
    assert (facts["state"], facts["step"], facts["tokens/s"]) == ("training 40/100", "40 of 100", "140")
    assert "time left" in facts
    assert data["samples"] == [[SAMPLE["prompt"], "x", "y", ""]]


def test_page_needs_nothing_from_anywhere(tmp_path):
    text = followed(tmp_path).path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|fetch\(|src=", text)


def test_what_is_in_the_data_ends_no_script(tmp_path):
    assert followed(tmp_path).path.read_text(encoding="utf-8").count("</script>") == 2


def test_page_is_replaced_as_a_whole_and_not_too_often(tmp_path, monkeypatch):
    page = followed(tmp_path)
    before = page.path.stat().st_ino
    page.progress(Progress("training", 41, 100))
    assert page.path.stat().st_ino == before
    monkeypatch.setattr(live, "EVERY", 0.0)
    page.progress(Progress("training", 42, 100))
    assert page.path.stat().st_ino != before
    assert [p.name for p in tmp_path.iterdir() if "live" in p.name] == ["run.live.html"]


def test_the_end_stands_on_the_page(tmp_path):
    page = followed(tmp_path)
    after = {**SAMPLE, "got": "x"}
    (tmp_path / "run" / "report.json").write_text(
        json.dumps({"before": {"samples": [SAMPLE]}, "after": {"samples": [after]}})
    )
    page.finish(tmp_path / "run", "done")
    data = data_of(page)
    assert (data["running"], dict(data["facts"])["state"]) == (False, "done")
    assert data["samples"][0][2:] == ["y", "x"]
    assert "time left" not in dict(data["facts"])


def test_wrong_images_and_what_was_taken_for_what_stand_on_the_page(tmp_path):
    page = followed(tmp_path)
    picture = {"prompt": "data:image/png;base64,AAAA", "expected": "cat", "got": "dog"}
    after = {"samples": [], "wrong": [picture], "confusion": {"cat": {"cat": 2, "dog": 3}, "dog": {"dog": 1}}}
    (tmp_path / "run" / "report.json").write_text(json.dumps({"before": None, "after": after}))
    page.finish(tmp_path / "run", "done")
    data = data_of(page)
    assert data["wrong"] == [[picture["prompt"], "cat", "dog"]]
    assert data["wrong_in_all"] == 3
    assert data["confusion"]["cat"] == {"cat": 2, "dog": 3}


def test_a_run_that_never_began_leaves_no_page(tmp_path):
    page = Live(Reporter(), live_path(str(tmp_path / "run")))
    page.finish(None, "ended early")
    assert not page.path.exists()


def test_many_points_are_thinned_to_the_last():
    points = [(n, float(n)) for n in range(10_001)]
    assert len(thinned(points)) <= 1501
    assert (thinned(points)[0], thinned(points)[-1]) == (points[0], points[-1])
    assert thinned(points[:100]) == points[:100]


@pytest.fixture(scope="module")
def chromium():
    out = browser.Browser(BROWSER)
    yield out
    out.close()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_browser_shows_the_page_whole_and_quietly(chromium, tmp_path, width, scheme):
    page = followed(tmp_path)
    page.finish(None, "done")
    chromium.open(page.path, width=width, scheme=scheme)
    assert chromium.value("document.documentElement.scrollWidth <= innerWidth")
    boxes = "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
    assert chromium.value(f"{boxes}.filter(b => b.width > 100 && b.height > 50).length") == 5
    drawn = "[...document.querySelectorAll('svg path.line, svg path.raw')].every(p => !/NaN|undefined/.test(p.getAttribute('d')))"  # noqa: E501
    assert chromium.value(drawn)
    assert chromium.value("document.querySelector('td').textContent") == SAMPLE["prompt"]
    assert chromium.said("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    asked = [event["request"]["url"] for event in chromium.said("Network.requestWillBeSent")]
    assert {url for url in asked if not url.startswith("data:")} == {page.path.as_uri()}
    dark = chromium.value("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    assert dark == (scheme == "dark")


@needs_browser
def test_an_open_page_follows_and_keeps_what_was_chosen(chromium, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "EVERY", 0.2)
    page = followed(tmp_path)
    chromium.open(page.path, width=390, scheme="light")
    choose = ("$('smooth').value = 0.5, $('smooth').dispatchEvent(new Event('input')), $('log').checked || "
              "$('log').click(), scrollTo(0, 300)")  # fmt: skip
    chosen = "[$('smooth').value, $('log').checked, scrollY]"
    until = time.monotonic() + 20
    while chromium.value(chosen) != ["0.5", True, 300] and time.monotonic() < until:
        chromium.value(choose)  # again, where the page was just being loaded anew
        time.sleep(0.3)
    page.progress(Progress("training", 41, 100))
    page.finish(None, "done")
    until = time.monotonic() + 20
    state = "document.querySelector('dd')?.textContent"
    while chromium.value(state) != "done" and time.monotonic() < until:
        time.sleep(0.1)
    assert chromium.value(state) == "done"
    assert chromium.value(chosen) == ["0.5", True, 300]
    chromium.value("window.still = true")
    time.sleep(1)
    assert chromium.value("window.still")  # a page of a finished run stays as it is


@needs_browser
def test_sounds_of_rows_are_played_and_their_names_are_text_alone(chromium, tmp_path):
    from afina.train.data.sounds.sound_files import playable

    from ..tiny_sounds import tone

    page = followed(tmp_path)
    name = "rows.jsonl:1 (low/<b>1.wav)"
    sample = {"prompt": playable(tone(1), name), "expected": "high", "got": "low"}
    (tmp_path / "run" / "report.json").write_text(json.dumps({"after": {"samples": [], "wrong": [sample]}}))
    page.finish(None, "done")
    chromium.open(page.path, width=390, scheme="light")
    player = "document.querySelector('.wrong audio')"
    assert chromium.value(f"{player}.previousSibling.innerHTML") == "rows.jsonl:1 (low/&lt;b&gt;1.wav)"
    assert chromium.value(f"[{player}.controls, {player}.preload, {player}.readyState]") == [True, "none", 0]
    chromium.value(f"{player}.preload = 'auto', {player}.load(), 0")
    until = time.monotonic() + 20
    while chromium.value(f"{player}.readyState") < 4 and time.monotonic() < until:
        time.sleep(0.1)
    assert chromium.value(f"[{player}.readyState, {player}.error]") == [4, None]
    assert 0.4 <= chromium.value(f"{player}.duration") < 0.6
    assert chromium.value("document.documentElement.scrollWidth <= innerWidth")


@needs_browser
def test_smoothing_changes_the_line_and_a_pointer_reads_values(chromium, tmp_path):
    page = followed(tmp_path)
    page.finish(None, "done")
    chromium.open(page.path, width=1200, scheme="light")
    line = "document.querySelector('svg path.line').getAttribute('d')"
    before = chromium.value(line)
    chromium.value("$('smooth').value = 0, $('smooth').dispatchEvent(new Event('input'))")
    assert chromium.value(line) != before
    assert chromium.value(line) == chromium.value("document.querySelector('svg path.raw').getAttribute('d')")
    point = "document.querySelector('svg').dispatchEvent(new PointerEvent('pointermove', {clientX: 400}))"
    chromium.value(point)
    assert re.match(
        r"lossstep \d+: training [\d.]+", chromium.value("document.querySelector('figcaption').textContent")
    )
