"""VeLoRA: LoRA that keeps one number for each piece of its input until the backward pass.

    x = [x_1 ... x_n], n pieces of d = ⌈in / n⌉;   kept: x_i · v;   backward: ∂L/∂A with x_i ≈ scale · (x_i · v) v

Miles, Reddy, Elezi, Deng 2024, arXiv 2405.17991. v is the unit vector along the mean piece of a batch, or a random one.
The forward pass is LoRA's; only A's gradient is approximate. Evaluation keeps nothing. Trainable: as LoRA. Mergeable.
Layers: Linear, Conv1D.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.hosts.adapter import Site
from ...core.hosts.view import View
from .lora import Lora
from .lora_config import LoraConfig


def pieces(x: Tensor, count: int) -> Tensor:
    """(rows, count, ⌈in / count⌉), the last piece filled up with zeros."""
    width = -(-x.shape[-1] // count)
    return F.pad(x, (0, count * width - x.shape[-1])).reshape(-1, count, width)


class _Projection(torch.autograd.Function):
    """x Aᵀ, of whose input only the component along `v` of each piece is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, v: Tensor, count: int, scale: float) -> Tensor:
        ctx.save_for_backward(pieces(x, count) @ v, A, v)
        ctx.scale = scale
        return F.linear(x, A)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, A, v = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        x = (kept[..., None] * v).flatten(1)[:, : A.shape[1]] * ctx.scale
        return gradient @ A, rows.T @ x.to(rows.dtype), None, None, None


@Lora.variant(lambda config: config.velora_config is not None)
class Velora(Lora):
    """`lora_velora_embed` v: (⌈in / num_groups⌉,), zero until the first batch."""

    kinds = frozenset({"linear"})

    def __init__(self, site: Site, config: LoraConfig) -> None:
        super().__init__(site, config)
        assert config.velora_config is not None
        self.options = config.velora_config
        width = -(-site.base.in_features // self.options.num_groups)
        v = torch.zeros(width, dtype=site.dtype, device=site.device)
        if self.options.init_type == "random":
            v = F.normalize(torch.randn_like(v), dim=0)
        self.register_buffer("lora_velora_embed", v)

    def _direction(self, x: Tensor) -> Tensor:
        """v for this batch, remembered."""
        stored = self.get_buffer("lora_velora_embed")
        if self.options.init_type == "random":
            return stored
        with torch.no_grad():
            mean = pieces(x, self.options.num_groups).float().mean((0, 1))
            # A mean of zero has no direction; any other unit vector serves.
            v = F.normalize(torch.where(mean.any(), mean, torch.ones_like(mean)), dim=0).to(stored.dtype)
            if self.options.init_type == "batch_average_once":
                v = torch.where(stored.any(), stored, v)
            stored.copy_(v)
        return v

    def forward(self, inner: View, x: Any) -> Any:
        if not self.training:
            return super().forward(inner, x)
        dropped = self.dropped(x)
        A, B = self.factors()
        v = self._direction(dropped.detach()).to(dropped.dtype)
        settings = self.options.num_groups, self.options.scale
        hidden = _Projection.apply(dropped, A, v, *settings)  # type: ignore[no-untyped-call]
        out = inner(x) + self.times * self.scaling * F.linear(hidden, B)
        return out if self.lora_bias is None else out + self.scaling * self.lora_bias
