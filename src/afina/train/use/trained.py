"""A trained adapter back on its base, or a model that was trained as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.config import method
from ...errors import CheckpointError, RecipeError
from ..base import quantize
from ..base.base_model import settled
from ..recipe.ready import TASK_COUNTS
from ..recipe.sections import DataSection, ModelSection, OutputSection, Recipe
from ..recipe.settings import load_recipe
from ..recipe.task_types import of_task_type
from ..report.events import Reporter
from ..report.output import RECIPE_NAME, REPORT
from ..tasks import named
from ..tasks.base import Trained


def recipe_of(folder: Path, base: str | None = None) -> Recipe:
    """The recipe that trained an adapter, or what its config tells where there is none.

    Args:
        base: the base model, in place of the one that the adapter names.

    Raises:
        CheckpointError: it is not an adapter folder, or names no base.
    """
    if not (folder / "adapter_config.json").is_file():
        raise CheckpointError("not an adapter folder (no adapter_config.json)", where=folder)
    recipe = load_recipe(str(folder)) if (folder / RECIPE_NAME).is_file() else _recipe_of_config(folder, base)
    if base is not None:
        recipe.model = ModelSection.model_validate({**recipe.model.model_dump(), "path": base, "revision": None})
    return recipe


def load_trained(
    folder: Path, reporter: Reporter, storage: str | None = None, base: str | None = None, *,
    dtype: str | None = None, device: str = "auto", copies: int = 1,
) -> Trained:  # fmt: skip
    """Load an adapter folder with the base that it names, or a model that was trained as a whole.

    Args:
        storage: of the base (`model.quantize`); the one that it was trained on if None.
        base: the base model, in place of the one that the adapter names.
        dtype: of the base (`model.dtype`), "auto" for its own; the one that it was trained in if None.
        device: where it is used; not where it was trained, which may have been another machine.
        copies: how many times the weights have to fit there, where the choice is open.

    Raises:
        RecipeError: no such storage or device.
        CheckpointError: it is not an adapter folder, or a part cannot be loaded.
    """
    from ...core.model.peft_model import PeftModel

    whole = not (folder / "adapter_config.json").is_file() and (folder / REPORT).is_file()
    if whole:
        return _load_whole(folder, reporter, device, copies)
    recipe = recipe_of(folder, base)
    trained_on = recipe.model.quantize
    if storage is not None:
        recipe.model = ModelSection.model_validate({**recipe.model.model_dump(), "quantize": quantize.known(storage)})
    if dtype is not None:
        recipe.model = ModelSection.model_validate({**recipe.model.model_dump(), "dtype": dtype})
    task = named(recipe.task)
    location = task.location(recipe.model, reporter)
    recipe.model.device = settled(device, location, reporter, copies)
    reporter.note(f"base model: {recipe.model.path}{quantize.told(recipe.model)}")
    own = folder / task.reader_file
    if own.is_file():
        recipe.model.chat_template = None  # the folder's tokenizer has it
    # The folder's tokenizer has the new tokens, its processor of images or sounds their size.
    known = {"new_tokens": None, "image_size": None, "audio_seconds": None}
    section = recipe.model.model_copy(update=known) if own.is_file() else recipe.model
    tokenizer = task.reader(str(folder) if own.is_file() else location, section, reporter)
    model = PeftModel.from_pretrained(task.load(recipe.model, location, recipe.data.labels, tokenizer), folder)
    model.eval()
    return Trained(folder, recipe, task, model, tokenizer, trained_on=trained_on)


def for_task(trained: Trained, task: int | None, where: str) -> Trained:
    """The same for one of its tasks; its method needs the number, or knows none.

    Args:
        where: what gives it, for the error.

    Raises:
        RecipeError: it is missing, not known, or of no use.
    """
    config: Any = trained.model.active_peft_config if trained.is_adapter else None
    wanted = config is not None and "task_ids" in getattr(method(config).implementation, "inputs", ())
    if not wanted:
        if task is not None:
            raise RecipeError("this method knows no tasks", where=where, got=task, fix="leave it out")
        return trained
    known = next(config.get(key) for key in TASK_COUNTS if config.get(key) is not None)
    if task is None or not 0 <= task < known:
        raise RecipeError("this method needs the number of the task", where=where, got=task,
                          expected=f"0 to {known - 1}")  # fmt: skip
    return replace(trained, task_number=task)


def _load_whole(folder: Path, reporter: Reporter, device: str, copies: int) -> Trained:
    """A model that was trained as a whole."""
    recipe = load_recipe(str(folder))
    recipe.model.chat_template = None
    recipe.model.device = settled(device, str(folder), reporter, copies)
    recipe.model.adapter = recipe.model.new_tokens = None  # they are in the model's own tensors by now
    task = named(recipe.task)
    tokenizer = task.reader(str(folder), recipe.model, reporter)
    model: Any = task.load(recipe.model, str(folder), recipe.data.labels, tokenizer)
    model.eval()
    return Trained(folder, recipe, task, model, tokenizer, is_adapter=False)


def _recipe_of_config(folder: Path, base: str | None = None) -> Recipe:
    """What an adapter made elsewhere says of itself."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = base or config.get("base_model_name_or_path", config.get("model_name"))
        task = config.get("task_type")
        made_for = str(config.get("model_class", "ForCausalLM"))
    except (ValueError, AttributeError) as error:
        raise CheckpointError("not a JSON object", where=folder / "adapter_config.json") from error
    if not isinstance(base, str):
        raise CheckpointError("the adapter does not name its base model", where=folder / "adapter_config.json")
    if not made_for.endswith(("ForCausalLM", "LMHeadModel")):
        raise CheckpointError("AdapterHub's prediction heads are not read, so this adapter cannot answer by itself",
                              where=folder, got=made_for, expected="a causal language model",
                              fix="load it on a model of your own with PeftModel.from_pretrained")  # fmt: skip
    return Recipe(
        task=of_task_type(task),
        model=ModelSection(path=base),
        data=DataSection(train=""),
        output=OutputSection(dir=str(folder)),
    )
