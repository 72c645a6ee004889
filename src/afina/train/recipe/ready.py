"""Recipes to start from: any method on any task, every setting written out at its own default."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any

from .sections import MethodSection, Recipe
from .settings import embedded_recipes, load_recipe
from .task_types import DEFAULT_TASK, known_task
from .yamlfile import dump

# What has no default, because only the user can know it; a value that shows the form.
_TO_FILL_IN: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "ADAPTION_PROMPT": {"adapter_len": 10, "adapter_layers": 2},
        "CPT": {"cpt_token_ids": [0, 1, 2]},
        "MULTITASK_PROMPT_TUNING": {"num_tasks": 2},
        "POLY": {"n_tasks": 2},
        "TRAINABLE_TOKENS": {"token_indices": [0, 1, 2]},
        "XLORA": {"adapters": {"0": "folder/of/a/lora", "1": "folder/of/another"}},
    }
)
TASK_COUNTS = ("num_tasks", "n_tasks")


def embedded_for(task: str) -> str:
    """The embedded recipe of a task; the first in the alphabet where there are several.

    Raises:
        RecipeError: no such task.
    """
    task = known_task(task)
    return next(name for name in embedded_recipes() if load_recipe(name).task == task)


def ready_recipe(method: str, overrides: Sequence[tuple[str, str]] = ()) -> str:
    """A recipe as YAML that trains `method` as it comes: its own settings and learning rate, commented.

    Args:
        overrides: keys to set; `task` chooses the embedded recipe that it stands on.

    Raises:
        RecipeError, ConfigError: no such method, task or key, or a wrong value.
    """
    from ...core.config import config_class

    kind: Any = config_class(method, where="--print-recipe")
    task = next((value for key, value in reversed(overrides) if key == "task"), DEFAULT_TASK)
    fill = dict(_TO_FILL_IN.get(kind.method_type, {}))
    if any(key in fill for key in TASK_COUNTS):
        overrides = [("data.task_column", "task"), *overrides]
    given = [(f"method.{key}", json.dumps(value)) for key, value in fill.items()]
    # By way of another method, so that the embedded recipe's own settings are left behind for its own method too.
    other = "full" if kind.method_type != "FULL" else "lora"
    own = [("method.type", method.lower()), *given, *(pair for pair in overrides if pair[0] != "task")]
    recipe = load_recipe(embedded_for(task), [("method.type", other), *own])
    if not any(key in ("output", "output.dir", "output_dir") for key, _ in overrides):
        recipe.output.dir = f"runs/{method.lower()}-{task}"
    needs = ", ".join(f"method.{key}" for key in fill)
    recipe.method = MethodSection.model_validate({"type": method.lower(), **_own(kind), **recipe.method.fields})
    return _head(kind, recipe, needs) + dump(recipe)


def _own(kind: Any) -> dict[str, Any]:
    """The method's own settings that have a value by default."""
    from ...core.config import PeftConfig, plain

    common = {f.name for f in fields(PeftConfig)}
    out: dict[str, Any] = {}
    for field in fields(kind):
        if not field.init or field.name in common or field.name in ("total_step",):
            continue
        value = field.default if field.default_factory is MISSING else field.default_factory()
        if value is not MISSING and value is not None and value != {}:
            out[field.name] = plain(value)
    return out


def _head(kind: Any, recipe: Recipe, needs: str) -> str:
    from ...methods.about import about_methods

    about = next(found for found in about_methods() if found.name == kind.method_type)
    paper = f" (arXiv {about.papers[0]})" if about.papers else ""
    lines = [f"# {about.summary}{paper}", f"# {about.name.lower()} on the task {recipe.task}, with its own defaults."]
    if needs:
        lines.append(f"# Yours to fill in: {needs}.")
    return "\n".join([*lines, "", ""])
