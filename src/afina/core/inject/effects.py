"""Entries of a config that change nothing on a model: names that match nothing, keys that are never the first."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from ...errors import AfinaWarning, nearest
from ..config import LayerConfig, method
from ..hosts.replacement import Tied
from ..validate import idle_options
from .patterns import Matcher, SavedNames, key_for
from .slots import Slot, plain_module, slots, tied_slots
from .targets import layer_number, leaves_and_paths, matching_slots, slots_in_layers

MOST_TOLD = 8
"""Entries that one warning names; it counts the others."""


class Idle(NamedTuple):
    """An entry of a field that has no effect, and what it may have been meant to be."""

    field: str
    entry: object
    known: Sequence[str] = ()

    def __str__(self) -> str:
        close = nearest(str(self.entry), self.known, 2)
        return f"{self.field}: {str(self.entry)[:80]!r}" + (f" (nearest: {', '.join(close)})" if close else "")


def warn_of_idle_entries(
    model: nn.Module, config: LayerConfig, adapted: Sequence[Sequence[str]], adapters: Sequence[Any]
) -> None:
    """Tell which entries of a config have no effect, in one warning.

    Args:
        adapted: the names of each adapted place: its module's path, and its parameter's if it is adapted alone.
        adapters: what stands there, and other things that come along.
    """
    idle: list[object] = list(idle_entries(model, config, adapted))
    paths = [place[0] for place in adapted]
    idle += config.idle(model, paths)
    kind: Any = method(config).implementation
    if made := [a for a in adapters if isinstance(a, kind)]:  # prompts stand at no layer
        idle += kind.idle(config, made)
    idle += [] if config.inference_mode else _idle_switches(model, config, paths, adapters)
    # What is loaded to be used was set for a training that is over.
    idle += [] if config.inference_mode else idle_options(config, config.needs)
    if idle:
        told = [*map(str, idle[:MOST_TOLD]), *([f"{len(idle) - MOST_TOLD} more"] if len(idle) > MOST_TOLD else [])]
        warnings.warn(f"{config.peft_type}: without effect on this model: {'; '.join(told)}", AfinaWarning, 6)


def _idle_switches(
    model: nn.Module, config: LayerConfig, paths: Sequence[str], adapters: Sequence[Any]
) -> Iterator[str]:
    kinds = {type(plain_module(model.get_submodule(path))).__name__ for path in paths}
    if getattr(config, "fan_in_fan_out", False) and "Conv1D" not in kinds:
        yield "fan_in_fan_out (no adapted layer stores its weight so)"
    if not getattr(config, "ensure_weight_tying", False):
        return
    if not tied_slots(model):
        yield "ensure_weight_tying (no two embeddings are tied)"
    elif not any(isinstance(a, Tied) for a in adapters) and not config.companions():
        yield "ensure_weight_tying (no tied embedding is adapted)"


def idle_entries(model: nn.Module, config: LayerConfig, adapted: Sequence[Sequence[str]]) -> Iterator[Idle]:
    """Every entry that has no effect."""
    every = list(slots(model))
    modules, names = [s.name for s in every], leaves_and_paths(every)
    yield from _idle_targets(model, config, every)
    paths = [n for place in adapted for n in place]
    leaves = _leaves(paths)
    for field in config.lists_of_modules:
        yield from _unmatched(field, getattr(config, field), paths, leaves)
    for field in config.keyed_by_module:
        patterns = getattr(config, field, None)
        if isinstance(patterns, Mapping):
            first = {key_for(place, patterns, field) for place in adapted}
            yield from (Idle(field, key, leaves) for key in patterns if key not in first)
    parameters = [place[-1] for place in adapted if len(place) > 1]
    yield from _unmatched("target_parameters", getattr(config, "target_parameters", None), parameters,
                          [n for n, p in model.named_parameters() if p.dim() in (2, 3)])  # fmt: skip
    yield from _unmatched("modules_to_save", config.modules_to_save, modules, names, SavedNames)


def _idle_targets(model: nn.Module, config: LayerConfig, every: list[Slot]) -> Iterator[Idle]:
    if not config.target_modules:
        return
    matching = matching_slots(model, config, every)
    if isinstance(config.target_modules, list):
        yield from _unmatched("target_modules", config.target_modules, [s.name for s in matching],
                              leaves_and_paths(every))  # fmt: skip
    chosen = [s.name for s in slots_in_layers(matching, config)]
    yield from _unmatched("exclude_modules", config.exclude_modules, chosen, _leaves(chosen))
    if config.layers_to_transform is None:
        return
    numbers = config.layers_to_transform
    there = {layer_number(s.name, config.layers_pattern) for s in matching}
    for number in numbers if isinstance(numbers, list) else [numbers]:
        if number not in there:
            yield Idle("layers_to_transform", number)
    for pattern in config.layers_pattern if isinstance(config.layers_pattern, list) else []:
        if all(layer_number(s.name, [pattern]) is None for s in matching):
            yield Idle("layers_pattern", pattern)


def _unmatched(
    field: str, wanted: Any, paths: Iterable[str], known: Sequence[str], kind: type[SavedNames] | None = None
) -> Iterator[Idle]:
    """The entries of a list or pattern that none of the paths matches."""
    if wanted:
        matches = Matcher(wanted, field) if kind is None else kind(wanted)
        for path in paths:
            matches(path)
        yield from (Idle(field, entry, known) for entry in matches.unused())


def _leaves(paths: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*(p.rsplit(".", 1)[-1] for p in paths), *paths]))
