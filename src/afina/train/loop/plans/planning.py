"""What a run will be and take, said before it runs: rows, steps, parameters, memory, time, disk."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ....devices.memory_use import free_bytes, used_bytes
from ....devices.place import place
from ....devices.ranks import size
from ....plan.footprint import Peak
from ....plan.usage import told_bytes, told_seconds
from ...recipe.sections import Recipe
from ...report.events import Reporter
from ...tasks import named
from ..adapt import plan
from ..begin import begin_config
from .base_shares import at_once
from .forecast import Forecast, Target, forecast
from .rehearsal import Untold
from .remedies import remedies
from .setting import Setting, setting_of
from .sharing_plan import shared_lines


def planned(recipe: Recipe, reporter: Reporter, processes: int = 1) -> list[str]:
    """Lines that say what will happen. Weights are not loaded.

    Args:
        processes: how many are to share the run, on a device each.

    Raises:
        AfinaError: what would stop the run at its beginning.
    """
    setting = setting_of(recipe, reporter)
    device = place(setting.recipe.model.device)
    target = Target(device.name, device, None, free_bytes(device.name))
    try:
        found = forecast(setting, target)
    except Untold as error:
        return [*outline(setting), f"{error.what} ({error.fix or error.got})"]
    lines = [*outline(setting), *_memory(setting, found)]
    if processes > 1 and setting.recipe.model.quantize == "none":
        lines += shared_lines(setting.recipe, found.rehearsal, working(found), processes)
    return [*lines, *_fits(setting, found), told_time(setting, found)]


def outline(setting: Setting) -> list[str]:
    """What a run is: its method, steps and rows."""
    recipe, data = setting.recipe, setting.data
    held_out = len(data.held_out) if data.held_out is not None else 0
    width = named(recipe.task).width(setting.location, recipe.model)
    return [plan(recipe, begin_config(recipe, setting.steps), setting.steps, width),
            f"rows: {len(data.train):,} to train on, {held_out:,} held out"]  # fmt: skip


def working(found: Forecast) -> int:
    """Bytes that a run takes beside the base's weights."""
    return found.peak.bytes - found.peak.parts["weights"]


def _memory(setting: Setting, found: Forecast) -> Iterator[str]:
    trainable, total, kept = found.rehearsal.trainable, found.rehearsal.total, found.rehearsal.trained
    yield (
        f"trained parameters: {trainable:,} of {total:,} ({trainable / total:.2%}); "
        f"{told_bytes(kept)} on disk, {told_bytes(3 * kept)} in each of "
        f"{setting.recipe.training.keep_checkpoints} checkpoints"
    )
    yield (
        f"memory: weights {told_bytes(found.peak.parts['weights'])}, a step of {_told_rows(setting, found)} "
        f"{told_bytes(working(found))}"
    )


def _told_rows(setting: Setting, found: Forecast) -> str:
    """How many rows a batch has, and of what size."""
    first = next((name for name, value in found.rehearsal.batch.items() if isinstance(value, Tensor)), "")
    rows, *sizes = found.rehearsal.sizes
    if first == "means":
        return f"{rows} images of {setting.tokenizer.size} x {setting.tokenizer.size} pixels"
    if len(sizes) < 2 and first != "input_values":
        return f"{rows} rows of up to {sizes[0]} tokens"
    of = " x ".join(map(str, sizes))
    return f"{rows} images of {of}" if first == "pixel_values" else f"{rows} sounds as {of} numbers"


def told_parts(found: Forecast) -> str:
    """The peak by part."""
    return _parts(found.peak)


def _parts(peak: Peak) -> str:
    return ", ".join(f"{part} {told_bytes(count)}" for part, count in peak.parts.items() if count >= 2**10)


def _fits(setting: Setting, found: Forecast) -> Iterator[str]:
    """Whether it fits, and what would make it."""
    needed = f"in all {told_bytes(found.peak.bytes)} ({told_parts(found)})"
    if not found.target.gpu:
        needed += f", beside {told_bytes(used_bytes())} of the libraries"
    yield from told_beside(found)
    yield f"memory: {needed}{told_room(found)}"
    yield from told_offloaded(found)
    if found.fits is False:
        for words, other in remedies(setting, found.target):
            yield f"memory: {told_bytes(other.bytes)} with {words}"


def told_beside(found: Forecast) -> Iterator[str]:
    """What is taken beside the steps, where models of their own do something there."""
    for when, peak in found.beside.items():
        yield f"memory: {told_bytes(peak.bytes)} {when} ({_parts(peak)})"


def told_offloaded(found: Forecast) -> Iterator[str]:
    """Where activations wait (`training.offload`)."""
    if found.rehearsal.offloaded:
        size = told_bytes(found.rehearsal.offloaded)
        yield f"main memory: {size} pinned for activations; the time leaves out copies that computing does not hide"


def told_room(found: Forecast) -> str:
    """Whether there is room, as the end of a sentence."""
    if found.fits is None:
        return ""
    return f"; {told_bytes(found.target.free or 0)} are free: it {'fits' if found.fits else 'does not fit'}"


def told_time(setting: Setting, found: Forecast) -> str:
    """What training takes, without measuring before and after."""
    assert found.seconds is not None
    where = f"on {found.target.name} by its published figures" if found.target.figures else "here"
    step = f"{found.seconds:.2g} s" if found.seconds < 10 else told_seconds(found.seconds)
    return (f"time: training about {told_seconds(found.seconds * setting.steps)} {where}, {step} a step "
            f"({found.flops / 1e9:,.1f} GFLOP a batch), with nothing else running")  # fmt: skip


def too_large(setting: Setting) -> str | None:
    """Why a run does not fit one device; None where it does, or where that cannot be told.

    Processes on one machine's processor share its memory.
    """
    device = place(setting.recipe.model.device)
    free = free_bytes(device.name)
    if free is None:
        return None
    free //= size() if device.kind == "cpu" else 1
    try:
        found = forecast(setting, Target(device.name, device, None, free), timed=False)
    except Untold:
        return None
    if found.fits:
        return None
    return f"it takes {told_bytes(found.bytes)} and {told_bytes(free)} are free on {device.name}"


def fitting(recipe: Recipe, *, in_turn: bool) -> int | None:
    """How many runs such as this one fit the device at once, with the base's weights in memory once; at least 1, and
    None where that cannot be told.

    Args:
        in_turn: each has passes of its own while the others wait.
    """
    setting = setting_of(recipe, Reporter())
    device = place(setting.recipe.model.device)
    free = free_bytes(device.name)
    if free is None:
        return None
    try:
        found = forecast(setting, Target(device.name, device, None, free), timed=False)
    except Untold:
        return None
    return at_once(found, free, in_turn=in_turn)
