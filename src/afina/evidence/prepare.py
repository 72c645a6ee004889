"""What all runs of a comparison share: the rows, written out once, and the facts that a cached run must agree with."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache import sha256
from ..devices.place import place
from ..errors import DataError, RecipeError
from ..train.base.pipelines.part_files import weights_of
from ..train.conversations.image_files import anchored
from ..train.data.labels import majority_share
from ..train.data.rows import Rows
from ..train.data.split import read_split
from ..train.loop.adapt import planned_steps
from ..train.recipe.sections import Recipe
from ..train.recipe.settings import refuse_unmade
from ..train.report.events import Reporter
from ..train.tasks import named
from ..version import __version__

_SCORING = 2
"""Goes up when what is measured changes its meaning."""
_TUNE_SHARE, _TUNE_MOST, _TUNE_FEW, _TUNE_OF_STEPS = 0.2, 400, 64, 8
"""Rows to judge a trial by: a fifth of all and at most 400; and not more than an eighth of those that it is trained on,
or judging would take longer than training, unless these are fewer than 64."""


@dataclass(frozen=True)
class Shared:
    """The same for every run.

    Attributes:
        train, held_out: files of the rows.
        tune_train, tune_held_out: the training rows split once more, for searching learning rates.
        rows: how many each has, in this order.
        labels: of the task; None where answers are free.
        majority: the accuracy of always answering the commonest label.
        steps: optimizer steps of every run.
        facts: what the results depend on beside the recipe: rows, weights, versions, machine.
    """

    train: Path
    held_out: Path
    tune_train: Path
    tune_held_out: Path
    rows: tuple[int, int, int, int]
    labels: list[str] | None
    majority: float | None
    steps: int
    facts: dict[str, Any]

    def placed(self, recipe: Recipe, seed: int, folder: Path, *, trial: bool = False) -> Recipe:
        """`recipe` on the shared rows with another seed, writing to `folder`; a trial holds training rows out."""
        out = recipe.model_copy(deep=True)
        out.data.train = str(self.tune_train if trial else self.train)
        out.data.eval = str(self.tune_held_out if trial else self.held_out)
        out.data.columns = None  # the rows have been renamed
        out.data.max_train_rows = out.data.max_eval_rows = None
        out.data.labels = self.labels
        out.training.max_steps, out.training.seed = self.steps, seed
        out.output.dir = str(folder)
        return out


def prepare(recipe: Recipe, folder: Path, reporter: Reporter, at_once: int = 1) -> Shared:
    """Read the recipe's rows, split them once for all runs and write them below `folder`.

    Args:
        at_once: how many runs are made at the same time.

    Raises:
        RecipeError: there is nothing to compare on: no held-out rows.
        DataError: the rows are unusable.
    """
    refuse_unmade(recipe.model.path)
    named(recipe.task).check_location(recipe.model)
    split = read_split(recipe, reporter)
    if split.held_out is None:
        raise RecipeError("there are no held-out rows to compare on", where="data.eval",
                          fix="name a file of them, or set data.eval_split")  # fmt: skip
    labels = named(recipe.task).labels(recipe.data, split.parts)
    majority = None
    column = [row.get(recipe.data.label_column) for row in split.held_out.values]
    if labels is not None and None not in column:
        majority = majority_share([str(value) for value in column])
    task = named(recipe.task)
    files = task.medium != "texts" or "Image" in task.loader
    train, held_out = (_anchored(rows) if files else rows.values for rows in (split.train, split.held_out))
    steps = planned_steps(recipe, len(train))
    taken = steps * recipe.training.batch_size * recipe.training.gradient_accumulation
    inner, tune = _halved(train, max(_TUNE_FEW, taken // _TUNE_OF_STEPS))
    parts = {"train": train, "held_out": held_out, "tune_train": inner, "tune_held_out": tune}
    paths = {name: _written(folder / f"{name}.jsonl", rows) for name, rows in parts.items()}
    return Shared(
        paths["train"], paths["held_out"], paths["tune_train"], paths["tune_held_out"],
        (len(train), len(held_out), len(inner), len(tune)), labels, majority,
        steps, _facts(recipe, reporter, at_once),
    )  # fmt: skip


def _anchored(rows: Rows) -> list[dict[str, Any]]:
    """Rows as they can be written elsewhere: the paths of images and sounds in them count from their own folder."""
    return [anchored(row, rows.folder(index)) for index, row in enumerate(rows.values)]


def _halved(rows: Sequence[dict[str, Any]], most: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to train a trial on, and rows to judge it by; drawn once, with a seed of its own."""
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    n = min(_TUNE_MOST, most, max(1, round(_TUNE_SHARE * len(rows))))
    return [rows[i] for i in sorted(order[n:])], [rows[i] for i in sorted(order[:n])]


def _written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError("cannot write the comparison's rows", where=path, got=error.strerror) from error
    return path.absolute()


def _facts(recipe: Recipe, reporter: Reporter, at_once: int) -> dict[str, Any]:
    import torch
    import transformers

    location = Path(named(recipe.task).location(recipe.model, reporter))
    weights = [path for kind in ("*.safetensors", "*.bin", "config.json") for path in weights_of(location, kind)]
    return {
        "model": {str(path.relative_to(location)): sha256(path) for path in sorted(weights)} or str(location),
        "versions": {"afina": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
                     "python": platform.python_version()},
        "machine": machine(recipe.model.device, at_once),
    }  # fmt: skip


def machine(device: str = "auto", at_once: int = 1) -> dict[str, Any]:
    """The processor, its cores, the threads that torch takes in every run, and the GPU where `device` is one.

    Args:
        at_once: how many runs share the cores.
    """
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    chosen = place(device)
    gpu = None if chosen.kind == "cpu" else chosen.title
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, torch.get_num_threads() // at_once))
    return {
        "processor": name or platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "threads": threads, "gpu": gpu, "system": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip


def key_of(recipe: Recipe, shared: Shared, trial: bool) -> dict[str, Any]:
    """Everything that the result of a run depends on, as plain values."""
    settings = {k: v for k, v in recipe.model_dump(mode="json").items() if k != "output"}
    files = {"train": sha256(Path(str(recipe.data.train))), "eval": sha256(Path(str(recipe.data.eval)))}
    settings["data"] = {**settings["data"], **files}
    return {"recipe": settings, "trial": trial, "scoring": _SCORING, **shared.facts}


def digest(key: Mapping[str, Any]) -> str:
    """A short hash of a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
