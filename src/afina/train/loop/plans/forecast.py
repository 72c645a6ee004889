"""What a run takes of one device: the peak of its memory by part, and the time of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ....devices.found import Device
from ....devices.memory_use import free_bytes
from ....devices.place import place
from ....kernels.cpu import blocks
from ....plan.footprint import Peak, on_cuda, on_processor
from ....plan.probe import Speed, speed_of
from ....plan.published import Figures, published
from ...tasks import named
from .rehearsal import STEPS, Rehearsal, Rehearsed, rehearse, rehearse_reading
from .setting import Setting
from .unread import unread_bytes

READING = "while rows are read, before the first step"


@dataclass(frozen=True)
class Target:
    """The device that a run is planned for.

    Attributes:
        device: of this machine; None where it is another one.
        figures: published ones of a device that is not here.
        free: bytes that a run may take; None where that is not known.
    """

    name: str
    device: Device | None
    figures: Figures | None
    free: int | None

    @property
    def gpu(self) -> bool:
        """Whether memory is CUDA's, with its caching allocator."""
        return self.device is None or self.device.kind != "cpu"

    def speed(self, dtype: str) -> Speed:
        """How fast it is in a dtype: measured, or by its published figures."""
        if self.device is None:
            assert self.figures is not None
            return self.figures.speed(dtype)
        return speed_of(self.device, getattr(torch, dtype))


def target_of(wanted: str, other: str | None = None) -> Target:
    """The device of this machine, or the published one of the name `other`.

    Raises:
        RecipeError: there is no such.
    """
    if other is None:
        device = place(wanted)
        return Target(device.name, device, None, free_bytes(device.name))
    name, figures = published(other)
    return Target(name, None, figures, figures.free)


@dataclass(frozen=True)
class Forecast:
    """What was found of a setting on a target.

    Attributes:
        beside: the peaks while models of their own read rows, before the first step, and while images or answers are
            drawn; none where that is not done, or drawing takes no more than a step.
        seconds: of a step of the optimizer, with all its batches; None where it was not asked for.
        flops: of a batch's products.
    """

    target: Target
    peak: Peak
    rehearsal: Rehearsal
    seconds: float | None = None
    flops: int = 0
    beside: Mapping[str, Peak] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The most at any time."""
        return max(self.peak.bytes, *(peak.bytes for peak in self.beside.values()), 0)

    @property
    def fits(self) -> bool | None:
        """Whether there is room; None where nothing is known of the device's memory."""
        free = self.target.free
        return None if free is None else all(p.fits for p in (self.peak, *self.beside.values())) and self.bytes <= free


def forecast(setting: Setting, target: Target, *, timed: bool = True) -> Forecast:
    """What a run takes.

    Args:
        timed: tell the time too.

    Raises:
        Untold: with the reason.
    """
    found = rehearse(setting, gpu=target.gpu, steps=2 if target.gpu else STEPS)
    unread, beside = unread_bytes(setting, found.base), dict[str, Peak]()
    around = named(setting.recipe.task).around(setting.recipe, setting.location, setting.data)
    rows, fast = 0 if around is None else around.kept, setting.recipe.training.fast
    peak = _peak(target, found, unread, rows, fast)
    if around is not None and around.reading is not None:
        reading = rehearse_reading(setting, around.reading, mapped=around.mapped)
        beside[READING] = _peak(target, reading, reading.unread, rows, fast)
    if around is not None and found.drawing is not None:
        drawn = _peak(target, found.drawing, unread, rows, fast)
        beside.update({f"while {around.drawn}": drawn} if drawn.bytes > peak.bytes else {})
    if not timed:
        return Forecast(target, peak, found, beside=beside)
    dtype = "bfloat16" if setting.recipe.model.dtype == "auto" else setting.recipe.model.dtype
    speed = target.speed(dtype)
    seconds = speed.step(found.usual) * setting.recipe.training.gradient_accumulation
    if found.drawing is not None and found.drawing.work is not None:
        seconds += speed.step(found.drawing.work)
    return Forecast(target, peak, found, seconds, found.usual.flops, beside)


def _peak(target: Target, found: Rehearsed, unread: int, rows: int, fast: bool) -> Peak:
    """What was rehearsed, put to the target's allocator; what is kept of rows lies in main memory."""
    if target.gpu:
        return on_cuda(found.events, found.parts, found.weights, target.free)
    plain = fast and not blocks.why_not()
    return on_processor(found.events, found.parts, found.weights, unread, rows, plain=plain)
