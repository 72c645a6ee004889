"""Experts that were modules of their own, under the names that scripts know, and are stacked in one parameter now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import TargetError
from ..config import LayerConfig
from .patterns import name_in
from .slots import plain_module, slots
from .targets import is_linear

ROUTER = "gate"


@dataclass(frozen=True)
class Stack:
    """A parameter that holds what several projections of all experts were.

    Attributes:
        parameter: the end of its path (`gate_up_proj`).
        places: the paths of the modules that have it.
        projections: what is in it, by the names of before (`gate_proj`, `up_proj`).
    """

    parameter: str
    places: tuple[str, ...]
    projections: tuple[str, ...]

    def wanted(self, targets: list[str] | str) -> list[str]:
        """The projections that `target_modules` means."""
        if isinstance(targets, list):
            return [p for p in self.projections if any(t.split(".")[-1] == p for t in targets)]
        paths = {p: [f"{at}{way}.{p}" for at in self.places for way in ("", ".0")] for p in self.projections}
        everything = targets == "all-linear"
        return [p for p in self.projections if everything or any(name_in(path, targets) for path in paths[p])]


def name_stacks(model: nn.Module, config: LayerConfig) -> None:
    """Let LoRA's targets that were experts' projections before transformers 5 mean the parameters that hold them now:
    they go to `target_parameters`, with the ranks and scalings of all that is in one. In place.

    Raises:
        TargetError: a part of what is stacked in one parameter is wanted, and not the rest.
    """
    chosen, options = config.target_modules, vars(config)
    if config.peft_type != "LORA" or not chosen:
        return
    found = [(stack, stack.wanted(chosen)) for stack in stacks(model)]
    found = [(stack, wanted) for stack, wanted in found if wanted]
    for stack, wanted in found:
        if missing := [p for p in stack.projections if p not in wanted]:
            raise TargetError(f"{', '.join(stack.projections)} of all experts are one parameter here",
                              where="target_modules", got=", ".join(wanted),
                              fix=f"name {', '.join(missing)} too")  # fmt: skip
        if (count := len(stack.projections)) > 1:
            key = rf".*\.{re.escape(stack.parameter)}"
            options["rank_pattern"] = {key: options["r"] * count, **(options["rank_pattern"] or {})}
            options["alpha_pattern"] = {key: options["lora_alpha"] * count, **(options["alpha_pattern"] or {})}
    if not found:
        return
    named = [*(options["target_parameters"] or []), *(stack.parameter for stack, _ in found)]
    options["target_parameters"] = list(dict.fromkeys(named))
    config.target_modules = _without_stacks(model, chosen, {p for _, wanted in found for p in wanted})


def _without_stacks(model: nn.Module, targets: list[str] | str, stacked: set[str]) -> list[str] | str:
    """The targets that still name modules, such as those of layers without experts."""
    if targets == "all-linear":
        return targets
    names = [s.name for s in slots(model) if is_linear(plain_module(s.module))]
    if isinstance(targets, str):
        own = [n for n in names if name_in(n, targets)]
        return own if not own or ROUTER in stacked else targets
    return [t for t in targets if t.split(".")[-1] not in stacked or any(name_in(n, [t]) for n in names)]


def stacks(model: nn.Module) -> list[Stack]:
    """The parameters of a model of transformers that hold projections of all experts, and the weights of its routers,
    which were linear layers too."""
    places: dict[str, list[str]] = {}
    known = _known(getattr(getattr(model, "config", None), "model_type", None))
    for slot in slots(model) if known else ():
        module = plain_module(slot.module)
        for name, parameter in module.named_parameters(recurse=False):
            if name in known and parameter.dim() == 3:
                places.setdefault(name, []).append(slot.name)
        if slot.attribute == ROUTER and not isinstance(module, nn.Linear) and hasattr(slot.parent, "experts"):
            places.setdefault(f"{ROUTER}.weight", []).append(slot.name.rpartition(".")[0])
    return [Stack(name, tuple(at), known.get(name, (ROUTER,))) for name, at in places.items()]


def _known(model_type: Any) -> Mapping[str, tuple[str, ...]]:
    """What transformers stacks when it reads an architecture's older files: parameter -> the projections in it."""
    if not isinstance(model_type, str):
        return {}
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    found = [c for c in get_checkpoint_conversion_mapping(model_type) or () if isinstance(c, WeightConverter)]
    merged = [c for c in found if len(c.target_patterns) == 1 and all("experts.*." in s for s in c.source_patterns)]
    return {
        c.target_patterns[0].rpartition(".")[2]: tuple(
            s.split(".experts.*.")[1].split(".")[0] for s in c.source_patterns
        )
        for c in merged
    }
