"""Which modules of a model a config adapts; the one matcher for all uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import TargetError, nearest
from ..config import LayerConfig
from ..layers.recognise import base_weight
from ..layers.storages import quantised_weight
from .architectures import DEFAULT_TARGETS
from .patterns import WholeNames, full_match, name_in


@dataclass
class Slot:
    """A place in a model that can hold a host."""

    name: str
    """The module's name in the plain model, without hosts."""
    parent: nn.Module
    attribute: str
    module: nn.Module
    """The plain module, or the host that already stands there."""

    def put(self, module: nn.Module) -> None:
        """Replace the module."""
        self.parent._modules[self.attribute] = module
        self.module = module


def slots(model: nn.Module) -> Iterator[Slot]:
    """Every module below `model` by its name in the plain model; adapters are not entered, hosts are transparent."""
    from ..hosts.host import Host

    found: list[Slot] = []
    seen = {id(model)}

    def walk(parent: nn.Module, prefix: str) -> None:
        for attribute, module in parent._modules.items():
            if module is None or id(module) in seen:
                continue
            seen.add(id(module))
            name = f"{prefix}{attribute}"
            found.append(Slot(name, parent, attribute, module))
            plain = module
            while isinstance(plain, Host):
                plain = plain.base_layer
            if plain._modules and (plain is not module or not isinstance(module, Host)):
                walk(plain, f"{name}.")

    walk(model, "")
    return iter(found)


def output_head(model: nn.Module) -> nn.Module | None:
    """The output embeddings of a language model, or None."""
    getter = getattr(model, "get_output_embeddings", None)
    try:
        head = getter() if callable(getter) else None
    except NotImplementedError:
        return None
    return head if isinstance(head, nn.Module) else None


def is_linear(module: nn.Module) -> bool:
    """Whether "all-linear" means this module: nn.Linear, a quantised one, or transformers' Conv1D."""
    conv1d = type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    return isinstance(module, nn.Linear) or conv1d or quantised_weight(module) is not None


def linear_layers(model: nn.Module) -> list[str]:
    """The names of all layers that "all-linear" means in a model: not its output head."""
    head = _plain(output_head(model))
    return [s.name for s in slots(model) if is_linear(_plain(s.module)) and _plain(s.module) is not head]


def biased(model: nn.Module) -> list[str]:
    """The names of all modules that have a bias of their own."""
    return [s.name for s in slots(model) if base_weight(_plain(s.module)).bias is not None]


def normalisations(model: nn.Module) -> list[str]:
    """The names of all normalisation layers, which are known by their class's name (LayerNorm, LlamaRMSNorm, ...)."""
    kinds = {s.name: type(_plain(s.module)).__name__.lower() for s in slots(model)}
    return [n for n, kind in kinds.items() if kind.endswith(("norm", "norm1d", "norm2d", "norm3d"))]


_ATTENTION = ("self_attn", "attention", "attn", "self_attention", "SelfAttention")
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "output", "fc2", "DenseReluDense")


def sublayers(model: nn.Module) -> tuple[list[str], list[str]]:
    """The names of the attention and of the feed-forward sublayers of every block, by the names that models use.

    Raises:
        TargetError: none is recognised.
    """
    blocks = [s for s in slots(model) if s.attribute.isdigit() and any(True for _ in _plain(s.module).children())]

    def pick(block: Slot, names: tuple[str, ...]) -> list[str]:
        own = dict(_plain(block.module).named_children())
        return [f"{block.name}.{n}" for n in names if n in own][:1]

    attention = [n for b in blocks for n in pick(b, _ATTENTION)]
    feed_forward = [n for b in blocks for n in pick(b, _FEED_FORWARD)]
    if not attention and not feed_forward:
        raise TargetError("no attention or feed-forward sublayers are recognised", where="target_modules",
                          fix="name the modules to adapt in target_modules")  # fmt: skip
    return attention, feed_forward


def resolve_targets(model: nn.Module, config: LayerConfig) -> list[str] | str:
    """The config's targets, or the defaults for the model's architecture.

    Raises:
        TargetError: neither given nor known for this architecture.
    """
    if config.target_modules is not None:
        return config.target_modules
    own = config.own_targets(model)
    if own is not None:
        saved = config.modules_to_save or []
        return own if isinstance(own, str) else [n for n in own if not name_in(n, saved, "modules_to_save")]
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    known = {**DEFAULT_TARGETS, **config.default_targets}
    if model_type in known:
        return known[model_type]
    raise TargetError(
        f"no default targets are known for {model_type or type(model).__name__!r}", where="target_modules",
        fix='set target_modules="all-linear" or a list of names, such as '
        + ", ".join(_leaf_names(model)[:5]),
    )  # fmt: skip


def select(model: nn.Module, config: LayerConfig) -> list[str]:
    """The names of the modules to adapt, in the model's order.

    Raises:
        TargetError: nothing matches; names the five nearest modules.
    """
    return [slot.name for slot in select_slots(model, config)]


def select_slots(model: nn.Module, config: LayerConfig) -> list[Slot]:
    """As `select`, with the places themselves."""
    every = list(slots(model))
    saved = config.modules_to_save or []
    head = output_head(model)
    if config.target_modules is None and getattr(config, "target_parameters", None):
        found = []
    elif config.target_modules == "all-linear":
        found = [s for s in every if is_linear(_plain(s.module)) and _plain(s.module) is not _plain(head)
                 and not name_in(s.name, saved, "modules_to_save")]  # fmt: skip
    else:
        wanted = resolve_targets(model, config)
        # A set is looked up once for each ending of a name, which matters where targets are hundreds of whole names.
        quick = frozenset(wanted) if isinstance(wanted, list) and not isinstance(wanted, WholeNames) else wanted
        found = [s for s in every if name_in(s.name, quick)]
    matched = len(found)
    found = [s for s in found if _in_layers(s.name, config)]
    in_layers = len(found)
    if config.exclude_modules:
        found = [s for s in found if not name_in(s.name, config.exclude_modules, "exclude_modules")]
    if not found and not getattr(config, "target_parameters", None):
        _explain(every, config, matched, in_layers)
    return found


def settle(model: nn.Module, config: LayerConfig) -> list[str] | str | None:
    """The targets as they are written to the file: "all-linear" and defaults become names, so that they mean the same
    on every base."""
    wanted = config.target_modules
    if wanted is None:
        return None if getattr(config, "target_parameters", None) else resolve_targets(model, config)
    if wanted != "all-linear":
        return wanted
    chosen = {s.name for s in select_slots(model, config)}
    leaves = {n.rsplit(".", 1)[-1] for n in chosen}
    others = {s.name for s in slots(model)} - chosen
    unique = {leaf for leaf in leaves if not leaf.isdigit() and not any(name_in(o, [leaf]) for o in others)}
    return sorted(unique | {n for n in chosen if n.rsplit(".", 1)[-1] not in unique})


def _plain(module: Any) -> Any:
    from ..hosts.host import Host

    while isinstance(module, Host):
        module = module.base_layer
    return module


def _in_layers(name: str, config: LayerConfig) -> bool:
    if config.layers_to_transform is None:
        return True
    number = layer_number(name, config.layers_pattern)
    wanted = config.layers_to_transform
    return number is not None and number in (wanted if isinstance(wanted, list) else [wanted])


def layer_number(name: str, patterns: list[str] | str | None = None) -> int | None:
    """The number of the layer that a module belongs to: the component after `patterns`, else the last number inside."""
    parts = name.split(".")
    if not patterns:
        inside = [int(p) for p in parts[1:-1] if p.isdigit()]
        return inside[-1] if inside else None
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        match = full_match(rf"(?:.*\.)?{pattern}\.(\d+)(?:\..*)?", name, "layers_pattern")
        if match:
            return int(match.group(1))
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
    words = [wanted] if isinstance(wanted, str) else list(wanted or [])
    names = list(dict.fromkeys([*(s.name.rsplit(".", 1)[-1] for s in every), *(s.name for s in every)]))
    close = list(dict.fromkeys(n for w in words for n in nearest(w, names, 5)))[:5] or names[:5]
    raise TargetError("the targets match no module of the model", where="target_modules", got=wanted,
                      fix=f"nearest names: {', '.join(close)}")  # fmt: skip
