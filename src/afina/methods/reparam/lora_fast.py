"""LoRA on linear layers by the fused operations of `kernels.low_rank`; other layers take the plain formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.hosts.adapter import DeltaWeight
from ...core.hosts.host import Host
from ...core.hosts.light import LightModule
from ...core.hosts.view import View
from ...core.layers.storages import Bits8Weight
from ...core.layers.weights import BaseWeight, autocasts
from ...kernels.cuda.few_bits import stored
from ...kernels.lora_linear import add_low_rank, is_plain_linear, lora_linear
from ...kernels.updates.joint import Layer
from ...kernels.updates.wide import Weight


class LoraFast(LightModule, DeltaWeight):
    """Reads the layer's input in the layer's own dtype, which spares a copy to float32 and back.

    Attributes:
        adds: whether its output is the layer's with s · B A x added, and nothing else.
        magnifies: whether it is that times magnitudes, before the bias.
    """

    adds: ClassVar[bool] = True
    magnifies: ClassVar[bool] = False
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

    def magnitudes(self, weight: Tensor, own: Tensor) -> Tensor:
        """What it multiplies every output by, (out,).

        Args:
            weight: (out, in), which may not stay. own: what the layer holds it as.
        """
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
            and (x.dtype == base.dtype or isinstance(base, Bits8Weight))  # which computes in its input's
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
        made = self.together(inner, x, _updates)
        if made is not None:
            return made
        A, B = self.factors()
        scale, dropped = self.scale, self.dropped(x)
        if dropped is x and inner.is_base and is_plain_linear(inner.base.module):
            return lora_linear(x, inner.base.canonical(inner.base.weight), inner.base.bias, A, B, scale)
        return add_low_rank(inner(x), dropped, A, B, scale)

    def together(self, inner: View, x: Tensor, layer_of: Callable[[Host, Tensor], Layer | None]) -> Tensor | None:
        """The layer's output, made with those of the layers that read the same input, where all are what `layer_of`
        says."""
        beside, rows = inner.host.beside, inner.call is not None and inner.call.rows is not None
        if beside is None or rows or not torch.is_grad_enabled() or not beside.takes(x):
            return None
        made: Tensor | None = beside.output(inner.host, x, layer_of)
        return made


def updated(host: Host, x: Tensor, adapters: Sequence[LoraFast]) -> Layer | None:
    """A frozen layer with these updates, where it is a plain one and they are nothing else."""
    plain = (
        all(a.reads_as_is(host.base, x) and not (a.training and a.dropout is not None) for a in adapters)
        and host.own_bias() is None
    )
    base, scales = host.base, [adapter.scale for adapter in adapters]
    weight = frozen_weight(base, x) if plain and not any(isinstance(scale, Tensor) for scale in scales) else None
    if weight is None:
        return None
    factors, sources = [adapter.factors() for adapter in adapters], [p for a in adapters for p in a.parameters()]
    A, B, scale = *factors[0], float(scales[0])
    if len(adapters) > 1:
        A, scale = torch.cat([a for a, _ in factors]), 1.0
        B = torch.cat([b * s for (_, b), s in zip(factors, scales, strict=True)], 1)
    bias = None if base.bias is None else base.bias.to(x.dtype)
    return Layer(weight, bias, A, B, scale, tuple(sources))


def frozen_weight(base: BaseWeight, x: Tensor) -> Weight | None:
    """What a frozen layer multiplies by and nothing else, dense or in few bits."""
    if base.quantised:
        return stored(base.module, x)
    return base.canonical(base.weight) if is_plain_linear(base.module) else None


def _updates(host: Host, x: Tensor) -> Layer | None:
    """What a host is to its siblings: a frozen layer with plain updates, or nothing that they know."""
    stack = [adapter for adapter in host.stack if isinstance(adapter, LoraFast) and adapter.adds]
    if not stack or len(stack) < len(host.stack) or any(a.lora_bias is not None for a in stack[:-1]):
        return None
    return updated(host, x, stack)
