"""A trained adapter back on its base, or a model that was trained as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.config import PeftConfig, method
from ...devices.place import place
from ...errors import CheckpointError, RecipeError
from ..base import quantize
from ..base.base_model import settled
from ..data.prompts import Prompter
from ..recipe.ready import TASK_COUNTS
from ..recipe.sections import DataSection, ModelSection, OutputSection, Recipe
from ..recipe.settings import load_recipe
from ..recipe.task_types import of_task_type
from ..report.checkpoints import run_of
from ..report.events import Reporter
from ..report.output import MARK, RECIPE_NAME
from ..tasks import named
from ..tasks.base import Known, Trained


def recipe_of(folder: Path, base: str | None = None) -> Recipe:
    """The recipe that trained an adapter, or what its config tells where there is none.

    Args:
        base: the base model, in place of the one that the adapter names.

    Raises:
        CheckpointError: it is not an adapter folder, or names no base.
    """
    if not _is_adapter(folder):
        raise CheckpointError("not an adapter folder (no adapter_config.json)", where=folder)
    written = _with_recipe(folder)
    recipe = load_recipe(str(written)) if written is not None else _recipe_of_config(folder, base)
    if base is not None:
        recipe.model = ModelSection.model_validate({**recipe.model.model_dump(), "path": base, "revision": None})
    return recipe


def known(folder: Path, base: str | None = None) -> Known:
    """What the folder's files say, without a model.

    Args:
        base: the base model, in place of the one that the adapter names.

    Raises:
        CheckpointError: it is not an adapter folder, or names no base.
        RecipeError: the whole model was trained, and stands on no base.
    """
    written = _with_recipe(folder)
    recipe = load_recipe(str(written)) if written is not None and not _is_adapter(folder) else None
    if recipe is None or recipe.method.type.lower() != "full":
        recipe = recipe_of(folder, base)
        return Known(folder, recipe, named(recipe.task))
    refuse_base(base)
    return Known(folder, recipe, named(recipe.task), is_adapter=False)


def refuse_base(base: str | None) -> None:
    """Refuse a base for what is no adapter.

    Raises:
        RecipeError: one is named.
    """
    if base is not None:
        raise RecipeError("the whole model was trained, it stands on no base", where="--base", got=base,
                          fix="leave it out")  # fmt: skip


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _with_recipe(folder: Path) -> Path | None:
    """Where the recipe of an adapter, a trained model or a run's checkpoint lies."""
    run = run_of(folder)
    of_run = [run] if run is not None and (run / MARK).is_file() else []
    return next((place for place in (folder, *of_run) if (place / RECIPE_NAME).is_file()), None)


def load_trained(
    folder: Path, reporter: Reporter, storage: str | None = None, base: str | None = None, *,
    dtype: str | None = None, device: str = "auto", copies: int = 1, before: Callable[[Prompter], None] | None = None,
) -> Trained:  # fmt: skip
    """Load an adapter folder with the base that it names, or a model that was trained as a whole.

    Args:
        storage: of the base (`model.quantize`); the one that it was trained on if None.
        base: the base model, in place of the one that the adapter names.
        dtype: of the base (`model.dtype`), "auto" for its own; the one that it was trained in if None.
        device: where it is used; not where it was trained, which may have been another machine.
        copies: how many times the weights have to fit there, where the choice is open.
        before: is given what renders prompts before the model is loaded, and may refuse what it sees.

    Raises:
        RecipeError: no such storage or device.
        CheckpointError: it is not an adapter folder, or a part cannot be loaded.
    """
    from ...core.model.peft_model import PeftModel

    found = known(folder, base)
    recipe, task = found.recipe, found.task
    if not found.is_adapter:
        _refuse_storage(storage)
        return _load_whole(found, reporter, device, copies, before)
    trained_on = recipe.model.quantize
    if storage is not None:
        recipe.model = ModelSection.model_validate({**recipe.model.model_dump(), "quantize": quantize.known(storage)})
    if dtype is not None:
        recipe.model = ModelSection.model_validate({**recipe.model.model_dump(), "dtype": dtype})
    place(device)  # a device that is not there is told before anything is read
    location = _base_of(found, reporter)
    own = folder / task.reader_file
    if own.is_file():
        recipe.model.chat_template = None  # the folder's tokenizer has it
    # The folder's tokenizer has the new tokens, its processor of images or sounds their size.
    has = {"new_tokens": None, "image_size": None, "audio_seconds": None}
    section = recipe.model.model_copy(update=has) if own.is_file() else recipe.model
    tokenizer = task.reader(str(folder) if own.is_file() else location, section, reporter)
    if before is not None:
        before(task.prompter(recipe.data, tokenizer))
    told = f"base model: {recipe.model.path}{quantize.told(recipe.model)}; "
    recipe.model.device = settled(device, location, reporter, copies, told)
    model = PeftModel.from_pretrained(task.load(recipe.model, location, recipe.data.labels, tokenizer), folder)
    model.eval()
    return Trained(folder, recipe, task, model, tokenizer, trained_on=trained_on)


def _base_of(found: Known, reporter: Reporter) -> str:
    """Where the base of an adapter lies.

    Raises:
        CheckpointError: it is not where the adapter says.
    """
    try:
        return found.task.location(found.recipe.model, reporter)
    except RecipeError as error:
        if error.where != "model.path":
            raise
        raise CheckpointError(f"its base model: {error.what}", where=found.folder, got=error.got,
                              expected=error.expected, fix="--base MODEL says where it is now (predict, merge, export, "
                              "convert); afina chat MODEL --adapter NAME=DIR") from error  # fmt: skip


def check_task(found: Known, task: int | None, where: str) -> None:
    """Refuse the number of a task that is missing, not known, or of no use.

    Args:
        where: what gives it, for the error.

    Raises:
        RecipeError: says which tasks there are.
    """
    config: Any = PeftConfig.from_pretrained(found.folder) if found.is_adapter else None
    if config is None or "task_ids" not in getattr(method(config).implementation, "inputs", ()):
        if task is not None:
            raise RecipeError("this method knows no tasks", where=where, got=task, fix="leave it out")
        return
    count = next(config.get(key) for key in TASK_COUNTS if config.get(key) is not None)
    if task is None or not 0 <= task < count:
        raise RecipeError("this method needs the number of the task", where=where, got=task,
                          expected=f"0 to {count - 1}")  # fmt: skip


def for_task(trained: Trained, task: int | None) -> Trained:
    """The same for one of its tasks, which `check_task` has let through."""
    return trained if task is None else replace(trained, task_number=task)


def _refuse_storage(storage: str | None) -> None:
    """Refuse a storage of the base where there is no base.

    Raises:
        RecipeError: one is wanted.
    """
    if storage is not None and quantize.known(storage) != "none":
        raise RecipeError("the whole model was trained, and is used as it was saved", where="quantize", got=storage,
                          fix="leave it out")  # fmt: skip


def _load_whole(
    found: Known, reporter: Reporter, device: str, copies: int, before: Callable[[Prompter], None] | None
) -> Trained:
    """A model that was trained as a whole."""
    folder, recipe, task = found.folder, found.recipe, found.task
    recipe.model.chat_template = None
    recipe.model.adapter = recipe.model.new_tokens = None  # they are in the model's own tensors by now
    place(device)
    tokenizer = task.reader(str(folder), recipe.model, reporter)
    if before is not None:
        before(task.prompter(recipe.data, tokenizer))
    recipe.model.device = settled(device, str(folder), reporter, copies)
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
