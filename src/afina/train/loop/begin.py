"""What a run begins from: a fresh adapter, or one that goes on (`model.adapter`)."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from ...core.config import PeftConfig, plain
from ...devices.found import found
from ...devices.place import place, told
from ...devices.ranks import from_first
from ...errors import RecipeError
from ...methods.baselines.full import FullConfig
from ...plan.precision import choose_dtype
from ..base.adapter_below import config_below
from ..conversations.messages import shared_system
from ..data.split import Split, read_split
from ..recipe.anchoring import absolute
from ..recipe.sections import DataSection, ModelSection, OutputSection, Recipe
from ..recipe.settings import method_config, refuse_unmade
from ..report.events import Reporter
from ..tasks import TASKS, named
from .adapt import fill_rate
from .fast_paths import check_offload

_OF_A_MEDIUM = {
    "images": ("model.image_size", "training.augment"),
    "sounds": ("model.audio_seconds", "model.language"),
    "texts": ("model.new_tokens", "model.chat_template", "data.prompt", "data.completion", "data.system"),
}
"""Settings that mean something where rows are images, sounds or texts only."""


def prepared(recipe: Recipe, reporter: Reporter) -> tuple[Recipe, Split, list[str] | None]:
    """The recipe with all that it leaves open filled in, its rows, and the labels.

    Raises:
        DataError, RecipeError: the rows, labels or settings cannot be used.
    """
    for remark in recipe.remarks:
        reporter.note(remark)
    refuse_unmade(recipe.model.path)
    named(recipe.task).check_location(recipe.model)
    _check_medium(recipe)
    named(recipe.task).check(recipe)
    split = read_split(recipe, reporter)
    labels = named(recipe.task).labels(recipe.data, split.parts)
    return from_first(lambda: _resolved(recipe, split, labels, reporter)), split, labels


def _check_medium(recipe: Recipe) -> None:
    """Refuse settings of images, sounds or texts where rows are others.

    Raises:
        RecipeError: names the setting.
    """
    own = named(recipe.task).medium
    foreign = [(key, medium) for medium, keys in _OF_A_MEDIUM.items() if medium != own for key in keys]
    key, medium = next(((key, medium) for key, medium in foreign if attrgetter(key)(recipe)), ("", ""))
    if key:
        raise RecipeError(f"rows of this task are {own}, no {medium}", where=key, got=recipe.task, fix="leave it out")
    plain = Recipe(model=ModelSection(path=""), data=DataSection(train=""), output=OutputSection(dir=""))
    for task in TASKS.values():
        for key in () if task.name == recipe.task else task.own_settings:
            if attrgetter(key)(recipe) != attrgetter(key)(plain):
                raise RecipeError(f"{task.name} alone reads this setting", where=key, got=recipe.task,
                                  fix="leave it out")  # fmt: skip
    task = named(recipe.task)
    if recipe.evaluation.max_new_tokens is not None and (task.judges or not task.writes):
        raise RecipeError("models of this task write no answers", where="evaluation.max_new_tokens", got=recipe.task,
                          fix="leave it out")  # fmt: skip


def _resolved(recipe: Recipe, split: Split, labels: list[str] | None, reporter: Reporter) -> Recipe:
    """The recipe as it can be used from anywhere: labels and learning rate filled in, own paths absolute."""
    out = recipe.model_copy(deep=True)
    out.data.labels = labels
    _keep_system(out, split, reporter)
    resolve_adapter(out, reporter)
    fill_rate(out, len(split.train), reporter)
    device = place(out.model.device)
    reporter.note(f"device: {told(device, found())}")
    check_offload(out, device)
    if out.model.dtype == "auto" and isinstance(method_config(out), FullConfig):
        # The updates of full fine-tuning are smaller than what 16-bit weights can take up.
        out.model.dtype = "float32"
        reporter.note("dtype: float32, because updates of full fine-tuning are lost in 16 bits")
    if out.model.dtype == "auto" and (out.model.quantize == "none" or device.kind != "cpu"):
        choice = choose_dtype(device)
        out.model.dtype = choice.dtype  # type: ignore[assignment]
        reporter.note(f"dtype: {choice.dtype} for the frozen base, because {choice.reason}")
    absolute(out)
    return out


def _keep_system(recipe: Recipe, split: Split, reporter: Reporter) -> None:
    """A system message that all rows have is the recipe's, so that who talks to the model later need not know it."""
    system = shared_system(split.train.values)
    if recipe.data.system is None and recipe.data.prompt is None and system is not None:
        recipe.data.system = system
        reporter.note("data.system: the system message that all rows have; chat, and predict for rows without, use it")


def resolve_adapter(recipe: Recipe, reporter: Reporter) -> None:
    """Say in the recipe whether its adapter goes on or lies below a new one.

    Raises:
        RecipeError: it cannot go on as the recipe says.
        CheckpointError: it is no adapter.
    """
    model = recipe.model
    if model.adapter is None:
        if model.adapter_as != "auto":
            raise RecipeError("there is no adapter to use", where="model.adapter_as", got=model.adapter_as,
                              fix="name it: model.adapter=DIR")  # fmt: skip
        return
    below, task = config_below(model), named(recipe.task)
    same = below.method_type == method_config(recipe).method_type
    if model.adapter_as == "auto":
        model.adapter_as = "start" if same and not task.has_reference else "base"
    if model.adapter_as == "base":
        reporter.note(f"{model.adapter} ({below.method_type.lower()}) is merged into the base, in memory; the new "
                      "adapter stands on both, and `afina merge` makes one model of all")  # fmt: skip
        return
    if not same:
        raise RecipeError(
            "an adapter goes on with its own method", where="method.type", got=recipe.method.type,
            expected=below.method_type.lower(), fix="or put the new one on top: model.adapter_as=base",
        )  # fmt: skip
    if task.has_reference:
        raise RecipeError("this task's reference is the model without its adapter, so that adapter must lie below",
                          where="model.adapter_as", got="start", fix="model.adapter_as=base")  # fmt: skip
    _check_settings(recipe, below)
    reporter.note(f"going on with {model.adapter}")


def begin_config(recipe: Recipe, total_steps: int) -> Any:
    """The config of the adapter that trains: the recipe's, or that of the adapter which goes on."""
    own = method_config(recipe, total_steps=total_steps)
    if recipe.model.adapter_as != "start":
        return own
    config = config_below(recipe.model)
    config.inference_mode, config.task_type = False, own.task_type
    if hasattr(config, "total_step"):
        config.total_step = total_steps
    return config


def _check_settings(recipe: Recipe, below: PeftConfig) -> None:
    """Refuse settings that the adapter was not made with."""
    own, has = method_config(recipe), {}
    for key in recipe.method.fields:
        value, there = _comparable(getattr(own, key)), _comparable(getattr(below, key))
        # "all-linear" is written into files as the names that it stands for.
        if value != there and value != "all-linear":
            has[key] = (value, there)
    if has:
        key, (value, there) = next(iter(has.items()))
        more = f" and {len(has) - 1} more" if len(has) > 1 else ""
        raise RecipeError("the adapter that goes on was made with another setting", where=f"method.{key}{more}",
                          got=value, expected=there, fix="leave it out, or model.adapter_as=base")  # fmt: skip


def _comparable(value: Any) -> Any:
    value = plain(value)
    return sorted(value, key=str) if isinstance(value, list) else value
