"""The comparison as one HTML page that needs nothing else: no network, no library, no second file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from .plots import COLOURS, COSTS, STYLE, curves, pareto
from .table import cells, heads, notes, setting

_STYLE = """
* { box-sizing: border-box; }
:root { color-scheme: light dark; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 28px 0 8px; }
.setting, .notes { color: var(--soft); overflow-wrap: anywhere; } .notes { padding-left: 18px; font-size: 13px; }
.advice { border-left: 4px solid var(--soft); padding: 8px 14px; margin: 16px 0; }
.advice.pick { border-color: var(--good); }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 12.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 8px; text-align: left; border-bottom: 1px solid var(--rule); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--back); font-weight: 600; }
td.error { white-space: normal; min-width: 260px; color: var(--soft); font-style: italic; }
tr.chosen td:first-child { color: var(--good); } small { color: var(--soft); display: block; }
.grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
svg { width: 100%; height: auto; display: block; }
"""
_SORT = """
for (const [column, head] of document.querySelectorAll("th").entries())
  head.firstChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    document.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = document.querySelector("tbody"), key = row => row.cells[column]?.dataset.by;
    const order = (a, b) => (key(a) === undefined) - (key(b) === undefined) || (up ? 1 : -1) * (
      isNaN(key(a)) || isNaN(key(b)) ? String(key(a)).localeCompare(String(key(b))) : key(a) - key(b));
    body.append(...[...body.rows].sort(order));
  });
"""


def page(comparison: Mapping[str, Any]) -> str:
    """The whole page."""
    title = f"Comparison: {comparison['recipe']}"
    plots = "".join(f"<figure>{pareto(comparison, cost, name)}</figure>" for cost, name in COSTS)
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title>",
        f"<style>{COLOURS}{_STYLE}{STYLE}figure {{ margin: 0; }}</style>\n</head>\n<body>\n<main>",
        f'<h1>{escape(title)}</h1>\n<p class="setting">{escape(setting(comparison))}</p>',
        f'<p class="advice{" pick" if comparison["recommended"] else ""}">{escape(comparison["recommendation"])}</p>',
        f'<h2>Methods</h2>\n<div class="scroll" tabindex="0">{_table(comparison)}</div>',
        f'<h2>What quality costs</h2>\n<p class="setting">{_LEGEND}</p>\n<div class="grid">{plots}</div>',
        '<h2>Training loss</h2>\n<p class="setting">Faint: every seed. Bold: their mean, smoothed.</p>',
        f'<div class="grid small">{_curves(comparison)}</div>',
        _searched(comparison),
        f'<h2>How it was measured</h2>\n<ul class="notes">{_notes(comparison)}</ul>',
        f"</main>\n<script>{_SORT}</script>\n</body>\n</html>\n",
    ])  # fmt: skip


_LEGEND = (
    "Green: recommended. Blue: nothing is both better and cheaper (joined by the dashed line). Bars: 95 % intervals. "
    "Costs are on a logarithmic scale."
)


def _table(comparison: Mapping[str, Any]) -> str:
    columns = heads(comparison)
    head = "".join(
        f'<th scope="col" title="{escape(why)}"><button>{escape(name)}</button></th>' for name, why in columns
    )
    body = "".join(_row(row, comparison, len(columns)) for row in comparison["rows"])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(row: Mapping[str, Any], comparison: Mapping[str, Any], width: int) -> str:
    texts = cells(row, comparison)
    if row["status"] != "done":
        (name, _), (what, _) = texts
        return (f'<tr><td data-by="{escape(name)}">{escape(name)}</td>'
                f'<td class="error" colspan="{width - 1}">{escape(what)}</td></tr>')  # fmt: skip
    chosen = ' class="chosen"' if row["name"] == comparison["recommended"] else ""
    out = []
    for text, number in texts:
        by = escape(text) if number is None else f"{number:.10g}"
        main, mark, rest = text.partition(" no significant difference")
        shown = escape(main) + ("<small>no significant difference</small>" if mark else "") + escape(rest)
        out.append(f'<td data-by="{by}">{shown}</td>')
    return f"<tr{chosen}>{''.join(out)}</tr>"


def _curves(comparison: Mapping[str, Any]) -> str:
    rows = [row for row in comparison["rows"] if row["status"] == "done"]
    losses = sorted(loss for row in rows for curve in row["curves"].values() for _, loss in curve)
    if not losses:
        return ""
    # A few wild first steps must not press all other curves to the floor.
    top = max(losses[math.floor(0.99 * (len(losses) - 1))], 1e-6)
    return "".join(f"<figure>{curves(row, top, comparison['steps'])}</figure>" for row in rows)


def _searched(comparison: Mapping[str, Any]) -> str:
    lines = []
    for row in comparison["rows"]:
        if row["search"] is None:
            continue
        tried = ", ".join(
            f"{t['learning_rate']:g} ({t['status']}" + (f", loss {t['loss']:.3f})" if t["loss"] is not None else ")")
            for t in row["search"]["trials"]
        )
        lines.append(f"<li><b>{escape(row['name'])}</b>: {escape(tried)}</li>")
    return f'<h2>Learning rates tried</h2>\n<ul class="notes">{"".join(lines)}</ul>' if lines else ""


def _notes(comparison: Mapping[str, Any]) -> str:
    return "".join(f"<li>{escape(note)}</li>" for note in notes(comparison))
