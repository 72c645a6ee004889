"""Which modules of a model a config adapts; the one matcher for all uses."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ...errors import TargetError, nearest_to_all
from ..config import LayerConfig
from ..files.budget import budget
from ..layers.recognise import base_weight
from ..layers.storages import quantised_weight
from .architectures import DEFAULT_TARGETS
from .patterns import Matcher, SavedNames, full_match
from .slots import Slot, output_head, plain_module, slots, with_tables


def is_linear(module: nn.Module) -> bool:
    """Whether "all-linear" means this module: nn.Linear, a quantised one, or transformers' Conv1D."""
    conv1d = type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    return isinstance(module, nn.Linear) or conv1d or quantised_weight(module) is not None


def linear_layers(model: nn.Module) -> list[str]:
    """The names of all layers that "all-linear" means in a model: not its output head."""
    head = plain_module(output_head(model))
    return [s.name for s in slots(model) if is_linear(plain_module(s.module)) and plain_module(s.module) is not head]


def biased(model: nn.Module) -> list[str]:
    """The names of all modules that have a bias of their own, but for those whose weight is computed from others, as
    weight norm does."""
    plain = ((s.name, plain_module(s.module)) for s in slots(model))
    return [name for name, module in plain if base_weight(module).bias is not None and not is_parametrized(module)]


def normalisations(model: nn.Module) -> list[str]:
    """The names of all normalisation layers, which are known by their class's name (LayerNorm, LlamaRMSNorm, ...)."""
    kinds = {s.name: type(plain_module(s.module)).__name__.lower() for s in slots(model)}
    return [n for n, kind in kinds.items() if kind.endswith(("norm", "norm1d", "norm2d", "norm3d"))]


_ATTENTION = ("self_attn", "attention", "attn", "self_attention", "SelfAttention")
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "output", "fc2", "DenseReluDense")


def sublayers(model: nn.Module) -> tuple[list[str], list[str]]:
    """The names of the attention and of the feed-forward sublayers of every block, by the names that models use.

    Raises:
        TargetError: none is recognised.
    """
    blocks = [s for s in slots(model) if s.attribute.isdigit() and any(True for _ in plain_module(s.module).children())]

    def pick(block: Slot, names: tuple[str, ...]) -> list[str]:
        own = dict(plain_module(block.module).named_children())
        return [f"{block.name}.{n}" for n in names if n in own][:1]

    attention = [n for b in blocks for n in pick(b, _ATTENTION)]
    feed_forward = [n for b in blocks for n in pick(b, _FEED_FORWARD)]
    if not attention and not feed_forward:
        raise TargetError("no attention or feed-forward sublayers are recognised", where="target_modules",
                          fix="name the modules to adapt in target_modules")  # fmt: skip
    return attention, feed_forward


def resolve_targets(model: nn.Module, config: LayerConfig) -> list[str] | str:
    """The config's targets, or the defaults for the model's architecture; of a model that takes more than text, those
    for its language model.

    Raises:
        TargetError: neither given nor known for this architecture.
    """
    if config.target_modules is not None:
        return config.target_modules
    own = config.own_targets(model)
    if own is not None:
        saved = SavedNames(config.modules_to_save or [])
        return own if isinstance(own, str) else [n for n in own if not saved(n)]
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    known = {**DEFAULT_TARGETS, **config.default_targets}
    if model_type in known:
        return known[model_type]
    within = _text_model(model)
    if within is not None and isinstance(found := known.get(within[1], ""), list):
        return rf"(.*\.)?{re.escape(within[0])}\.(.*\.)?({'|'.join(map(re.escape, found))})"
    raise TargetError(
        f"no default targets are known for {model_type or type(model).__name__!r}", where="target_modules",
        fix='set target_modules="all-linear" or a list of names, such as '
        + ", ".join(_leaf_names(model)[:5]),
    )  # fmt: skip


def _text_model(model: nn.Module) -> tuple[str, str] | None:
    """Name and `model_type` of the language model in one that takes images or sounds too; None where there is none."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config") or (text := config.get_text_config()) is config:
        return None
    kinds = (
        (name, getattr(getattr(module, "config", None), "model_type", None)) for name, module in model.named_modules()
    )
    return next(((name, kind) for name, kind in kinds if name and kind == text.model_type), None)


def select(model: nn.Module, config: LayerConfig) -> list[str]:
    """The names of the modules to adapt, in the model's order.

    Raises:
        TargetError: nothing matches; names the five nearest modules.
    """
    return [slot.name for slot in select_slots(model, config)]


@budget()
def select_slots(model: nn.Module, config: LayerConfig) -> list[Slot]:
    """As `select`, with the places themselves."""
    every = list(slots(model))
    matching = matching_slots(model, config, every)
    in_layers = slots_in_layers(matching, config)
    excluded = Matcher(config.exclude_modules or [], "exclude_modules")
    found = [s for s in in_layers if not excluded(s.name)] if config.exclude_modules else in_layers
    if not found and not getattr(config, "target_parameters", None):
        _explain(every, config, len(matching), len(in_layers))
    return with_tables(model, config, found)


def matching_slots(model: nn.Module, config: LayerConfig, every: list[Slot]) -> list[Slot]:
    """Those that `target_modules` means, in whatever layer, excluded or not."""
    if config.target_modules is None and getattr(config, "target_parameters", None):
        return []
    if config.target_modules == "all-linear":
        head, saved = plain_module(output_head(model)), SavedNames(config.modules_to_save or [])
        return [
            s
            for s in every
            if is_linear(plain_module(s.module)) and plain_module(s.module) is not head and not saved(s.name)
        ]
    wanted = Matcher(resolve_targets(model, config))
    return [s for s in every if wanted(s.name)]


def saved_slots(model: nn.Module, wanted: Collection[str]) -> list[Slot]:
    """Those of which copies are trained whole: not what lies inside another one of them."""
    is_wanted, found = SavedNames(wanted), list[Slot]()
    for slot in slots(model):
        if is_wanted(slot.name) and not any(slot.name.startswith(f"{outer.name}.") for outer in found):
            found.append(slot)
    return found


def slots_in_layers(found: list[Slot], config: LayerConfig) -> list[Slot]:
    """Those of the layers that are to be adapted."""
    return [s for s in found if is_in_layers(s.name, config)]


def is_in_layers(name: str, config: LayerConfig) -> bool:
    """Whether a module lies in one of the layers that are to be adapted."""
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return True
    return layer_number(name, config.layers_pattern) in (wanted if isinstance(wanted, list) else [wanted])


@budget()
def settle(model: nn.Module, config: LayerConfig) -> list[str] | str | None:
    """The targets as they are written to the file: "all-linear" and defaults become names, so that they mean the same
    on every base."""
    wanted = config.target_modules
    if wanted is None:
        return None if getattr(config, "target_parameters", None) else _present(model, resolve_targets(model, config))
    if wanted != "all-linear":
        return wanted
    chosen = {s.name for s in select_slots(model, config)}
    leaves = {n.rsplit(".", 1)[-1] for n in chosen}
    others = {s.name for s in slots(model)} - chosen
    elsewhere = {name.rsplit(".", 1)[-1] for name in others}
    unique = {leaf for leaf in leaves if not leaf.isdigit() and leaf not in elsewhere}
    return sorted(unique | {n for n in chosen if n.rsplit(".", 1)[-1] not in unique})


def _present(model: nn.Module, defaults: list[str] | str) -> list[str] | str:
    """The default targets that this model has, of a list for many."""
    if isinstance(defaults, str):
        return defaults
    known = Matcher(defaults)
    for slot in slots(model):
        known(slot.name)
    idle = set(known.unused())
    return type(defaults)(n for n in defaults if n not in idle) or defaults


def layer_number(name: str, patterns: list[str] | str | None = None) -> int | None:
    """The number of the layer that a module belongs to: the first one after `patterns`, else the first number inside,
    which is not that of an expert. A number at the second place counts only where no other one follows."""
    parts = name.split(".")
    if not patterns:
        inside = [int(p) for p in (*parts[2:-1], *parts[1:2]) if p.isdigit()]
        return inside[0] if inside else None
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        match = full_match(pattern, name, "layers_pattern", r"(?:.*?\.)??{}\.(?P<number>\d+)(?:\..*)?")
        if match:
            return int(match.group("number"))
    return None


def _leaf_names(model: nn.Module) -> list[str]:
    names = {
        s.name.rsplit(".", 1)[-1]: None for s in slots(model) if next(s.module.parameters(False), None) is not None
    }
    return [n for n in names if not n.isdigit()] or [s.name for s in slots(model)]


def _explain(every: list[Slot], config: LayerConfig, matched: int, in_layers: int) -> None:
    wanted = config.target_modules
    if in_layers:
        raise TargetError(f"all {in_layers} matching modules are excluded", where="exclude_modules",
                          got=config.exclude_modules)  # fmt: skip
    if matched:
        raise TargetError(f"{matched} modules match, but none in the chosen layers", where="layers_to_transform",
                          got=config.layers_to_transform)  # fmt: skip
    words = [wanted] if isinstance(wanted, str) else wanted or []
    raise TargetError("the targets match no module of the model", where="target_modules", got=wanted,
                      fix=nearest_to_all(words, leaves_and_paths(every)))  # fmt: skip


def leaves_and_paths(every: list[Slot]) -> list[str]:
    """What a module can be called in a list: the last part of its path, or all of it."""
    return list(dict.fromkeys([*(s.name.rsplit(".", 1)[-1] for s in every), *(s.name for s in every)]))
