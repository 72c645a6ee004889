"""The comparison as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ..evidence import html
from ..evidence.plots import COSTS, all_curves, pareto
from .table import cells, heads, notes, setting

_SAME = "no significant difference"


def page(comparison: Mapping[str, Any]) -> str:
    """The whole page."""
    plots = "".join(f"<figure>{pareto(comparison, cost, name)}</figure>" for cost, name in COSTS)
    columns = heads(comparison)
    done = [row for row in comparison["rows"] if row["status"] == "done"]
    rows = [
        html.row(cells(row, comparison), len(columns), small=_SAME, chosen=row["name"] == comparison["recommended"])
        for row in comparison["rows"]
    ]
    return html.document(f"Comparison: {comparison['recipe']}", [
        f'<p class="setting">{escape(setting(comparison))}</p>',
        f'<p class="advice{" pick" if comparison["recommended"] else ""}">{escape(comparison["recommendation"])}</p>',
        f"<h2>Methods</h2>\n{html.table(columns, rows)}",
        f'<h2>What quality costs</h2>\n<p class="setting">{_LEGEND}</p>\n<div class="grid">{plots}</div>',
        '<h2>Training loss</h2>\n<p class="setting">Faint: every seed. Bold: their mean, smoothed.</p>',
        f'<div class="grid small">{all_curves(done, comparison["steps"])}</div>',
        _searched(comparison),
        f"<h2>How it was measured</h2>\n{html.notes(notes(comparison))}",
    ])  # fmt: skip


_LEGEND = (
    "Green: recommended. Blue: nothing is both better and cheaper (joined by the dashed line). Bars: 95 % intervals. "
    "Costs are on a logarithmic scale."
)


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
