"""The runs in a folder, as their files tell them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import AfinaError
from ..recipe.settings import load_recipe
from ..report.checkpoints import newest_complete
from ..report.output import MARK, RECIPE_NAME, REPORT

_DEEP = 3
_WEIGHTS = ("adapter_model.safetensors", "model*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        state: "done", "cut off at step N", "begun", or "cannot be read".
        metric: what `before` and `after` are: accuracy and the like, or loss where there is no such; None unmeasured.
        size_bytes: of the adapter's or the model's weights.
        changed: when it was done or last touched, in seconds since 1970.
    """

    folder: Path
    state: str
    method: str = ""
    task: str = ""
    base: str = ""
    metric: str | None = None
    before: float | None = None
    after: float | None = None
    steps: int | None = None
    size_bytes: int = 0
    changed: float = 0.0

    def told(self, value: float | None) -> str:
        """A score in words."""
        return "" if value is None else f"{self.metric} {value:.3f}"


def find_runs(folder: Path) -> list[Run]:
    """The runs in `folder` and in folders of it, newest first."""
    return sorted(map(_run, _folders(folder, _DEEP)), key=lambda run: -run.changed)


def _folders(folder: Path, deep: int) -> Iterator[Path]:
    if any((folder / name).is_file() for name in (MARK, REPORT)):
        yield folder
    elif deep and not folder.is_symlink():
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _folders(inner, deep - 1)


def _run(folder: Path) -> Run:
    if not (folder / REPORT).is_file():
        return _unfinished(folder)
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        metric, before, after = _scores(report)
        return Run(
            folder, "done", report["method"].lower(), report["task"], report["base_model"], metric, before, after,
            report["training"]["steps"], _weights(folder), (folder / REPORT).stat().st_mtime,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Run(folder, "cannot be read", changed=folder.stat().st_mtime)


def _scores(report: dict[str, Any]) -> tuple[str | None, float | None, float | None]:
    before, after = report["before"] or {}, report["after"] or {}
    for key, name in (("accuracy", after.get("metric")), ("loss", "loss")):
        if after.get(key) is not None:
            return name, before.get(key), after[key]
    return None, None, None


def _unfinished(folder: Path) -> Run:
    newest = newest_complete(folder)
    state = "begun" if newest is None else f"cut off at step {newest.name.rpartition('-')[2]}"
    try:
        recipe = load_recipe(str(folder)) if (folder / RECIPE_NAME).is_file() else None
    except AfinaError:
        recipe = None
    changed = folder.stat().st_mtime
    if recipe is None:
        return Run(folder, state, changed=changed)
    return Run(folder, state, recipe.method.type.lower(), recipe.task, recipe.model.path, changed=changed)


def _weights(folder: Path) -> int:
    return sum(path.stat().st_size for pattern in _WEIGHTS for path in folder.glob(pattern))
