"""One base layer and the named adapters on it: which are active, in which order, and which are merged."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AfinaWarning, MergeError, NameTakenError, NumericError
from ..layers.recognise import base_weight
from ..layers.weights import BaseWeight, autocasts
from .adapter import Adapter
from .batch_rows import run_rows
from .calls import Scope, current
from .light import LightModule
from .replacement import Replacement, settled
from .spelling import ReferenceSpelling, reference_view
from .view import View, nothing_drawn
from .walk import outside_adapters


class Host(LightModule, ReferenceSpelling):
    """A target module's stand-in; keeps the original as `base_layer` and changes none of its bits.

    Active adapters apply in list order, each on the result of the former. Attributes that the host does not have are
    looked up in the adapters under the reference's spelling (`host.lora_A["default"]`), then in the base layer.
    """

    base_slot = "base_layer"
    adapter_slot = "adapters"
    base: BaseWeight
    biases: nn.ParameterDict | dict[str, nn.Parameter]
    parameter: str | None
    active: tuple[str, ...]
    enabled: bool
    merged: tuple[str, ...]
    stack: tuple[Adapter, ...]
    saved: dict[str, nn.Parameter | None]
    called: bool
    scope: Scope
    beside: Any
    """What fast paths know of the layers that read the same input."""

    def __init__(self, base_layer: nn.Module, parameter: str | None = None, scope: Scope | None = None) -> None:
        super().__init__()
        self._modules[self.base_slot] = base_layer
        self._modules[self.adapter_slot] = nn.ModuleDict()
        self.hold(base=base_weight(base_layer, parameter), biases={}, parameter=parameter, active=(), enabled=True,
                  merged=(), stack=(), saved={}, called=False, scope=scope or Scope(), beside=None)  # fmt: skip
        if not base_layer.training:
            self.hold(training=False)
            self._adapters.training = False

    # -- running ----------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            self.called = True
        if self.base.swaps and not torch.compiler.is_compiling():
            with self.scope.swapping:
                return self._forward(*args, **kwargs)
        return self._forward(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        call = current(self.scope)
        if call is not None and not call.enabled:
            return self._run_original(*args, **kwargs)
        bias, keyword = self.own_bias(), None
        by_rows = call is not None and call.rows is not None and self.enabled
        if not self.stack and bias is None and not by_rows:
            return self.base.run(*args, **kwargs)
        if args:
            x, args = args[0], args[1:]
        else:
            name = next(iter(kwargs))
            x = kwargs.pop(name)
            keyword = name if self.base.takes_keywords_only else None
        if call is not None and by_rows:
            return run_rows(self, call, x, args, kwargs)
        return self.finish(self._adapted(x, args, kwargs, bias=bias, call=call, keyword=keyword), x)

    def _adapted(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **how: Any) -> Any:
        return View(self, self.stack, x, args, kwargs, **how)(x)

    def _run_original(self, *args: Any, **kwargs: Any) -> Any:
        """The base layer with its original bits, while weights may be merged into it for other calls."""
        if not self.saved or not self.enabled:
            return self.base.run(*args, **kwargs)
        with self.scope.swapping:
            return self.base.run_with(self.saved, *args, **kwargs)

    def finish(self, out: Any, x: Any) -> Any:
        """Give the output the dtype that the base layer would have given it."""
        if not isinstance(out, Tensor) or not isinstance(x, Tensor) or autocasts(out):
            return out
        return out.to(x.dtype if x.is_floating_point() else self.base.dtype)

    @property
    def applies(self) -> bool:
        """Whether adapters apply here and now."""
        call = current(self.scope)
        return self.enabled and (call is None or call.enabled)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype in which weights are combined: that of the first adapter, at least the base's."""
        first = next(iter(self._named(self._adapters)), None)
        own = self.base.dtype if self.base.dtype.is_floating_point else torch.float32
        return own if first is None else torch.promote_types(own, first.dtype)

    def own_bias(self) -> nn.Parameter | None:
        """The trainable bias of the last active adapter that brings one; None once it is merged."""
        if not len(self.biases) or not self.enabled or self.saved:
            return None
        return next((self.biases[n] for n in reversed(self.active) if n in self.biases), None)

    # -- adapters ---------------------------------------------------------------------------------------------------

    @property
    def _adapters(self) -> nn.ModuleDict:
        modules: Any = self._modules[self.adapter_slot]
        return modules  # type: ignore[no-any-return]

    def adapter(self, name: str) -> Adapter | None:
        """The adapter of that name, or None where this layer has none."""
        found = self._adapters._modules.get(name)
        assert found is None or isinstance(found, Adapter)
        return found

    def names(self) -> list[str]:
        """Names of the adapters (and trainable biases) on this layer."""
        return list(dict.fromkeys([*self._adapters, *self.biases]))

    def add(self, name: str, adapter: Adapter) -> None:
        """Put an adapter under a new name; it is not activated."""
        if name in self._adapters:
            raise NameTakenError("the layer already has an adapter of this name", where=name)
        if adapter.training != self.training:
            adapter.train(self.training)
        self._adapters[name] = adapter
        self.restack()

    def add_bias(self, name: str, bias: nn.Parameter) -> None:
        """Put a trainable bias under a name; it applies with the adapter of that name."""
        if not isinstance(self.biases, nn.ParameterDict):  # few layers have one
            del self.biases
            self.biases = nn.ParameterDict()
        self.biases[name] = bias

    def replace_adapter(self, name: str, adapter: Adapter) -> None:
        """Put another adapter in the place of the one of that name."""
        adapter.train(self.training)
        self._adapters[name] = adapter
        self.restack()

    def remove(self, name: str) -> None:
        """Delete an adapter, if this layer has it."""
        if name in self.merged:
            raise MergeError("a merged adapter cannot be deleted", where=name, fix="call unmerge_adapter() first")
        if name in self._adapters:
            del self._adapters[name]
        if name in self.biases:
            del self.biases[name]
        self.active = tuple(n for n in self.active if n != name)
        self.restack()

    def set_active(self, names: tuple[str, ...]) -> None:
        """Choose the adapters that apply, in order."""
        self.active = names
        self.restack()

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off; merged weights make way for the original ones and come back."""
        if self.saved and enabled != self.enabled:
            self._exchange()
        self.enabled = enabled
        self.restack()
        for copy in list(self.scope.off) if enabled else ():
            copy.enable_adapters(True)

    def _exchange(self) -> None:
        now = self.base.parameters()
        self.base.restore(self.saved)
        self.saved = now

    def original_parameters(self) -> dict[str, nn.Parameter | None]:
        """The base layer's own parameters, whether or not something is merged."""
        return self.saved if self.saved and self.enabled else self.base.parameters()

    def _named(self, names: Iterable[str]) -> tuple[Adapter, ...]:
        return tuple(a for a in map(self.adapter, names) if a is not None)

    def restack(self) -> None:
        """Fix the tuple that forward runs through, so that compiled code sees a constant."""
        live = [n for n in self.active if n in self._adapters and n not in self.merged]
        self.stack = self._named(live) if self.enabled else ()

    # -- merging ----------------------------------------------------------------------------------------------------

    def merge(
        self, adapter_names: Iterable[str] | None = None, safe_merge: bool = True, requantise: bool = False
    ) -> None:
        """Replace the base weight by that of the named (active) adapters; the old parameter objects are kept for
        `unmerge`. The result is always checked, whatever `safe_merge` says.

        Raises:
            NotMergeable: one of the methods has no merged form.
            MergeError: the base is quantised and `requantise` is false.
            NumericError: the result is not finite; nothing was changed.
        """
        names = self.active if adapter_names is None else tuple(adapter_names)
        wanted = tuple(n for n in self.active if n in names and n in self._adapters)
        wanted += tuple(n for n in names if n in self._adapters and n not in wanted)
        if self.merged:
            warnings.warn(f"already merged: {', '.join(self.merged)}; unmerging before merging again", AfinaWarning, 3)
            wanted = (*self.merged, *(n for n in wanted if n not in self.merged))
        enabled = self.enabled
        self.unmerge()
        self.enable_adapters(True)
        try:
            self._merge(wanted, requantise)
        finally:
            self.enable_adapters(enabled)

    def _merge(self, wanted: tuple[str, ...], requantise: bool = False) -> None:
        if not wanted and self.own_bias() is None:
            return
        if wholes := [a for a in self._named(wanted) if isinstance(a, Replacement) and not a.is_weight]:
            # A trained copy of a whole module has no weight to merge; `result` gives the copy itself.
            for whole in wholes:
                whole.refuse_not_finite()
            return
        for adapter in self._named(wanted):
            if type(adapter).merged is Adapter.merged:
                adapter.merged(torch.empty(0), None)  # says that there is no merged form
        self.base.check_merge(requantise)
        with torch.no_grad(), nothing_drawn(self._named(wanted)):
            weight, bias = View(self, self._named(wanted), None, bias=self.own_bias()).params()
        for tensor in (weight, bias):
            if tensor is not None and not torch.isfinite(tensor).all():
                raise NumericError("the merged weight is not finite", where=", ".join(wanted))
        saved = self.base.parameters()
        self.base.replace(weight, bias)
        self.saved, self.merged = saved, wanted

    def unmerge(self) -> None:
        """Put the original parameters back: the very same bits."""
        if self.saved:
            self.base.restore(self.original_parameters())
        self.saved, self.merged = {}, ()
        self.restack()

    def result(self, keep: bool = True) -> nn.Module:
        """The module that stays when the host goes: the base layer with what was merged into it, or (if `keep`) the
        active trained copy of the whole module."""
        return settled(self.stack[-1] if self.stack and keep else None, self.base_layer, weights=False)

    # -- the reference's spelling -----------------------------------------------------------------------------------

    def get_base_layer(self) -> nn.Module:
        """The plain module under all hosts."""
        module: nn.Module = self.base_layer
        return module.get_base_layer() if isinstance(module, Host) else module

    def require_grad(self, names: tuple[str, ...]) -> None:
        """Let exactly the named adapters train."""
        for name in self._adapters._modules:
            adapter = self.adapter(name)
            for parameter in () if adapter is None else adapter.trainable().values():
                parameter.requires_grad_(name in names)
        for name, bias in self.biases.items():
            bias.requires_grad_(name in names)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """A weight that someone assigns (tying does) is the wrapped layer's."""
        wrapped = self.__dict__.get("_modules", {}).get(self.base_slot)
        super().register_parameter(name, param) if wrapped is None else setattr(wrapped, name, param)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if name.startswith("__") or self.adapter_slot not in modules:
                raise
        spelled = reference_view(modules[self.adapter_slot], name)
        return getattr(self._in_use(), name) if spelled is None else spelled

    def _in_use(self) -> nn.Module:
        """The module that answers for what the host does not have."""
        return self.base_layer  # type: ignore[no-any-return]


def hosts(model: nn.Module) -> Iterator[tuple[str, Host]]:
    """Every host of a model with its path."""
    return ((name, module) for name, module in outside_adapters(model) if isinstance(module, Host))
