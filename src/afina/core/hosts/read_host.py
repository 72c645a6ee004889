"""Hosts whose parents read weights instead of calling the layer."""

from __future__ import annotations

from torch import Tensor

from .calls import current
from .host import Host
from .view import View


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
