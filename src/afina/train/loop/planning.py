"""What a run will be and take, said before it runs: rows, steps, parameters, memory, disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...devices.memory_use import free_bytes, used_bytes
from ...devices.place import place
from ...devices.ranks import size
from ...errors import RecipeError
from ...plan.usage import told_bytes, told_seconds
from ..base.base_model import base_location, config_of, vocab_size
from ..base.new_tokens import trains_new_tokens
from ..base.rates import width_of
from ..data.encode import Data
from ..recipe.sections import Recipe
from ..report.events import Reporter
from ..tasks import named
from ..tasks.examples import encode
from .adapt import adapted, counts, plan, planned_steps, wants_logits
from .begin import begin_config, prepared
from .sharing_plan import shared_lines

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ...devices.found import Device
    from ...plan.memory import StepMemory

_BITS: Mapping[str, float] = MappingProxyType({"nf4": 4.13, "fp4": 4.13, "int8": 8.0, "int8wo": 8.0, "int4wo": 5.0,
                                                  "fp8": 16.0})  # fmt: skip
"""Bits that a weight takes with its scales."""
_EXCESS = 1.4
"""A process takes up to this many times what its tensors do (measured: 1.27 to 1.42 on CPU)."""

_AROUND = (0.5, 2.0)
"""What training takes, in times of its products at torch's own speed (measured on one thread: .6 and .8, because
oneDNN makes some of them faster; small models, slow disks and quantised weights take longer)."""


@dataclass(frozen=True)
class Setting:
    """What the estimate of memory is made from."""

    recipe: Recipe
    location: str
    tokenizer: Any
    data: Data
    steps: int


def planned(recipe: Recipe, reporter: Reporter, processes: int = 1) -> list[str]:
    """Lines that say what will happen. Weights are not loaded.

    Args:
        processes: how many are to share the run, on a device each.

    Raises:
        AfinaError: what would stop the run at its beginning.
    """
    recipe, split, labels = prepared(recipe, reporter)
    location = base_location(recipe.model, reporter)
    task = named(recipe.task)
    tokenizer = task.reader(location, recipe.model, reporter)
    data = encode(recipe, split, labels, tokenizer, vocab_size(location, recipe.model, tokenizer), reporter)
    steps = planned_steps(recipe, task.examples(recipe, len(data.train)))
    setting = Setting(recipe, location, tokenizer, data, steps)
    held_out = len(data.held_out) if data.held_out is not None else 0
    width = width_of(config_of(location, recipe.model))
    lines = [plan(recipe, begin_config(recipe, steps), steps, width),
             f"rows: {len(data.train):,} to train on, {held_out:,} held out"]  # fmt: skip
    return [*lines, *_sizes(setting, processes)]


def _sizes(setting: Setting, processes: int) -> list[str]:
    recipe = setting.recipe
    batch = _batch(setting, longest=True)
    if batch is None:
        return ["memory and time: not estimated for this task, whose trainer makes its batches itself"]
    try:
        found, (trainable, total) = _estimate(setting, batch)
    except RecipeError:
        raise
    except (RuntimeError, NotImplementedError, ValueError) as error:
        got = (str(error).splitlines() or [type(error).__name__])[0][:120]
        return [f"memory: cannot be estimated for {recipe.method.type} ({got})"]
    saved = _stored(recipe, found)
    lines = [
        f"trained parameters: {trainable:,} of {total:,} ({trainable / total:.2%}); "
        f"{told_bytes(found.trained)} on disk, {told_bytes(3 * found.trained)} in each of "
        f"{recipe.training.keep_checkpoints} checkpoints",
        f"memory: weights {told_bytes(found.weights - saved)}, a step of {_told_rows(batch)} "
        f"{told_bytes(found.working)}",
    ]
    if processes > 1 and not saved:
        lines += shared_lines(recipe, _base_without_data(setting), batch, found, processes)
    return [*lines, *_fits(setting, batch, found.peak - saved), _time(setting)]


def _told_rows(batch: Mapping[str, Tensor]) -> str:
    """How many rows a batch has, and of what size."""
    first, value = next(iter(batch.items()))
    rows, *sizes = value.shape
    size = " x ".join(map(str, sizes))
    if first == "input_ids":
        return f"{rows} rows of up to {sizes[0]} tokens"
    return f"{rows} images of {size}" if first == "pixel_values" else f"{rows} sounds as {size} numbers"


def _fits(setting: Setting, batch: Mapping[str, Tensor], peak: int) -> list[str]:
    """Whether it fits, and what would make it."""
    device = place(setting.recipe.model.device)
    free = free_bytes(device.name)
    needed = f"in all {told_bytes(peak)}, with the allocator's gaps up to {told_bytes(_EXCESS * peak)}"
    if device.kind == "cpu":
        needed += f", beside {told_bytes(used_bytes())} of the libraries"
    if free is None:
        return [f"memory: {needed}"]
    if _EXCESS * peak <= free:
        return [f"memory: {needed}; {told_bytes(free)} are free: it fits"]
    word = "may not fit" if peak <= free else "does not fit"
    lines = [f"memory: {needed}; {told_bytes(free)} are free: it {word}"]
    training = setting.recipe.training
    for change in (
        {"gradient_checkpointing": True},
        {"batch_size": 1},
        {"gradient_checkpointing": True, "batch_size": 1},
    ):
        other = setting.recipe.model_copy(deep=True, update={"training": training.model_copy(update=change)})
        smaller = {k: v[: other.training.batch_size] for k, v in batch.items()}
        found, _ = _estimate(Setting(other, *list(vars(setting).values())[1:]), smaller)
        words = " ".join(f"training.{k}={str(v).lower()}" for k, v in change.items())
        lines.append(f"memory: {told_bytes(found.peak - _stored(other, found))} with {words}")
    return lines


def too_large(setting: Setting) -> str | None:
    """Why a run does not fit one device; None where it does, or where that cannot be told.

    Processes on one machine's processor share its memory.
    """
    device = place(setting.recipe.model.device)
    free, batch = free_bytes(device.name), _batch(setting, longest=True)
    if free is None or batch is None:
        return None
    free //= size() if device.kind == "cpu" else 1
    try:
        found, _ = _estimate(setting, batch)
    except (RuntimeError, NotImplementedError, ValueError):
        return None
    needed = round(_EXCESS * (found.peak - _stored(setting.recipe, found)))
    if needed <= free:
        return None
    return f"it takes {told_bytes(needed)} and {told_bytes(free)} are free on {device.name}"


def fitting(recipe: Recipe) -> int | None:
    """How many runs such as this one fit the device at once, with the base's weights in memory once; at least 1, and
    None where that cannot be told."""
    silent = Reporter()
    recipe, split, labels = prepared(recipe, silent)
    location = base_location(recipe.model, silent)
    tokenizer = named(recipe.task).reader(location, recipe.model, silent)
    data = encode(recipe, split, labels, tokenizer, vocab_size(location, recipe.model, tokenizer), silent)
    setting = Setting(recipe, location, tokenizer, data, planned_steps(recipe, len(data.train)))
    free, batch = free_bytes(place(recipe.model.device).name), _batch(setting, longest=True)
    if free is None or batch is None:
        return None
    try:
        found, _ = _estimate(setting, batch)
    except (RuntimeError, NotImplementedError, ValueError):
        return None
    weights = found.weights - _stored(recipe, found)
    return max(1, int((free / _EXCESS - weights) // max(found.working, 1)))


def _batch(setting: Setting, *, longest: bool) -> dict[str, Tensor] | None:
    """The batch that takes most, of the longest rows; or one of rows of all lengths, as they are drawn."""
    items, rows = setting.data.train.by_length().items, setting.recipe.training.batch_size
    items = items[:rows] if longest else items[:: max(1, len(items) // rows)][:rows]
    if not items or not {"input_ids", "image", "audio"} & {*items[0]}:
        return None
    made = named(setting.recipe.task).collator(setting.tokenizer)(items)
    dtype = _dtype(setting.recipe)
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in made.items()}


def _dtype(recipe: Recipe) -> torch.dtype:
    """Of the base's numbers, as it is planned with."""
    import torch

    found: torch.dtype = getattr(torch, "bfloat16" if recipe.model.dtype == "auto" else recipe.model.dtype)
    return found


def _stored(recipe: Recipe, found: StepMemory) -> int:
    """Bytes that quantised storage saves."""
    bits = _BITS.get(recipe.model.quantize)
    computed = 32 if recipe.model.dtype == "float32" else 16
    return 0 if bits is None else round(found.frozen_linear * (1 - bits / computed))


def _estimate(setting: Setting, batch: Mapping[str, Tensor]) -> tuple[StepMemory, tuple[int, int]]:
    """The step's memory, and (trainable, all) numbers of parameters."""
    from ...plan.memory import step_memory

    made: list[Any] = []

    def build() -> nn.Module:
        made.append(_shapes_of(setting).train())
        model: nn.Module = made[0]
        return model

    return step_memory(build, batch, _loss(setting, batch)), counts(made[0])


def _time(setting: Setting) -> str:
    """What training takes here, from the products of a step of rows of all lengths. Measuring is not counted."""
    from ...plan.duration import flops_per_second, step_flops

    batch, recipe = _batch(setting, longest=False), setting.recipe
    assert batch is not None
    flops = step_flops(lambda: _shapes_of(setting).train(), batch, _loss(setting, batch))
    seconds = flops / flops_per_second(_dtype(recipe)) * recipe.training.gradient_accumulation * setting.steps
    low, high = (told_seconds(factor * seconds) for factor in _AROUND)
    return f"time: training {low} to {high} here ({flops / 1e9:,.1f} GFLOP a batch), with nothing else running"


def _loss(setting: Setting, batch: Mapping[str, Tensor]) -> Callable[[nn.Module, dict[str, Tensor]], Tensor]:
    task, recipe = named(setting.recipe.task), setting.recipe
    kept = None
    if task.fast and recipe.training.fast and "labels" in batch:
        vocabulary = vocab_size(setting.location, recipe.model, setting.tokenizer)
        kept = _projected(batch["labels"], vocabulary, place(recipe.model.device))

    def loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        if kept is None or wants_logits(model):
            out: Tensor = model(**inputs).loss
            return out
        rest = {k: v for k, v in inputs.items() if k != "labels"}
        logits: Tensor = model(**rest, logits_to_keep=kept).logits
        return logits.float().logsumexp(-1).mean()

    return loss


def _projected(labels: Tensor, vocabulary: int, device: Device) -> int:
    """Positions of a row whose logits are held at once by the chunked loss."""
    from ...kernels.chunks import chunk_rows

    supervised = int((labels != -100).sum())
    return max(1, min(supervised, chunk_rows(vocabulary, device.kind, device.free)) // labels.shape[0])


def _base_without_data(setting: Setting) -> nn.Module:
    import torch

    with torch.device("meta"):
        model = _shapes_of(setting)
    base: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def _shapes_of(setting: Setting) -> Any:
    import transformers

    recipe, task = setting.recipe, named(setting.recipe.task)
    config = config_of(setting.location, recipe.model)
    for key, value in task.load_options(setting.data.labels).items():
        setattr(config, key, value)
    if vocabulary := vocab_size(setting.location, recipe.model, setting.tokenizer):
        config.get_text_config().vocab_size = vocabulary
    base: Any = getattr(transformers, task.model_class(setting.tokenizer)).from_config(config, dtype=_dtype(recipe))
    task.loaded(base, setting.tokenizer)
    if recipe.training.gradient_checkpointing:
        base.enable_input_require_grads()
        base.activation_checkpointing_enable({"use_reentrant": False})
    own = trains_new_tokens(begin_config(recipe, setting.steps), base, setting.tokenizer, recipe.model)
    return adapted(recipe, base, own, setting.data.tasks, begin=False)
