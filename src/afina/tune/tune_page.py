"""The result of a search as one HTML page, and the files that it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..evidence import html
from ..evidence.plots import all_curves, lines
from .told import SAME, advice, cells, heads, notes, saved, setting

JSON, PAGE, BEST = "tune.json", "tune.html", "best.yaml"


def page(found: Mapping[str, Any]) -> str:
    """The whole page."""
    columns, steps, best = heads(found), max(row["of"] for row in found["rows"]), found["best"]
    rows = [html.row(cells(row, found), len(columns), small=SAME, chosen=row["name"] == best) for row in found["rows"]]
    kind = "advice pick" if best else "advice"
    return html.document(f"Search: {found['recipe']}", [
        f'<p class="setting">{escape(setting(found))}</p>',
        f'<p class="{kind}">{escape(advice(found))}</p>\n<p>{escape(saved(found))}</p>',
        f"<h2>Candidates</h2>\n{html.table(columns, rows)}",
        '<h2>Held-out loss</h2>\n<p class="setting">Measured at the rungs and at the end; a line that stops early is a '
        f'candidate that left there. Green: the best.</p>\n{_held_out(found, steps)}',
        '<h2>Training loss</h2>\n<p class="setting">Faint: as logged. Bold: smoothed. All on the same axes.</p>',
        f'<div class="grid small">{all_curves(found["rows"], steps)}</div>',
        _best(found),
        f"<h2>How it was measured</h2>\n{html.notes(notes(found))}",
    ])  # fmt: skip


def _held_out(found: Mapping[str, Any], steps: int) -> str:
    series = []
    for row in found["rows"]:
        ended = [[row["steps"], row["loss"]]] if row["loss"] is not None else []
        if points := [(step, loss) for step, loss in [*row["rungs"], *ended] if loss < float("inf")]:
            series.append((row["name"], points, row["name"] == found["best"]))
    return f'<figure class="plot">{lines(series, steps, "held-out loss")}</figure>' if series else ""


def _best(found: Mapping[str, Any]) -> str:
    if found["best_recipe"] is None:
        return ""
    text = escape(found["best_recipe"])
    return f"<h2>The best recipe</h2>\n<details><summary>{BEST}</summary><pre>{text}</pre></details>"


def write(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """Write the result, its page and the best recipe into `folder`; a former best recipe goes where there is none."""
    plain = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    texts = {BEST: found["best_recipe"], PAGE: page(found), JSON: plain}
    for name, text in texts.items():
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name, text in texts.items() if text is not None]
