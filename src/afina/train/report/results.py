"""What a run leaves behind beside the adapter: the report, the loss plot, the model card's results."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...devices.memory_use import peak_bytes
from ...version import __version__
from .output import RECIPE_NAME
from .scores import Scores

_MOST_CONFUSIONS = 10


def report(
    *,
    task: str,
    method: str,
    base_model: str,
    trainable: int,
    total: int,
    training: dict[str, Any],
    before: Scores | None,
    after: Scores | None,
    data_sha256: dict[str, str],
    device: Any,
) -> dict[str, Any]:
    """All that was measured, and what it was measured with; the memory is that of `device`."""
    return {
        "task": task,
        "method": method,
        "base_model": base_model,
        "parameters": {"trainable": trainable, "total": total, "share": trainable / total},
        "training": training,
        "before": before.as_dict() if before else None,
        "after": after.as_dict() if after else None,
        "data_sha256": data_sha256,
        "device": str(device),
        "peak_memory_mb": round(peak_bytes(device) / 2**20, 1),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What a run is made with."""
    import torch
    import transformers

    return {"afina": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "python": platform.python_version()}  # fmt: skip


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def plot_loss(history: list[dict[str, Any]], before: Scores | None, after: Scores | None, path: Path) -> None:
    """The loss by step as PNG; held-out losses are points at the ends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [(line["step"], line["loss"]) for line in history if "loss" in line]
    figure = Figure(figsize=(7, 4), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([step for step, _ in points], [loss for _, loss in points], label="training", linewidth=1.2)
    last = points[-1][0] if points else 0
    held_out = [
        (step, scores.loss) for step, scores in ((0, before), (last, after)) if scores and scores.loss is not None
    ]
    if held_out:
        axes.plot([s for s, _ in held_out], [v for _, v in held_out], "o", label="held out", color="tab:orange")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def told_by_set(sets: dict[str, dict[str, float]]) -> str:
    """The training loss of each data set, in words."""
    return ", ".join(f"{name} {loss['first']:.3f} to {loss['last']:.3f}" for name, loss in sets.items())


def card_section(values: dict[str, Any], more: Sequence[str] = ()) -> str:
    """The results as a section of the model card, and further lines after them."""
    parameters, made_with = values["parameters"], f"afina {values['versions']['afina']} ({values['method']})"
    counts = f"{parameters['trainable']:,} of {parameters['total']:,} parameters"
    told = f"Trained with {made_with}: {counts}; the settings are in `{RECIPE_NAME}`."
    return "\n".join([*measured(values), *more, "", told, ""])


def measured(values: dict[str, Any]) -> list[str]:
    """What was measured on held-out rows, as lines of the model card."""
    lines = ["", "## Results on held-out rows", "", "| | before | after |", "|---|---|---|"]
    before, after = values["before"], values["after"]
    if before and after:
        for key, name in (("loss", "loss"), ("accuracy", after["metric"]), ("f1", f"{after['f1_of']} F1"),
                          ("word_errors", "word error rate")):  # fmt: skip
            if after.get(key) is not None:
                lines.append(f"| {name} | {before[key]:.3f} | {after[key]:.3f} |")
        for name, loss in (after.get("sets") or {}).items():
            lines.append(f"| loss on {name} | {before['sets'][name]:.3f} | {loss:.3f} |")
    if values["training"].get("sets"):
        lines += ["", f"Training loss by data set, at the beginning and at the end: "
                      f"{told_by_set(values['training']['sets'])}."]  # fmt: skip
    if after and after["accuracy"] is not None:
        lines += ["", "; ".join([f"{after['rows']} rows", *Scores.from_dict(after).beside]) + "."]
    if after and after.get("confusion"):
        lines += ["", *_confusions(after["confusion"])]
    return lines


def _confusions(table: dict[str, dict[str, int]]) -> list[str]:
    """Which labels are taken for which, the commonest mistakes first."""
    off = [(n, label, answer) for label, row in table.items() for answer, n in row.items() if answer != label]
    if not off:
        return ["No label was taken for another."]
    shown = sorted(off, key=lambda one: (-one[0], one[1:]))[:_MOST_CONFUSIONS]
    told = ", ".join(f"{label} for {answer} ({n})" for n, label, answer in shown)
    more = f", and {len(off) - len(shown)} more kinds of mistake" if len(off) > len(shown) else ""
    return [f"Labels taken for others: {told}{more}."]
