"""DoRA: LoRA on the direction of the weight, with a trained magnitude for every output.

    W' = m ∘ (W + s · B A) / ||W + s · B A||_row,   m starts as ||W||_row

Liu et al. 2024, arXiv 2402.09353 (the norm is a constant for the gradient, section 4.3). Dropout acts on the input of
the low-rank part only. Trainable: LoRA's + out a layer and expert (embedding: + dim). Mergeable. Layers: all of LoRA's;
grouped convolutions are not mergeable. The reference has it for neither attention nor parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.hosts.adapter import Site
from ...core.hosts.view import View
from ...kernels.lora_linear import is_plain_linear, lora_linear
from .lora import Lora
from .lora_config import LoraConfig


@Lora.variant(lambda config: config.use_dora)
class Dora(Lora):
    """`magnitude`: (out,), of experts (experts · out,), for convolutions (1, out, *ones)."""

    def __init__(self, site: Site, config: LoraConfig) -> None:
        super().__init__(site, config)
        self.hold(times=1)
        outputs = site.base.out_features * (site.base.shape[0] if self.experts else 1)
        shape = (1, -1, *(1 for _ in site.base.shape[2:])) if site.base.kind == "conv" else (-1,)
        if site.device.type == "meta":
            self.lora_magnitude_vector = site.empty(*(outputs if n == -1 else n for n in shape))
            return
        with torch.no_grad():
            weight = site.base.read()[0].to(self.lora_A.dtype)
            # At the start the low-rank part need not be zero (embeddings are not, when asked), so it counts.
            changed = weight + self.stored_delta(weight)
            norm = self._norm(changed)
        self.lora_magnitude_vector = nn.Parameter(norm.view(shape).clone())

    def stored_delta(self, weight: Tensor) -> Tensor:
        """s · B A in the shape of the stored weight. With groups no such weight exists: the reference then takes the
        product in B's order in memory, and so its files' magnitudes mean that."""
        if self.groups == 1:
            return self.delta(weight)
        A, B = self.factors()
        return self.scaling * (B.reshape(-1, self.r) @ A.flatten(1)).view(weight.shape)

    def _norm(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(0, 1) if self.experts else weight.flatten(1)
        norm: Tensor = torch.linalg.vector_norm(rows, dim=1)
        return norm

    def _scale(self, weight: Tensor) -> Tensor:
        """m / ||W + s B A||, one number for every output."""
        with torch.no_grad():
            changed = weight + self.stored_delta(weight)
            # A row of zeros has no direction: its output stays zero, as the paper's formula has it in the limit.
            norm = self._norm(changed).clamp_min(torch.finfo(weight.dtype).tiny)
        return self.lora_magnitude_vector.flatten() / norm

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        changed = weight + self.delta(weight)
        outputs = 2 if self.experts else 1
        return changed * self._scale(weight).view(*weight.shape[:outputs], *(1 for _ in weight.shape[outputs:])), bias

    @property
    def fuses(self) -> bool:
        return True

    def _quick_scale(self, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """`_scale` from ‖w‖² + 2 s w·(BA) + s² ‖BA‖² of every row, without forming BA."""
        with torch.no_grad():
            own = torch.linalg.vector_norm(weight, dim=1, dtype=B.dtype).square()
            cross = (B * (weight @ A.to(weight.dtype).mT).to(B.dtype)).sum(1)
            square = ((B @ (A @ A.mT)) * B).sum(1)
            changed = own + 2 * self.scaling * cross + self.scaling**2 * square
            norm = changed.clamp_min(0).sqrt().clamp_min(torch.finfo(B.dtype).tiny)
        scale: Tensor = self.lora_magnitude_vector / norm
        return scale

    def _fused(self, inner: View, x: Tensor) -> Tensor:
        (A, B), base = self.factors(), inner.base
        weight = base.canonical(base.weight)
        out = lora_linear(x, weight, None, A, B, self.scaling)
        out = (out * self._quick_scale(weight, A, B)).to(x.dtype)
        return out if base.bias is None else out + base.bias

    def forward(self, inner: View, x: Any) -> Any:
        if not inner.base.additive:
            return inner.apply(x, *self.merged(*inner.params()))
        if self.reads_as_is(inner.base, x):
            if self.dropped(x) is x and inner.is_base and is_plain_linear(inner.base.module):
                return self._fused(inner, x)
            x = x.to(self.dtype)
        weight, bias = inner.params()
        scale = self._scale(weight)
        rank_part = self.scaling * inner.base.low_rank(self.dropped(x), *self.factors())
        out = inner.apply(x, weight, None) + rank_part
        ones = (1 for _ in range(weight.dim() - 2)) if inner.base.kind == "conv" else ()
        out = out * scale.view(-1, *ones)
        return out if bias is None else out + bias.view(-1, *(1 for _ in range(weight.dim() - 2)))

    @property
    def disk_names(self) -> Mapping[str, str]:  # type: ignore[override]
        return {**super().disk_names, "lora_magnitude_vector": "lora_magnitude_vector"}
