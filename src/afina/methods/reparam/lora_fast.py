"""LoRA on linear layers by the fused operations of `kernels.low_rank`; other layers take the plain formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core.hosts.adapter import DeltaWeight
from ...core.hosts.host import Host
from ...core.hosts.light import LightModule
from ...core.hosts.view import View
from ...core.layers.weights import BaseWeight, autocasts
from ...kernels.joint import Layer, lora_linears
from ...kernels.lora_linear import add_low_rank, is_plain_linear, lora_linear


class LoraFast(LightModule, DeltaWeight):
    """Reads the layer's input in the layer's own dtype, which spares a copy to float32 and back."""

    scaling: float
    times: int
    lora_A: nn.Parameter
    lora_bias: nn.Parameter | None
    pair: tuple[str, str] | None
    r: int
    groups: int
    embedding: bool
    experts: bool

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B)."""
        raise NotImplementedError

    @property
    def fuses(self) -> bool:
        """Whether the update is s · B A x and nothing else."""
        raise NotImplementedError

    def reads_as_is(self, base: BaseWeight, x: Any) -> bool:
        return (
            base.kind == "linear"
            and not base.crosses
            and self.fuses
            and isinstance(x, Tensor)
            and x.is_floating_point()
            and not x.is_nested
            and x.dim() >= 2
            and x.dtype == base.dtype
            and x.dtype.itemsize <= self.lora_A.dtype.itemsize
            and not autocasts(x)
        )

    @property
    def lora_dropout(self) -> nn.Module:
        """The dropout under the reference's name."""
        return nn.Identity() if self.dropout is None else self.dropout

    @property
    def scale(self) -> float | Tensor:
        """The update's factor; a tensor where adapters are swapped under compiled code."""
        return self.times * self.scaling

    def fused(self, inner: View, x: Tensor) -> Tensor:
        """The layer's output with the update, without LoRA's own bias."""
        beside = inner.host.beside
        mixed = inner.call is not None and inner.call.rows is not None
        if beside is not None and not mixed and x.dtype.itemsize == 2 and torch.is_grad_enabled():
            made: Tensor | None = beside.output(inner.host, x, _alone)
            if made is not None:
                return made
        A, B = self.factors()
        scale, dropped = self.scale, self.dropped(x)
        if dropped is x and inner.is_base and is_plain_linear(inner.base.module):
            weight = inner.base.canonical(inner.base.weight)
            if torch.compiler.is_compiling() and x.dtype.itemsize == 2 and not isinstance(scale, Tensor):
                return lora_linears(x, [Layer(weight, inner.base.bias, A, B, scale)])[0]  # sums in place stay so
            return lora_linear(x, weight, inner.base.bias, A, B, scale)
        return add_low_rank(inner(x), dropped, A, B, scale)


def _alone(host: Host, x: Tensor) -> Layer | None:
    """What a host is to its siblings: a frozen layer with one plain update, or nothing that they know."""
    adapter = host.stack[0] if len(host.stack) == 1 else None
    plain = (
        isinstance(adapter, LoraFast)
        and adapter.pair is None
        and host.own_bias() is None
        and adapter.reads_as_is(host.base, x)
        and not (adapter.training and adapter.dropout is not None)
        and is_plain_linear(host.base.module)
    )
    if not plain:
        return None
    assert isinstance(adapter, LoraFast)
    scale = adapter.scale
    if isinstance(scale, Tensor):
        return None
    A, B = adapter.factors()
    return Layer(host.base.canonical(host.base.weight), host.base.bias, A, B, scale)
