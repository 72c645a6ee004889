"""Hosts of other kinds: of layers whose parents read their weights, and of modules that adapters train copies of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..layers.cut import cut_of
from ..layers.tensor_parallel import CutLinear, cut_along, is_cut_along
from .adapter import Adapter
from .calls import Scope, current
from .host import Host, hosts
from .replacement import Replacement, settled
from .view import FullView, PartView, View


class ReadHost(Host):
    """A host whose parent computes with its `weight` and `bias` instead of calling it (attention's out_proj)."""

    @property
    def weight(self) -> Tensor:
        """The effective weight: with all active adapters."""
        return self._effective()[0]

    @property
    def bias(self) -> Tensor | None:
        """The effective bias."""
        return self._effective()[1]

    def _effective(self) -> tuple[Tensor, Tensor | None]:
        self.called = True
        call = current(self.scope)
        if call is not None and not call.enabled:
            own = self.original_parameters()
            return own[self.base.weight_name], own.get(self.base.bias_name)  # type: ignore[return-value]
        stack, own_bias = self.stack, self.own_bias()
        if call is not None and call.rows is not None and self.enabled:
            # Rows that share a pass have no adapter here, or all the same.
            stack = self._named(call.rows.groups)
            own_bias = next((self.biases[n] for n in call.rows.groups if n in self.biases), None)
        if not stack and own_bias is None:
            return self.base.weight, self.base.bias
        weight, bias = View(self, stack, None, bias=own_bias, call=call).params()
        return self.base.stored(weight).to(self.base.dtype), None if bias is None else bias.to(self.base.dtype)


class CutHost(Host):
    """Of a layer that is cut over processes (tensor parallel): an adapter that is cut along sees this process's part
    of it; any other, and several together, see the whole layer."""

    def add(self, name: str, adapter: Adapter) -> None:
        """As of any host; the adapter is cut along with the layer, if it can be."""
        assert isinstance(self.base, CutLinear)
        dims = adapter.cut_dims() if self.base.cut.follows else None
        if dims is not None:
            cut_along(adapter, self.base.cut, dims)
        super().add(name, adapter)

    def _adapted(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **how: Any) -> Any:
        alone = len(self.stack) == 1 and how.get("bias") is None
        if alone and is_cut_along(self.stack[0]):
            return PartView(self, self.stack, x, args, kwargs, **how)(x)
        assert isinstance(self.base, CutLinear)
        full = self.base.full
        x = full.entered(x)
        return full.left(FullView(self, self.stack, x, args, kwargs, **how)(x))


def host_of(module: nn.Module, scope: Scope, is_read: bool) -> Host:
    """A new host for a module; `is_read`: its parent computes with its weight instead of calling it."""
    kind = ReadHost if is_read else Host if cut_of(module) is None else CutHost
    return kind(module, scope=scope)


class ModulesToSaveWrapper(Host):
    """A whole module of which each adapter trains a copy (`modules_to_save`)."""

    is_tied = False
    """Whether another module of the model has the original's weight too, and so may be given what is read here."""
    base_slot = "original_module"
    adapter_slot = "modules_to_save"

    @property
    def base_layer(self) -> nn.Module:
        """The frozen module, under the name that hosts use."""
        module = self._modules[self.base_slot]
        assert module is not None
        return module

    @property
    def active_adapters(self) -> list[str]:
        return [name for name in self.active if self.adapter(name) is not None]

    def enable_adapters(self, enabled: bool) -> None:
        """As of any host, and when one of the model's other layers is switched on."""
        (self.scope.off.discard if enabled else self.scope.off.add)(self)
        super().enable_adapters(enabled)

    def merge(
        self, adapter_names: Iterable[str] | None = None, safe_merge: bool = True, requantise: bool = False
    ) -> None:
        """A copy is not merged; `result` gives it when the host goes.

        Raises:
            NumericError: it is not finite.
        """
        for name in self.active if adapter_names is None else adapter_names:
            copy = self.adapter(name)
            if isinstance(copy, Replacement):
                copy.refuse_not_finite()

    def result(self, keep: bool = True) -> nn.Module:
        return settled(self.stack[-1] if self.stack and keep else None, self.base_layer, weights=True)

    def _is_running(self) -> bool:
        """Whether the model runs: forward, or (checkpointing) again from the backward pass."""
        return self.scope.users.inside or torch._C._current_autograd_node() is not None

    def _in_use(self) -> nn.Module:
        if self.is_tied and not torch.compiler.is_compiling() and not self._is_running():
            return self.base_layer  # who ties weights would put the copy's into the base
        self.called = True  # some parents read the weight instead of calling the module
        call = current(self.scope)
        found = self.stack[-1] if self.stack and (call is None or call.enabled) else None
        return found.copy if isinstance(found, Replacement) else self.base_layer


def refuse_hidden(model: nn.Module, names: tuple[str, ...]) -> None:
    """Refuse to have adapters active together of which one would leave nothing of the other at some place.

    Raises:
        ConfigError: with the place and their names.
    """
    for path, host in hosts(model) if len(names) > 1 else ():
        here = [(n, a) for n in names if (a := host.adapter(n)) is not None]
        for (first, earlier), (second, later) in itertools.combinations(here, 2):
            if later.hides(earlier):
                raise ConfigError("of two adapters that train the same module or tokens only one can be active",
                                  where=path, got=f"{first}, {second}", fix="activate one of them")  # fmt: skip
