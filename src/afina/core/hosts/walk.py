"""A model's modules without what stands in adapters, of which there may be hundreds."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

_HOLDERS = ("shared", "shared_by_adapter")
"""Where parameters that all layers of an adapter share are held; some models have a module of the first name."""


def shared_holder(model: nn.Module) -> tuple[str, nn.ModuleDict] | None:
    """(its name, adapter name -> the parameters that all its layers share), if the model has any."""
    return next(((n, m) for n in _HOLDERS if isinstance(m := model._modules.get(n), nn.ModuleDict)), None)


def hold_shared(model: nn.Module, name: str, module: nn.Module) -> None:
    """Keep what all layers of the adapter `name` share."""
    found = shared_holder(model)
    if found is None:
        found = next(n for n in _HOLDERS if n not in model._modules), nn.ModuleDict()
        # Not `add_module`, for which a module of the wrapped model would be one of this name.
        model._modules[found[0]] = found[1]
    found[1][name] = module


def outside_adapters(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """As `named_modules`; of a host only what it wraps is entered."""
    seen: set[nn.Module] = set()
    left: list[tuple[str, nn.Module]] = [("", model)]
    while left:
        path, module = left.pop()
        if module in seen:
            continue
        if remove_duplicate:
            seen.add(module)
        yield path, module
        wrapped = getattr(type(module), "base_slot", None)
        names = list(module._modules) if wrapped is None else [wrapped]
        children = [(name, module._modules[name]) for name in reversed(names)]
        left += [(f"{path}.{name}" if path else name, child) for name, child in children if child is not None]
