"""What the tests of tasks share whose rows are files of images or sounds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from afina.core.config import methods
from afina.errors import AfinaError
from afina.train.data.rows import read_rows
from afina.train.loop.run import run
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from ..loop.test_adapt import OPTIONS
from .test_tasks import resumed

LONG = pytest.mark.skipif("AFINA_AUDIO" not in os.environ, reason="as those of images: make test-audio runs them")


def recipe_of(tmp_path, task, model, data, batch_size, /, **changes):
    """A recipe of thirty steps; `changes` maps `section__key`, or a section, to a value."""
    recipe = {
        "task": task, "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": str(data), "eval_split": 0.25}, "method": {"type": "lora", "r": 4},
        "training": {"learning_rate": 0.01, "batch_size": batch_size, "max_steps": 30, "save_steps": 30},
        "output": {"dir": str(tmp_path / "out")},
    }  # fmt: skip
    for key, value in changes.items():
        section, _, inner = key.partition("__")
        recipe[section] = {**recipe.get(section, {}), inner: value} if inner else value
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return load_recipe(str(tmp_path / "recipe.yaml"))


def takes_tasks(method):
    return "task_ids" in getattr(methods()[method].implementation, "inputs", ())


def few_steps(method, tmp_path, data, column):
    """Changes of a recipe for three steps of a method at its own rate, on rows with the numbers of tasks if it knows
    such; `column` has the files."""
    out = {"training__max_steps": 3, "training__learning_rate": None,
           "method": {"type": method.lower(), **OPTIONS.get(method, {})}}  # fmt: skip
    if takes_tasks(method):
        home = data if data.is_dir() else data.parent
        rows = [{**row, column: str(home / row[column]), "task": i % 3} for i, row in enumerate(read_rows(data).values)]
        file = Path(tmp_path) / "tasks.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out |= {"data__train": str(file), "data__task_column": "task"}
    return out


def trains_or_says_why(child, recipe, why, work=run):
    """What `work` gives of a recipe, whose loss has changed; None where the method is refused with these words."""
    if why is not None:
        with pytest.raises(AfinaError, match=why):
            child(run, recipe, Reporter())
        return None
    out = child(work, recipe, Reporter())
    result = out[0] if isinstance(out, tuple) else out
    assert result.after.loss != result.before.loss
    return out


def resumes_to_the_bit(child, recipe):
    whole, again, report, report_again = child(resumed, recipe)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert report["after"] == report_again["after"]
    assert len(whole) > 4
