"""The table of a comparison: its columns, its cells in words and numbers, and what must be read with them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..evidence.score import told_difference

_OPTIONAL = MappingProxyType({"against full": "to_full", "forgetting": "forgetting"})


def heads(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table's columns: what stands over each, and what it is in a sentence."""
    measure = "accuracy" if comparison["metric"] == "accuracy" else "loss"
    out = [
        ("method", "with the settings that differ from its own defaults"),
        (f"{measure} [95 %]", f"on {comparison['held_out_rows']} held-out rows, mean over seeds"),
        ("against the best", "difference in pairs, item by item and seed by seed, with its 95 % interval"),
        ("against full", "the same against full fine-tuning"),
        ("trained", "parameters that are trained, and their share of all"),
        ("memory, MiB", "peak while training, above the loaded base"),
        ("time, s (CPU)", "of training: wall clock and processor"),
        ("file", "weights on disk"),
        ("forgetting", "loss on general text after training less that before"),
        ("rate", "learning rate, and whose it is"),
    ]
    return [head for head in out if head[0] in _shown(comparison) or head[0] not in _OPTIONAL]


def _shown(comparison: Mapping[str, Any]) -> set[str]:
    """Which of the columns that not every comparison has this one has."""
    return {name for name, key in _OPTIONAL.items() if any(row.get(key) for row in comparison["rows"])}


def cells(row: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """A row of the table: every cell's text, and the number that it is sorted by."""
    if row["status"] != "done":
        what = f"{row['status']}: {next(iter(row['errors'].values()), 'no reason given')}"
        return [(row["name"], None), (what, None)]
    metric, lost, shown = comparison["metric"], forgotten(row), _shown(comparison)
    name = row["name"] + ("" if row["complete"] else f" ({len(row['seeds'])} of {len(comparison['seeds'])} seeds)")
    optional: dict[str, tuple[str, float | None]] = {
        "against full": (told_difference(row["to_full"], metric, unit=""), (row["to_full"] or {"mean": 0.0})["mean"]),
        "forgetting": (f"{lost:+.3f}" if lost is not None else "-", lost),
    }
    return [
        (name, None),
        (quality(row["quality"], metric), row["quality"]["mean"]),
        (verdict(row, comparison), row["to_best"]["mean"] if row["to_best"] else 0.0),
        *(cell for key, cell in optional.items() if key in shown and key == "against full"),
        (f"{row['trainable']:,} ({100 * row['share']:.3g} %)", row["trainable"]),
        (f"{row['memory_mb']:,.0f}", row["memory_mb"]),
        (f"{row['wall_s']:.0f} ({row['cpu_s']:.0f})", row["wall_s"]),
        (size(row["size_bytes"]), row["size_bytes"]),
        *(cell for key, cell in optional.items() if key in shown and key == "forgetting"),
        (f"{row['learning_rate']:g} {row['learning_rate_from']}", row["learning_rate"]),
    ]


def forgotten(row: Mapping[str, Any]) -> float | None:
    """Loss on general text after training less that before; None where it was not measured."""
    found = row.get("forgetting")
    return found["after"] - found["before"] if found else None


def quality(value: Mapping[str, float], metric: str) -> str:
    """A quality with its interval, as short as a table wants it."""
    places = 1 if metric == "accuracy" else 3
    mean, low, high = ((100 if places == 1 else 1) * value[key] for key in ("mean", "low", "high"))
    unit = " %" if places == 1 else ""
    return f"{mean:.{places}f}{unit} [{low:.{places}f}, {high:.{places}f}]"


def verdict(row: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """The difference from the best, and whether it is significant."""
    if row["trained"] is False:
        return "not trained"
    if row["name"] == comparison["best"]:
        return "the best"
    text = told_difference(row["to_best"], comparison["metric"], unit="")
    return text if row["worse"] else f"{text} no significant difference"


def size(count: int) -> str:
    """Bytes in a unit that reads well."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B"


def setting(comparison: Mapping[str, Any]) -> str:
    """What every run had in common, in a sentence."""
    seeds = comparison["seeds"]
    return (f"{comparison['base_model']}, task {comparison['task']}; optimizer steps: {comparison['steps']}, each of "
            f"{comparison['rows_per_step']} rows (of {comparison['train_rows']}); seeds: "
            f"{', '.join(map(str, seeds))}; held-out rows: {comparison['held_out_rows']}.")  # fmt: skip


def notes(comparison: Mapping[str, Any]) -> list[str]:
    """How it was measured, and what to be careful about."""
    machine, versions = comparison["machine"], comparison["versions"]
    where = machine["gpu"] or f"{machine['processor']} ({machine['cores']} cores)"
    lines = [
        _intervals(comparison),
        "Memory: the process's resident memory at its peak in training less that with the base and the libraries "
        "loaded. On a GPU: the allocator's peak less the base's weights.",
        "Time: of training alone, that of the seed that took the least; whatever else a machine does only adds to it.",
    ]
    if not comparison.get("separate", True):
        lines.append(
            "Runs followed one another in one process, on a base that was loaded once; freed memory that the system "
            "did not get back is not counted for the next one. --separate gives each a process of its own."
        )
    if comparison["majority"] is not None:
        lines.insert(0, f"Always giving the commonest label is right in {comparison['majority']:.1%}.")
    if any(row.get("forgetting") for row in comparison["rows"]):
        lines.append("Forgetting: the mean loss per token on eight paragraphs of general prose that come with afina.")
    else:
        lines.append("Forgetting: not measured, this model has no language-model head.")
    if comparison["at_once"] > 1:
        lines.append(
            f"Times: measured beside other runs, up to {comparison['at_once']} at once. They say nothing of one method "
            "against another; the recommendation does without them."
        )
    lines.append(_rates(comparison))
    if any(row["trained"] is False for row in comparison["rows"] if row["status"] == "done"):
        lines.append("Not trained: in half of its runs or more the training loss did not fall by more than its noise.")
    if unknown := [row["name"] for row in comparison["rows"] if row["status"] == "done" and row["trained"] is None]:
        lines.append(f"Too short to tell whether the training loss fell: {', '.join(unknown)}.")
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [*lines, f"Measured on {where}, torch with {machine['threads']} thread(s), {machine['system']}; {made}."]


def _intervals(comparison: Mapping[str, Any]) -> str:
    count = len(comparison["seeds"])
    seeds = (
        f"items and the {count} seeds count as drawn at random, t with Satterthwaite's degrees of freedom"
        if count > 1
        else "items count as drawn at random; one seed tells nothing of how much seeds differ, so they are too short"
    )
    return (f"Intervals (95 %): {seeds}. Differences are taken in pairs, item by item and seed by seed; no significant "
            "difference is no proof of equality, how much worse one may be is the interval's worse end. They are not "
            "widened for the number of methods.")  # fmt: skip


def _rates(comparison: Mapping[str, Any]) -> str:
    tune = comparison["tune"]
    if tune is None:
        return ("Learning rates: the recipe's for its own method, every other method's own for this width and length; "
                "none was searched (--no-tune).")  # fmt: skip
    return (f"Learning rates: {tune['trials']} a method around its own (those of the worse half that were "
            "significantly worse left at an eighth, a quarter and a half of the way), judged by the loss on "
            f"{tune['held_out_rows']} training rows held out for it; {tune['train_rows']} rows to train on, one seed "
            "that is not among those measured.")  # fmt: skip
