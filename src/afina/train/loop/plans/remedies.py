"""What makes a run fit that does not, and the largest one that does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from ....core.config import method
from ....core.prompts.encoder import PromptEncoder
from ....errors import RecipeError
from ....methods.baselines.full import FullConfig
from ...recipe.settings import method_config
from ...tasks import named
from .forecast import Forecast, Target, forecast
from .rehearsal import Untold
from .setting import Setting


def remedies(setting: Setting, target: Target) -> Iterator[tuple[str, Forecast]]:
    """Up to three changes, each on top of those before it, until it fits: activations computed again, a row at a time,
    the base in four bits. Each comes with the settings in words and what is taken then."""
    words: list[str] = []
    for word, changed in _ways(setting):
        try:
            found = forecast(changed, target, timed=False)
        except Untold:
            continue
        words.append(word)
        yield " ".join(words), found
        if found.fits:
            return


def _ways(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """The settings that are left to change, each with all before it."""
    config, training = method_config(setting.recipe), setting.recipe.training
    if not training.gradient_checkpointing and not _in_cache(config):
        setting = setting.training(gradient_checkpointing=True, offload="none")
        also = "" if training.offload == "none" else " training.offload=none"
        yield f"training.gradient_checkpointing=true{also}", setting
    if training.batch_size > 1 and setting.recipe.task != "embeddings":
        rows = training.batch_size * training.gradient_accumulation
        setting = setting.training(batch_size=1, gradient_accumulation=rows)
        yield f"training.batch_size=1 training.gradient_accumulation={rows}", setting
    if setting.recipe.model.quantize == "none" and not isinstance(config, FullConfig):
        yield from _fewer_bits(setting)


def _fewer_bits(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """The frozen base in four bits, or in 16 where the task refuses those."""
    few = setting.model(quantize="nf4")
    try:
        named(setting.recipe.task).check(few.recipe)
    except RecipeError:
        if setting.recipe.model.dtype == "float32":
            yield "model.dtype=bfloat16", setting.model(dtype="bfloat16")
        return
    yield "model.quantize=nf4", few


def _in_cache(config: Any) -> bool:
    made = method(config).implementation if not isinstance(config, FullConfig) else None
    return isinstance(made, type) and issubclass(made, PromptEncoder) and made.goes_into == "cache"


@dataclass(frozen=True)
class Largest:
    """The largest that fits, with all else as it is.

    Attributes:
        tokens: of a row; None where it is not told.
        layers, parameters: of a model of the same width; None where it is not told.
        pixels: of a side of the images that a pipeline learns to make; None for other tasks.
    """

    tokens: int | None
    layers: int | None
    parameters: int | None
    pixels: int | None = None


def largest(setting: Setting, found: Forecast) -> Largest:
    """By two rehearsals each, between which memory goes in a straight line."""
    if found.target.free is None or not found.rehearsal.sizes:
        return Largest(None, None, None)
    layers, parameters = _layers(setting, found) or (None, None)
    return Largest(_tokens(setting, found), layers, parameters, _pixels(setting, found))


def _pixels(setting: Setting, found: Forecast) -> int | None:
    """By another size of images, between which memory goes with their area."""
    unit = getattr(setting.tokenizer, "unit", None)
    if unit is None:
        return None
    own, half = setting.tokenizer.size, setting.tokenizer.size // 2 // unit * unit
    other = half or 2 * own
    try:
        made = forecast(setting.sized(other), found.target, timed=False)
    except Untold:
        return None
    (low, less), (high, more) = sorted(((own, found), (other, made)), key=itemgetter(0))
    steps = [_taken(one, found) for one in (less, more)]
    beside = [[float(one.beside[when].bytes) for one in (less, more)] for when in found.beside]
    most = min(_last(low**2, high**2, taken, found.target.free) for taken in (steps, *beside))
    return math.isqrt(most) // int(unit) * int(unit)


def _tokens(setting: Setting, found: Forecast) -> int | None:
    if len(found.rehearsal.sizes) != 2:
        return None
    most = getattr(_text_config(found), "max_position_embeddings", None)
    short, long = 128, 256
    try:
        made = [forecast(replace(setting, tokens=count), found.target, timed=False) for count in (short, long)]
    except Untold:
        return None
    fit = _last(short, long, [_taken(one, found) for one in made], found.target.free)
    return fit if most is None else min(fit, int(most))


def _layers(setting: Setting, found: Forecast) -> tuple[int, int] | None:
    own = getattr(_text_config(found), "num_hidden_layers", None)
    if own is None:
        return None
    few, more = 1, 3
    try:
        made = [forecast(replace(setting, layers=count), found.target, timed=False) for count in (few, more)]
    except Untold:
        return None
    fit = _last(few, more, [_taken(one, found) for one in made], found.target.free)
    each = (made[1].rehearsal.total - made[0].rehearsal.total) // (more - few)
    return fit, made[0].rehearsal.total + (fit - few) * each


def _text_config(found: Forecast) -> Any:
    config: Any = found.rehearsal.base.config
    return config.get_text_config()


def _taken(one: Forecast, found: Forecast) -> float:
    """Bytes of a small forecast, with as much of an allocator's as the run itself has: its own goes in large steps."""
    return one.peak.alive * found.peak.bytes / found.peak.alive


def _last(low: int, high: int, taken: list[float], free: int | None) -> int:
    """The largest count for which a straight line through two points stays below; at least 0."""
    slope = max(1e-9, (taken[1] - taken[0]) / (high - low))
    return max(0, int(low + ((free or 0) - taken[0]) / slope))
