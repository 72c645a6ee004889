"""Pages that need nothing else: no network, no library, no second file; light and dark, sorted by a click."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .plots import COLOURS, STYLE

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
td.long { white-space: normal; min-width: 260px; } figure.plot { max-width: 640px; }
tr.chosen td:first-child { color: var(--good); } small { color: var(--soft); display: block; }
.grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
svg { width: 100%; height: auto; display: block; } pre { overflow-x: auto; font-size: 12px; }
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


_LONG = 60
"""Characters of a cell that is broken into lines."""
Cell = tuple[str, float | None]
"""A cell's text, and the number that it is sorted by (None: by its text)."""


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page: its title, and the pieces of HTML below it."""
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title>",
        f"<style>{COLOURS}{_STYLE}{STYLE}figure {{ margin: 0; }}</style>\n</head>\n<body>\n<main>",
        f"<h1>{escape(title)}</h1>",
        *parts,
        f"</main>\n<script>{_SORT}</script>\n</body>\n</html>\n",
    ])  # fmt: skip


def table(heads: Sequence[tuple[str, str]], rows: Sequence[str]) -> str:
    """A table that a click on a head sorts, from its heads (what stands there, what it means) and `row`s."""
    head = "".join(f'<th scope="col" title="{escape(why)}"><button>{escape(name)}</button></th>' for name, why in heads)
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{body}</div>'


def row(cells: Sequence[Cell], width: int, *, small: str = "", chosen: bool = False) -> str:
    """A row of a table that is `width` columns wide; one with fewer cells ends in what went wrong.

    Args:
        small: words that stand below what comes before them.
        chosen: whether it is the one to look at.
    """
    out = []
    for number, (text, value) in enumerate(cells):
        by = escape(text) if value is None else f"{value:.10g}"
        if number == len(cells) - 1 < width - 1:
            out.append(f'<td class="error" colspan="{width - number}">{escape(text)}</td>')
            continue
        main, mark, rest = text.partition(f" {small}") if small else (text, "", "")
        shown = escape(main) + (f"<small>{escape(small)}</small>" if mark else "") + escape(rest)
        kind = ' class="long"' if len(main) > _LONG else ""
        out.append(f'<td{kind} data-by="{by}">{shown}</td>')
    kind = ' class="chosen"' if chosen else ""
    return f"<tr{kind}>{''.join(out)}</tr>"


def notes(lines: Sequence[str]) -> str:
    """A list of remarks."""
    return f'<ul class="notes">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'
