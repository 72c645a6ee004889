"""The model that trains: a `PeftModel`, or in full fine-tuning the base itself; and how either is counted and saved."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ...cache import open_up
from ...core.config import LayerConfig, PeftConfig, method
from ...core.hosts.routing import routers
from ...core.model.peft_model import PeftModel
from ...core.prompts.encoder import PromptEncoder
from ...errors import RecipeError
from ...methods.baselines.full import Full, FullConfig
from ..base.assets import is_reference
from ..base.rates import own_rate
from ..recipe.ready import TASK_COUNTS
from ..recipe.sections import Recipe
from ..recipe.settings import method_config
from ..report.events import Reporter
from ..tasks import named


def adapted(recipe: Recipe, base: Any, config: PeftConfig, tasks: int = 0, *, begin: bool = True) -> Any:
    """The model to train.

    Args:
        tasks: how many the rows have, if they have any.
        begin: go on from the adapter that the recipe names; False only takes its shape.

    Raises:
        RecipeError: the method does not go together with another setting.
        TargetError, ConfigError: the method cannot adapt this model.
    """
    from ...core.model.mapping import get_peft_model

    _check_tasks(recipe, config, tasks)
    if recipe.training.gradient_checkpointing and not getattr(base, "supports_gradient_checkpointing", True):
        raise RecipeError("this model cannot recompute its activations", where="training.gradient_checkpointing",
                          got=type(base).__name__, fix="leave it out")  # fmt: skip
    if isinstance(config, FullConfig):
        if recipe.model.quantize != "none":
            raise RecipeError("quantised weights cannot train", where="model.quantize", got=recipe.model.quantize,
                              fix="choose another method, e.g. method=lora")  # fmt: skip
        return Full.prepare(base)
    _check(recipe, method(config).implementation)
    config = named(recipe.task).headed(config, base)
    if is_reference(recipe.model.path):  # where its files lie on this machine means nothing on another
        config.base_model_name_or_path = recipe.model.path
    if recipe.model.adapter_as == "start" and begin:
        return PeftModel.from_pretrained(base, str(recipe.model.adapter), is_trainable=True, config=config)
    return get_peft_model(base, config)


def _check(recipe: Recipe, implementation: type[Any]) -> None:
    in_cache = issubclass(implementation, PromptEncoder) and implementation.goes_into == "cache"
    if in_cache and recipe.training.gradient_checkpointing:
        raise RecipeError(
            "gradient checkpointing drops the cache that this method prefixes", where="training.gradient_checkpointing",
            got=recipe.method.type, fix="set it to false, or use a method that prefixes embeddings",
        )  # fmt: skip


def _check_tasks(recipe: Recipe, config: PeftConfig, tasks: int) -> None:
    wanted = "task_ids" in getattr(method(config).implementation, "inputs", ())
    if wanted and recipe.data.task_column is None:
        raise RecipeError("this method needs the number of every row's task", where="data.task_column",
                          got=recipe.method.type, fix="name the column that has it: data.task_column=...")  # fmt: skip
    if not wanted and recipe.data.task_column is not None:
        raise RecipeError("this method knows no tasks", where="data.task_column", got=recipe.method.type,
                          fix="leave it out")  # fmt: skip
    limit = next((config.get(key) for key in TASK_COUNTS if config.get(key) is not None), tasks)
    if wanted and tasks > limit:
        raise RecipeError("the rows have more tasks than the method", where="data.task_column",
                          got=f"task {tasks - 1}", expected=f"0 to {limit - 1}")  # fmt: skip


def as_it_came(recipe: Recipe, model: Any, tasks: int) -> AbstractContextManager[None]:
    """The model that a run is compared with, for the duration of the context: the base, or the adapter that goes on."""
    if recipe.model.adapter_as == "start":
        return nullcontext()
    # Rows with task numbers need the adapter, which takes them out of the model's arguments.
    return model.disable_adapter() if isinstance(model, PeftModel) and not tasks else nullcontext()


def counts(model: Any) -> tuple[int, int]:
    """(trainable, all) numbers of parameters."""
    if isinstance(model, PeftModel):
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


def checkpoint_bytes(model: Any) -> int:
    """About what a checkpoint takes: what trains, with the two moments that most optimizers keep of it."""
    return 3 * sum(int(p.nbytes) for p in model.parameters() if p.requires_grad)


def planned_steps(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of a run on one device, as the Trainer counts them."""
    t = recipe.training
    if t.max_steps is not None:
        return t.max_steps
    batches = math.ceil(rows / t.batch_size)
    return math.ceil(t.epochs * max(1, math.ceil(batches / t.gradient_accumulation)))


def fill_rate(recipe: Recipe, rows: int, reporter: Reporter) -> None:
    """Give a recipe without a learning rate that of its method, for its base and the steps that so many rows make."""
    if recipe.training.learning_rate is None:
        task = named(recipe.task)
        width = task.width(task.location(recipe.model, reporter), recipe.model)
        steps = planned_steps(recipe, task.examples(recipe, rows))
        recipe.training.learning_rate = own_rate(type(method_config(recipe)), width, steps)


def plan(recipe: Recipe, config: PeftConfig, steps: int, width: int | None) -> str:
    """What will run, in one line; whose learning rate it is is told."""
    t = recipe.training
    assert t.learning_rate is not None
    own = " (the method's own)" if t.learning_rate == own_rate(type(config), width, steps) else ""
    rows = t.batch_size * t.gradient_accumulation
    words = [f"method {config.method_type}", f"learning rate {t.learning_rate:g}{own}", f"{steps} steps of {rows} rows"]
    if t.layerwise_decay is not None:
        words.append(f"times {t.layerwise_decay:g} for every layer further down")
    if isinstance(config, LayerConfig) and config.target_modules:
        names = config.target_modules
        shown = [names] if isinstance(names, str) else sorted(names)
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        words.append(f"on {', '.join(shown[:8])}{more}")
    if recipe.model.quantize != "none":
        words.append(f"base stored in {recipe.model.quantize}")
    return "plan: " + ", ".join(words)


def wants_logits(model: Any) -> bool:
    """Whether an adapter looks at the model's output."""
    tuner = getattr(model, "base_model", None)
    return tuner is not None and bool(len(getattr(tuner, "prompt_encoder", ())) or routers(tuner))


def save(model: Any, recipe: Recipe, folder: Path, state: dict[str, Any] | None = None) -> None:
    """Write the adapter, or the whole model, with its card.

    Args:
        state: the model's tensors, where they are in parts in it.
    """
    model.save_pretrained(folder, **({} if state is None else {"state_dict": state}))
    if isinstance(model, PeftModel):
        model.create_or_update_model_card(str(folder))
        return
    open_up(folder)
    base = recipe.model.path
    front = [] if Path(base).is_absolute() else [f"base_model: {json.dumps(base)}"]
    text = f"`{base}` with all of its parameters trained. Loads with transformers' `from_pretrained`."
    lines = ["---", *front, "library_name: transformers", "tags:", "- afina", "---", "", "# Fine-tuned model", "", text]
    (folder / "README.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
