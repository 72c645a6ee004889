"""The table of what was measured."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from .rows import EQUAL

FAR = 0.02
"""Relative difference of a loss, or .05 of a gradient norm, that is marked: then two things were timed, not one."""

_NAMED = MappingProxyType({"replayed steps: off": "replayed", "replayed steps: not after all": "replayed",
                           "attention by lengths: off": "by lengths", "gradients: none": ""})  # fmt: skip
"""How sentences begin of what was not so, by a word of the contenders' names that says that it is."""


def why(error: Exception) -> str:
    """What went wrong, in a line."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:160]


def page(found: dict[str, Any]) -> str:
    """All rows as Markdown, then the operations of the slowest."""
    out = [f"{found['date']}; {found['device']}; "
           + ", ".join(f"{name} {version}" for name, version in found["versions"].items())]  # fmt: skip
    for name, row in found["rows"].items():
        floor = row["floor"]
        if "why" in floor:
            out += ["", f"**{name}**: {floor['why']}"]
            continue
        aim = f", aim {row['aim']:g}" if row["aim"] else ""
        out += ["", f"**{name}**: floor {floor['ms']:.3g} ms ({floor['tflops']:.3g} TFLOP/s){aim}", "",
                "| | ms | floors | beyond the weights, MiB | loss | gradient norm |",
                "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
        reference = next((c for c in row["contenders"].values() if "ms" in c), {})
        out += [_line(who, found, {} if who.startswith(EQUAL) else reference, floor["ms"])
                for who, found in row["contenders"].items()]  # fmt: skip
        out += _not_so(row["contenders"])
    out += _ways(found["ways"])
    if found["skipped"]:
        out += ["", f"Not measured, because the time was over: {', '.join(found['skipped'])}"]
    slowest = found["profile"]
    if slowest and "why" in slowest:
        out += ["", f"No operations of {slowest['who']} in {slowest['row']}: {slowest['why']}"]
    elif slowest:
        out += ["", f"A step of {slowest['who']} in {slowest['row']}, the slowest row in floors, by operation:", "",
                "| operation | ms a step | calls |", "|---|--:|--:|"]  # fmt: skip
        out += [f"| {e['operation']} | {e['ms']:.3g} | {e['calls']:g} |" for e in slowest["operations"]]
    return "\n".join(out) + "\n"


def _not_so(contenders: dict[str, Any]) -> list[str]:
    """Those that were not what they are called, and why."""
    off = [f"{who}: {sentence}" for who, found in contenders.items() for sentence in found.get("said", ())
           for begin, word in _NAMED.items() if sentence.startswith(begin) and word in who]  # fmt: skip
    return ["", *[f"- {line}" for line in off]] if off else []


def _ways(measured: list[dict[str, Any]]) -> list[str]:
    """Layers alone, by every way that was right; the fastest first."""
    if not measured:
        return []
    lines = [f"| {one['layers']} | {one['tokens']:,} | {one['pass']} | "
             + (", ".join(f"{how} {ms:.3g}" for how, ms in sorted(one.get("ms", {}).items(), key=lambda i: i[1]))
                or one["why"]) + " |" for one in measured]  # fmt: skip
    return ["", "**ways**: milliseconds of layers with their updates, by how these reach the outputs and the input's "
            "gradient", "", "| layers | tokens | pass | ms |", "|---|--:|---|---|", *lines]  # fmt: skip


def _line(who: str, found: dict[str, Any], reference: dict[str, Any], floor: float) -> str:
    if "ms" not in found:
        return f"| {who} | {found['why']} | | | | |"
    marks = [_marked(found[key], reference.get(key), far) for key, far in (("loss", FAR), ("gradient_norm", 0.05))]
    beyond = "" if found["beyond_mib"] is None else f"{found['beyond_mib']:,}"
    return f"| {who} | {found['ms']:.1f} | {found['ms'] / floor:.2f} | {beyond} | {' | '.join(marks)} |"


def _marked(value: float | None, reference: float | None, far: float) -> str:
    if value is None:
        return ""
    other = reference is not None and abs(value - reference) > far * abs(reference)
    return f"{value:.4g}{' (!)' if other else ''}"
