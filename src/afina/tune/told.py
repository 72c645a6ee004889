"""The result of a search in words: a table, what to take, what was saved, and what to be careful about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evidence.html import Cell
from ..evidence.score import told_difference
from ..plan.usage import told_seconds

SAME = "no significant difference"


def heads(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table's columns: what stands over each, and what it is in a sentence."""
    out = [
        ("candidate", "what it has of the space"),
        ("held-out loss", f"on {found['held_out_rows']} rows, where it was measured last"),
        ("right", "share of these rows, at the end"),
        ("against the best", "difference of the losses in pairs, row by row, with its 95 % interval; at the end"),
        ("steps", "that it was trained for, of its whole training"),
        ("trained parameters", "in numbers"),
        ("what became of it", "and why"),
    ]
    return [head for head in out if head[0] != "right" or _rights(found)]


def _rights(found: Mapping[str, Any]) -> bool:
    return any(row["right"] is not None for row in found["rows"])


def cells(row: Mapping[str, Any], found: Mapping[str, Any]) -> list[Cell]:
    """A row of the table: every cell's text, and the number that it is sorted by."""
    loss = row["loss"] if row["loss"] is not None else row["rungs"][-1][1] if row["rungs"] else None
    right = row["right"]
    difference = row["to_best"]
    out: list[tuple[str, Cell]] = [
        ("candidate", (row["name"], None)),
        ("held-out loss", (f"{loss:.3f}" if loss is not None else "-", loss)),
        ("right", (f"{right:.1%}" if right is not None else "-", right)),
        ("against the best", (told_difference(difference, "loss") if difference else "-",
                              difference["mean"] if difference else 0.0)),
        ("steps", (f"{row['steps']} of {row['of']}", row["steps"])),
        ("trained parameters", (f"{row['trainable']:,}" if row["trainable"] else "-", row["trainable"])),
        ("what became of it", (fate(row, found), None)),
    ]  # fmt: skip
    shown = {name for name, _ in heads(found)}
    return [cell for name, cell in out if name in shown]


def fate(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What became of a candidate."""
    if row["status"] == "failed":
        return f"failed: {row['reason']}"
    idle = "not trained; " if row["trained"] is False else ""
    if row["status"] == "left":
        return f"{idle}out at step {row['steps']}: {row['reason']}"
    if row["name"] == found["best"]:
        return "the best"
    if idle:
        return "not trained"
    return "significantly worse" if row["worse"] else SAME


def advice(found: Mapping[str, Any]) -> str:
    """What to take, in a sentence or two."""
    failed = [row["name"] for row in found["rows"] if row["status"] == "failed"]
    sent = [row["name"] for row in found["rows"] if row["status"] == "left" and row["worse_than"] in failed]
    said = f"{', '.join(sent)} left because of one that failed later: search again without that one." if sent else ""
    if not any(row["status"] == "done" for row in found["rows"]):
        return f"No candidate came to its end: the table says why. {said}".rstrip()
    if not found["best"]:
        return ("No candidate was trained: of none that came to the end did the training loss fall by more than its "
                "noise. Try other rates, or more steps.")  # fmt: skip
    row = next(row for row in found["rows"] if row["name"] == found["best"])
    right = f", {row['right']:.1%} right" if row["right"] is not None else ""
    words = f"Take {row['name']}: held-out loss {row['loss']:.3f}{right}."
    if found["as_good"]:
        words += f" No significant difference from it: {', '.join(found['as_good'])}."
    idle = [r["name"] for r in found["rows"] if r["trained"] is False and r["status"] == "done"]
    words += f" {said}" if said else ""
    return words + (
        f" Not trained (their loss did not fall by more than its noise): {', '.join(idle)}." if idle else ""
    )


def saved(found: Mapping[str, Any]) -> str:
    """What was saved against training all candidates to the end."""
    s = found["saved"]
    times = f"{told_seconds(s['seconds'])} instead of about {told_seconds(s['seconds_of_all'])}"
    rows = f"{s['rows']:,} rows went through training instead of {s['rows_of_all']:,}"
    return f"{rows}: {s['share']:.0%} saved; {times}, had all been trained to the end."


def setting(found: Mapping[str, Any]) -> str:
    """What all candidates had in common, in a sentence."""
    rows = f"{found['train_rows']} rows to train on, {found['held_out_rows']} to choose by"
    return (f"{found['base_model']}, task {found['task']}; {len(found['rows'])} candidates over "
            f"{' '.join(found['space'])}; {rows}; seed {found['seed']}.")  # fmt: skip


def notes(found: Mapping[str, Any]) -> list[str]:
    """How it was measured, and what to be careful about."""
    machine, rows = found["machine"], found["rows"]
    where = machine["gpu"] or f"{machine['processor']} ({machine['cores']} cores)"
    lines = [
        "Who leaves at a rung: of the worse half by held-out loss, those whose difference from the best has a 95 % "
        "interval wholly on the worse side (over rows, in pairs; not widened for the number of candidates).",
        "The rows to choose by are training rows held out for it; the recipe's own held-out rows were not looked at. "
        "One seed: how much seeds differ is not in the intervals. The lowest of many losses is a little too low.",
        "A candidate that begins slowly and would have won later can leave early: --rungs 1 compares at half of the "
        "way only, --rungs 0 at the end.",
        f"Time of all to the end: as many rows a second as in the {found['saved']['seconds']:.0f} s that it took.",
    ]
    if found["sampled"]:
        lines.append("The space is larger than the number of candidates: the first half was drawn at random, the "
                     "second by Optuna's TPE, which knew what became of the first.")  # fmt: skip
    if found["majority"] is not None:
        lines.append(f"Always giving the commonest label is right in {found['majority']:.1%} of the recipe's own rows.")
    lines += [f"Passes of their own: {', '.join(row['name'] for row in rows if row['alone'] == why)} ({why})."
              for why in dict.fromkeys(row["alone"] for row in rows if row["alone"])]  # fmt: skip
    if unknown := [row["name"] for row in rows if row["trained"] is None and row["status"] == "done"]:
        lines.append(f"Too short to tell, or a loss that is no measure of it, whether trained: {', '.join(unknown)}.")
    made = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return [*lines, f"Measured on {where}, torch with {machine['threads']} thread(s), {machine['system']}; {made}."]
