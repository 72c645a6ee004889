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


def input_table(model: nn.Module) -> Any:
    """The input embedding, without hosts around it; None where a model has none, or does not tell."""
    getter: Any = getattr(model, "get_input_embeddings", None)
    try:
        return plain_module(getter()) if callable(getter) else None
    except NotImplementedError:
        return None


def tied_table(model: nn.Module) -> Slot | None:
    """The place of the input embedding whose weight the output head shares; None where none does."""
    shared, table = getattr(plain_module(output_head(model)), "weight", None), input_table(model)
    if shared is None or getattr(table, "weight", None) is not shared:
        return None
    return next((s for s in slots(model) if plain_module(s.module) is table), None)


def with_tables(model: nn.Module, config: LayerConfig, chosen: list[Slot]) -> list[Slot]:
    """With `ensure_weight_tying` the embedding in the place of a head that shares its weight, because the head follows
    what is done to the embedding."""
    head = plain_module(output_head(model))
    at = next((i for i, s in enumerate(chosen) if plain_module(s.module) is head), None)
    if head is None or at is None or not getattr(config, "ensure_weight_tying", False):
        return chosen
    table = tied_table(model)
    if table is None:
        return chosen
    others = [s for s in chosen if plain_module(s.module) is not head]
    return others if any(s.name == table.name for s in others) else [*others[:at], table, *others[at:]]
