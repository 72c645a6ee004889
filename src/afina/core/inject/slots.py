"""The places of a model that can hold a host, and those whose layers share a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import TargetError
from ..config import LayerConfig


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


def plain_module(module: Any) -> Any:
    """What hosts stand around."""
    from ..hosts.host import Host

    while isinstance(module, Host):
        module = module.base_layer
    return module


def refuse_container(slot: Slot, where: str) -> None:
    """A copy of a module that only holds others would not be used.

    Raises:
        TargetError: it is one.
    """
    if isinstance(plain := plain_module(slot.module), (nn.ModuleDict, nn.ModuleList)):
        raise TargetError("it only holds modules, nobody calls it", where=f"{where}: {slot.name}",
                          got=type(plain).__name__, fix="name what is in it")  # fmt: skip


def shares_weights(model: nn.Module, module: nn.Module) -> bool:
    """Whether another module of a model has a parameter of this one's."""
    own = {id(p) for p in module.parameters()}
    return sum(id(p) in own for _, p in model.named_parameters(remove_duplicate=False)) > len(own)


def tied_slots(model: nn.Module) -> list[Slot]:
    """The place of the input embedding and after it those of all embeddings and heads that share its weight; empty
    where none does."""
    getter: Any = getattr(model, "get_input_embeddings", None)
    try:
        table = plain_module(getter()) if callable(getter) else None
    except NotImplementedError:
        return []
    shared = getattr(table, "weight", None)
    found = [s for s in slots(model) if isinstance(m := plain_module(s.module), (nn.Embedding, nn.Linear))
             and shared is not None and m.weight is shared]  # fmt: skip
    found.sort(key=lambda s: plain_module(s.module) is not table)
    return found if len(found) > 1 and plain_module(found[0].module) is table else []


def with_tables(model: nn.Module, config: LayerConfig, chosen: list[Slot]) -> list[Slot]:
    """With `ensure_weight_tying` the input embedding in the place of all that share its weight, because they follow
    what is done to it."""
    if not getattr(config, "ensure_weight_tying", False):
        return chosen
    tied = tied_slots(model)
    names = {s.name for s in tied}
    at = next((i for i, s in enumerate(chosen) if s.name in names), None)
    if at is None:
        return chosen
    return [*chosen[:at], tied[0], *(s for s in chosen[at:] if s.name not in names)]
