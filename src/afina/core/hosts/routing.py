"""Routing over a whole model: what decides, before the layers run, how several adapters share the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ...errors import ConfigError
from .calls import Scope, current, entered, node_number
from .walk import shared_holder

_OPENED = "opened by a router"


@dataclass(frozen=True)
class Place:
    """Where an adapter lies that another one needs; without a `source` it has to be on the model already."""

    source: str
    subfolder: str | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)


class Router(nn.Module):
    """Decides before each forward pass of the whole model; the method's adapters on the layers read the decision.

    It is what such a method's `build_shared` returns. In calls that go through its adapter, `route` runs before the
    model's own forward, inside `generate` too, and leaves its decision in `notes`, which belong to the call.

    Attributes:
        name: of its adapter.
        scope: the model that it routes in.
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
        self.name, self.scope = "", Scope()
        self.active, self.enabled = False, True
        self.handles: tuple[RemovableHandle, ...] = ()

    @property
    def notes(self) -> dict[str, Any]:
        """What it remembers in the current call.

        Raises:
            ConfigError: there is none.
        """
        call = current(self.scope)
        if call is None:
            raise ConfigError("this method routes over the whole model, which was not called", where=self.name,
                              fix="call the model, not a part of it")  # fmt: skip
        notes: dict[str, Any] = call.notes.setdefault(id(self), {})
        return notes

    @property
    def runs(self) -> bool:
        """Whether the current call goes through its adapter."""
        call = current(self.scope)
        if not self.enabled or (call is not None and not call.enabled):
            return False
        return self.active if call is None or call.rows is None else self.name in call.rows.groups

    def route(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Decide, for the arguments that the model is about to be called with; may run `model.forward` itself."""
        raise NotImplementedError

    def switch(self, model: nn.Module, *, active: bool | None = None, enabled: bool | None = None) -> None:
        """Choose whether its adapter is active and enabled where a call does not say otherwise."""
        self.active = self.active if active is None else active
        self.enabled = self.enabled if enabled is None else enabled
        if not self.handles:
            self.handles = (model.register_forward_pre_hook(self._before, with_kwargs=True),
                            model.register_forward_hook(self._after, always_call=True))  # fmt: skip

    def stop(self) -> None:
        """Run no more, because the adapter is taken away."""
        for handle in self.handles:
            handle.remove()
        self.handles, self.active = (), False

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.runs:
            return
        if current(self.scope) is None:  # the model is called by itself, not through the PeftModel
            start, opened = node_number(), entered(self.scope)
            opened.__enter__().notes[_OPENED] = opened, start
        self.route(model, args, kwargs)

    def _after(self, model: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        call = current(self.scope)
        if call is not None and _OPENED in call.notes:
            opened, start = call.notes.pop(_OPENED)
            opened.__exit__(None, None, None)
            if torch.is_grad_enabled():
                call.keep_for_backward(out, start)


def routers(model: nn.Module) -> dict[str, Router]:
    """Adapter name -> what routes for it, for methods that route over the whole model."""
    held = shared_holder(model)
    return {} if held is None else {n: m for n, m in held[1].items() if isinstance(m, Router)}
