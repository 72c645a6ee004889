"""Routing over a whole model: what decides, before the layers run, how several adapters share the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn
from torch.utils.hooks import RemovableHandle

from .walk import shared_holder


@dataclass(frozen=True)
class Place:
    """Where an adapter lies that another one needs; without a `source` it has to be on the model already."""

    source: str
    subfolder: str | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)


class Router(nn.Module):
    """Decides before each forward pass of the whole model; the method's adapters on the layers read the decision.

    It is what such a method's `build_shared` returns. While its adapter is active and enabled, `route` runs before
    the model's own forward, inside `generate` too. The decision stays set afterwards, because checkpointing runs
    layers again later; so a forward pass must be followed by its backward pass before the next one.

    Attributes:
        routes: the adapters that it routes among; while it is there, they cannot be deleted.
        trains: those of them that train along with it.
        offers: its attributes that are called on the whole model.
        generation: arguments that `generate` has to be called with.
    """

    routes: tuple[str, ...] = ()
    trains: tuple[str, ...] = ()
    offers: ClassVar[frozenset[str]] = frozenset()
    generation: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.active, self.enabled = False, True
        self.handle: RemovableHandle | None = None

    def route(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Decide, for the arguments that the model is about to be called with; may run `model.forward` itself."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drop the decision, which must not serve another input once the adapter is inactive."""

    def switch(self, model: nn.Module, *, active: bool | None = None, enabled: bool | None = None) -> None:
        """Run before the model's forward exactly while active and enabled."""
        self.active = self.active if active is None else active
        self.enabled = self.enabled if enabled is None else enabled
        if not self.active:
            self.forget()
        if self.handle is not None:
            self.handle.remove()
        on = self.active and self.enabled
        self.handle = model.register_forward_pre_hook(self._before, with_kwargs=True) if on else None

    def stop(self) -> None:
        """Run no more, because the adapter is taken away."""
        if self.handle is not None:
            self.handle.remove()
        self.handle, self.active = None, False

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.route(model, args, kwargs)


def routers(model: nn.Module) -> dict[str, Router]:
    """Adapter name -> what routes for it, for methods that route over the whole model."""
    held = shared_holder(model)
    return {} if held is None else {n: m for n, m in held[1].items() if isinstance(m, Router)}
