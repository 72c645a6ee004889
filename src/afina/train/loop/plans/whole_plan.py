"""The whole plan of a run on one device, here or not: figures for programs, and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ....devices.found import Device
from ....devices.memory_use import used_bytes
from ....plan.usage import told_bytes
from ...recipe.sections import Recipe
from ...report.events import Reporter
from ..fast_paths import check_offload
from .base_shares import at_once
from .forecast import Forecast, Target, forecast, target_of
from .planning import outline, told_beside, told_offloaded, told_room, told_time
from .remedies import Largest, largest, remedies
from .setting import Setting, setting_of


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        lines: what it is.
        device: that it is planned for.
        published: whether the device is another one, by published figures.
        parts: bytes at the peak by part.
        bytes: in all. alive: of tensors alone. beside: in all while something is done beside the steps.
        free: bytes that a run may take there; None where that is not known.
        seconds: of a step, of `steps`.
        fits: None where that cannot be told.
        changes: settings in words, and the bytes with them, where it does not fit.
        together: how many such runs fit at once on one base; on a processor in turn, with passes of their own.
        offloaded: bytes of main memory in which activations wait.
        verdict: all that in sentences.
    """

    lines: list[str]
    device: str
    published: bool
    parts: Mapping[str, int]
    bytes: int
    alive: int
    free: int | None
    fits: bool | None
    seconds: float
    steps: int
    largest: Largest
    together: int | None
    offloaded: int = 0
    beside: Mapping[str, int] = field(default_factory=dict)
    changes: list[tuple[str, int, bool]] = field(default_factory=list)
    verdict: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {**vars(self), "parts": dict(self.parts), "largest": vars(self.largest),
                "changes": [{"settings": words, "bytes": size, "fits": fits} for words, size, fits in self.changes],
                }  # fmt: skip


def make(recipe: Recipe, reporter: Reporter, other: str | None = None) -> Plan:
    """The plan of a recipe.

    Args:
        other: a device that is not here, by name; its memory and speed are published figures.

    Raises:
        AfinaError: what would stop the run at its beginning; there is no such device; or what the run takes cannot be
            told.
    """
    if other is not None:
        check_offload(recipe, Device("cuda:0", other))
    setting = setting_of(recipe if other is None else _elsewhere(recipe, other), reporter)
    setting = setting.training(offload=recipe.training.offload)
    target = target_of(setting.recipe.model.device, other)
    found = forecast(setting, target)
    tried = [(words, one.bytes, bool(one.fits)) for words, one in remedies(setting, target)] \
        if found.fits is False else []  # fmt: skip
    most = largest(setting, found)
    together = None if target.free is None else at_once(found, target.free, in_turn=not target.gpu)
    assert found.seconds is not None
    beside = {when: peak.bytes for when, peak in found.beside.items()}
    plan = Plan(outline(setting), target.name, target.device is None, found.peak.parts, found.peak.bytes,
                found.peak.alive, target.free, found.fits, found.seconds, setting.steps, most, together,
                found.rehearsal.offloaded, beside, tried)  # fmt: skip
    plan.verdict.extend(_sentences(setting, found, plan))
    return plan


def _elsewhere(recipe: Recipe, other: str) -> Recipe:
    """The recipe as it would be resolved on a GPU; its steps are rehearsed on this machine's processor."""
    from ....methods.baselines.full import FullConfig
    from ...recipe.settings import method_config

    target_of("cpu", other)  # a name that is not known is told before anything is read
    out = recipe.model_copy(deep=True)
    out.model.device = "cpu"
    out.training.offload = "none"
    if out.model.dtype == "auto" and not isinstance(method_config(out), FullConfig):
        out.model.dtype = "bfloat16"
    return out


def _sentences(setting: Setting, found: Forecast, plan: Plan) -> Iterator[str]:
    target = found.target
    source = "published figures, nothing measured there" if plan.published else "measured here"
    yield f"device: {target.name} ({source})"
    if not target.gpu:
        yield f"memory: beside {told_bytes(used_bytes())} that the libraries hold already"
    yield from told_beside(found)
    yield f"memory: {told_bytes(plan.bytes)}{told_room(found)}"
    yield from told_offloaded(found)
    for words, size, fits in plan.changes:
        yield f"with {words}: {told_bytes(size)}, {'fits' if fits else 'does not fit'}"
    yield told_time(setting, found)
    yield from _most(plan, target)


def _most(plan: Plan, target: Target) -> Iterator[str]:
    if plan.largest.tokens is not None:
        yield f"longest rows that fit: {plan.largest.tokens:,} tokens"
    if plan.largest.pixels is not None:
        yield f"largest images that fit: {plan.largest.pixels:,} pixels a side"
    if plan.largest.parameters is not None:
        yield (f"largest model of this width that fits: {plan.largest.layers:,} layers, "
               f"{plan.largest.parameters / 1e9:,.2f} billion parameters")  # fmt: skip
    if plan.together is not None and plan.fits:
        how = "at once on one base (train_many, tune)" if target.gpu else "on one base between two rungs (tune)"
        yield f"such runs {how}: {plan.together}"
