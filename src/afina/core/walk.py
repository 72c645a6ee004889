"""A model's modules without what stands in adapters, of which there may be hundreds."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


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
