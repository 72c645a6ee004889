"""The comparison in every form that is written: JSON is the comparison itself; CSV, Markdown, the page, a plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evidence.plots import pareto_file
from .page import page
from .table import cells, forgotten, heads, notes, setting

JSON, CSV, MARKDOWN, PAGE, PLOT = "comparison.json", "comparison.csv", "comparison.md", "comparison.html", "pareto.svg"
_CSV_COLUMNS = (
    "name", "method", "family", "status", "quality", "quality_low", "quality_high", "to_best", "to_best_low",
    "to_best_high", "to_full", "to_full_low", "to_full_high", "significantly_worse", "trained", "loss", "trainable",
    "share", "memory_mb", "cpu_s", "wall_s", "size_bytes", "forgetting", "learning_rate", "learning_rate_from", "seeds",
    "error",
)  # fmt: skip


def as_csv(comparison: Mapping[str, Any]) -> str:
    """One line a method; numbers in full."""
    out = io.StringIO()
    table = csv.DictWriter(out, _CSV_COLUMNS, extrasaction="ignore", restval="", lineterminator="\n")
    table.writeheader()
    for row in comparison["rows"]:
        flat: dict[str, Any] = {k: v for k, v in row.items() if not isinstance(v, dict)}
        for key in ("quality", "to_best", "to_full"):
            value = row.get(key)
            if value:
                flat |= {key: value["mean"], f"{key}_low": value["low"], f"{key}_high": value["high"]}
        flat |= {
            "significantly_worse": row.get("worse", ""), "seeds": " ".join(map(str, row["seeds"])),
            "error": "; ".join(row["errors"].values()),
            "forgetting": forgotten(row),
        }  # fmt: skip
        table.writerow(flat)
    return out.getvalue()


def as_markdown(comparison: Mapping[str, Any]) -> str:
    """The table with the recommendation and the notes."""
    names = [name for name, _ in heads(comparison)]
    lines = ["# Comparison", "", setting(comparison), "", f"**{comparison['recommendation']}**", ""]
    lines += [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in comparison["rows"]:
        texts = [text.replace("|", "\\|") for text, _ in cells(row, comparison)]
        lines.append(f"| {' | '.join(texts + [''] * (len(names) - len(texts)))} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(comparison)), ""])


def write(folder: Path, comparison: Mapping[str, Any]) -> list[Path]:
    """Write every form of the comparison into `folder`."""
    texts = {
        JSON: json.dumps(comparison, indent=1, ensure_ascii=False) + "\n", CSV: as_csv(comparison),
        MARKDOWN: as_markdown(comparison), PAGE: page(comparison), PLOT: pareto_file(comparison),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]
