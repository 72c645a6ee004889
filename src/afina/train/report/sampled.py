"""The images that a run made of its prompts along the way: files in its folder, and a line for each time."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

SAMPLES, INDEX = "samples", "samples.jsonl"
_MOST_TIMES = 8


def taken(folder: Path) -> list[dict[str, Any]]:
    """Of each time its `step`, the `prompts` and their `files`, in the folder of a run."""
    path = folder / SAMPLES / INDEX
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _shown(folder: Path) -> list[dict[str, Any]]:
    """As many times as fit beside each other, evenly, the first and the last among them."""
    every = taken(folder)
    if len(every) <= _MOST_TIMES:
        return every
    return [every[round(i * (len(every) - 1) / (_MOST_TIMES - 1))] for i in range(_MOST_TIMES)]


def as_lines(folder: Path) -> list[str]:
    """A table for the model card: a row for each prompt."""
    times = _shown(folder)
    if not times:
        return []
    heads = " | ".join(f"step {one['step']}" for one in times)
    out = ["", "## Images of its prompts, from the same noise", "", f"| prompt | {heads} |"]
    out.append("|---" * (1 + len(times)) + "|")
    for number, prompt in enumerate(times[-1]["prompts"]):
        cells = [f"![step {one['step']}]({SAMPLES}/{one['files'][number]})" for one in times]
        out.append(f"| {prompt.replace('|', ' ')} | {' | '.join(cells)} |")
    return out


def as_pictures(folder: Path) -> dict[str, Any]:
    """For a page that may fetch nothing: `steps`, and of each prompt its images as `data:` URLs."""
    times = _shown(folder)
    prompts = times[-1]["prompts"] if times else []
    rows = [[prompt, *(_url(folder / SAMPLES / one["files"][number]) for one in times)]
            for number, prompt in enumerate(prompts)]  # fmt: skip
    return {"steps": [one["step"] for one in times], "rows": rows}


def _url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
