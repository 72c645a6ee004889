"""A layer as the next adapter sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..layers.tensor_parallel import CutLinear, is_cut_along, parts_of, wholes_of
from ..layers.weights import BaseWeight, autocasts

if TYPE_CHECKING:
    from .adapter import Adapter
    from .calls import Call
    from .host import Host


class View:
    """A layer as the next adapter sees it: the base with the earlier adapters applied.

    Attributes:
        base: the layer as an operator (kind, sizes, factored product).
        args, kwargs: what the layer was called with besides its input.
        whole: gives the base layer's output for its own input, where that is computed elsewhere.
        own_bias: the trainable bias that stands in for the layer's.
        rows: how many rows of a batch the input is of, where each row goes through its own adapter.
        keyword: the name under which the input has to be given, where it cannot be given by its place.
        call: the call of the model that it runs in, if that is more than a plain one.
    """

    def __init__(
        self,
        host: Host,
        stack: tuple[Adapter, ...],
        source: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        cast: Any = None,
        whole: Callable[[], Any] | None = None,
        bias: nn.Parameter | None = None,
        rows: int | None = None,
        call: Call | None = None,
        keyword: str | None = None,
    ) -> None:
        self.host, self.stack, self.args, self.kwargs = host, stack, args, kwargs or {}
        self.source, self.cast, self.whole = source, cast, whole
        self.own_bias, self.rows, self.call, self.keyword = bias, rows, call, keyword

    @property
    def base(self) -> BaseWeight:
        return self.host.base

    @property
    def is_base(self) -> bool:
        """Whether running it is just calling the base layer."""
        # The compiler knows no `not` of a tuple of modules.
        return len(self.stack) == 0 and self.own_bias is None and self.whole is None

    def __call__(self, x: Any) -> Any:
        """Run it."""
        if self.stack:
            adapter = self.stack[-1]
            given = x if adapter.reads_as_is(self.base, x) else self._cast(x, adapter.dtype)
            cast = given if x is self.source or x is self.cast else None
            inner = self.stack[:-1]
            view = type(self)(self.host, inner, self.source, self.args, self.kwargs, cast, self.whole, self.own_bias,
                              self.rows, self.call, self.keyword)  # fmt: skip
            return self.adapt(adapter, view, given)
        if self.whole is not None and (x is self.source or x is self.cast):
            return self.whole()
        if isinstance(x, Tensor) and isinstance(self.source, Tensor) and x.dtype != self.source.dtype:
            # The adapters' copy of the layer's own input need not be cast back.
            x = self.source if x is self.cast else x.to(self.source.dtype)
        bias = self.own_bias
        if bias is None:
            return self.run(self.base.run, x)
        weight, dtype = self.base.read()[0], self.base.dtype
        return self.base.apply(x, weight.to(dtype), bias.to(dtype), *self.args, **self.kwargs)

    def run(self, module: Callable[..., Any], x: Any) -> Any:
        """Call a module as the layer was called, with the input `x`."""
        if self.keyword is not None:
            return module(**{self.keyword: x}, **self.kwargs)
        return module(x, *self.args, **self.kwargs)

    def given(self, adapter: Adapter) -> Mapping[str, Any]:
        """What the model was called with for an adapter's method (`Adapter.inputs`)."""
        if self.call is None or not self.call.inputs:
            return {}
        name = next(n for n in self.host.names() if self.host.adapter(n) is adapter)
        return self.call.inputs.get(name, {})

    def params(self) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) so far, canonical, in the adapters' dtype.

        Raises:
            NotAWeight: the layer is no linear operator.
        """
        weight, bias = self.base.read()
        own = self.own_bias
        bias = bias if own is None else own
        dtype = self.host.compute_dtype
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        for adapter in self.stack:
            weight, bias = self.merge(adapter, weight, bias)
        return weight, bias

    def adapt(self, adapter: Adapter, inner: View, x: Any) -> Any:
        """Run an adapter on the layer below it."""
        return adapter(inner, x)

    def merge(self, adapter: Adapter, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What an adapter makes of weight and bias."""
        return adapter.merged(weight, bias)

    def apply(self, x: Any, weight: Tensor, bias: Tensor | None) -> Any:
        """The layer's own operation with other weights."""
        return self.base.apply(x, weight, bias, *self.args, **self.kwargs)

    def _cast(self, x: Any, dtype: torch.dtype) -> Any:
        if not self.base.casts_input or not isinstance(x, Tensor) or x.dtype == dtype or not x.is_floating_point():
            return x
        return x if autocasts(x) else x.to(dtype)


class _CutView(View):
    """Of a layer that is cut over processes."""

    def tensors(self, adapter: Adapter) -> Mapping[str, Tensor]:
        """An adapter's tensors as they are used here."""
        raise NotImplementedError

    @contextmanager
    def _lent(self, adapter: Adapter) -> Iterator[None]:
        # A method that is no part of the layer itself may use others that are (X-LoRA).
        every = [adapter] if is_cut_along(adapter) else [a for n in self.host.names() if (a := self.host.adapter(n))]
        kept = [(a, a._parameters) for a in every if is_cut_along(a)]
        for a, own in kept:
            a.__dict__["_parameters"] = {**own, **self.tensors(a)}
        try:
            yield
        finally:
            for a, own in kept:
                a.__dict__["_parameters"] = own

    def adapt(self, adapter: Adapter, inner: View, x: Any) -> Any:
        with self._lent(adapter):
            return super().adapt(adapter, inner, x)

    def merge(self, adapter: Adapter, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with self._lent(adapter):
            return super().merge(adapter, weight, bias)

    @property
    def _cut(self) -> CutLinear:
        assert isinstance(self.host.base, CutLinear)
        return self.host.base


class PartView(_CutView):
    """This process's part of the layer, for adapters that are all cut along."""

    @property
    def base(self) -> BaseWeight:
        return self._cut.part

    def tensors(self, adapter: Adapter) -> Mapping[str, Tensor]:
        return parts_of(adapter)


class FullView(_CutView):
    """The whole layer, whose inputs, outputs and (where it is read) weight are gathered."""

    @property
    def base(self) -> BaseWeight:
        return self._cut.full

    def tensors(self, adapter: Adapter) -> Mapping[str, Tensor]:
        return wholes_of(adapter)


@contextmanager
def nothing_drawn(adapters: Iterable[Adapter]) -> Iterator[None]:
    """Adapters as they are in eval mode, for what is made of them once and stays: no dropout, nothing sampled."""
    with_sources = [a for adapter in adapters for a in (adapter, *getattr(adapter, "sources", ()))]
    training = [module for adapter in with_sources for module in adapter.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
