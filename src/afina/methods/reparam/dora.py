"""DoRA: LoRA on the direction of the weight, with a trained magnitude for every output.

    W' = m ∘ (W + s · B A) / ||W + s · B A||_row,   m starts as ||W||_row

Liu et al. 2024, arXiv 2402.09353 (the norm is a constant for the gradient, section 4.3). Dropout acts on the input of
the low-rank part only. Trainable: LoRA's + out a layer and expert (embedding: + dim). Mergeable. Layers: all of LoRA's;
grouped convolutions are not mergeable. The reference has it for neither attention nor parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.hosts.adapter import Site
from ...core.hosts.host import Host
from ...core.hosts.view import View
from ...core.layers.weights import BaseWeight
from ...kernels.lora_linear import is_plain_linear, lora_linear
from ...kernels.updates.joint import Layer
from .dora_caching import KeptNorm
from .lora import LORA_CUT, Lora
from .lora_config import LoraConfig
from .lora_fast import updated


@Lora.variant(lambda config: config.use_dora)
class Dora(Lora):
    """`magnitude`: (out,), of experts (experts · out,), for convolutions (1, out, *ones)."""

    adds = False
    magnifies = True
    steady: ClassVar[bool] = True
    """In training no norm is kept."""
    reference_attributes = Lora.reference_attributes | {"lora_magnitude_vector"}
    kept: KeptNorm

    def __init__(self, site: Site, config: LoraConfig) -> None:
        super().__init__(site, config)
        self.hold(times=1, kept=KeptNorm())
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

    def cut_dims(self) -> Mapping[str, tuple[int | None, int | None]] | None:
        return {**LORA_CUT, "lora_magnitude_vector": (0, None)}

    def _norm(self, weight: Tensor, base: BaseWeight | None = None) -> Tensor:
        rows = weight.flatten(0, 1) if self.experts else weight.flatten(1)
        norm: Tensor = torch.linalg.vector_norm(rows, dim=1) if base is None else base.norm_of_rows(rows)
        return norm

    @property
    def weight(self) -> Tensor:
        """m, as the reference's module for it has it."""
        return self.lora_magnitude_vector

    def in_reference(self, name: str) -> Any:
        return self if name == "lora_magnitude_vector" else super().in_reference(name)

    def _norm_once(self, weight: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """A norm that is computed from `weight`, or the one that was kept."""
        return self.kept.once((weight, self.lora_A, self.lora_B), self.scaling, self.training, compute)

    def _scale(self, weight: Tensor, own: Tensor | None = None, base: BaseWeight | None = None) -> Tensor:
        """m / ||W + s B A||, one number for every output; `own` is the layer's own weight if W is nothing else, `base`
        the operator that `weight` was read from."""

        def compute() -> Tensor:
            with torch.no_grad():
                changed = weight + self.stored_delta(weight)
                # A row of zeros has no direction: its output stays zero, as the paper's formula has it in the limit.
                return self._norm(changed, base).clamp_min(torch.finfo(weight.dtype).tiny)

        norm = compute() if own is None else self._norm_once(own, compute)
        return self.lora_magnitude_vector.flatten() / norm

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        changed = weight + self.delta(weight)
        outputs = 2 if self.experts else 1
        return changed * self._scale(weight).view(*weight.shape[:outputs], *(1 for _ in weight.shape[outputs:])), bias

    @property
    def fuses(self) -> bool:
        return True

    def _quick_norm(self, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """||W + s B A|| from ‖w‖² + 2 s w·(BA) + s² ‖BA‖² of every row, without forming BA."""
        with torch.no_grad():
            own = torch.linalg.vector_norm(weight, dim=1, dtype=B.dtype).square()
            cross = (B * (weight @ A.to(weight.dtype).mT).to(B.dtype)).sum(1)
            square = ((B @ (A @ A.mT)) * B).sum(1)
            changed = own + 2 * self.scaling * cross + self.scaling**2 * square
            norm: Tensor = changed.clamp_min(0).sqrt().clamp_min(torch.finfo(B.dtype).tiny)
        return norm

    def magnitudes(self, weight: Tensor, own: Tensor) -> Tensor:
        norm = self._norm_once(own, lambda: self._quick_norm(weight, *self.factors()))
        return self.lora_magnitude_vector / norm

    def _fused(self, inner: View, x: Tensor) -> Tensor:
        base = inner.base
        weight = base.canonical(base.weight)
        out = self.together(inner, x, _directions)
        if out is None:
            out = lora_linear(x, weight, None, *self.factors(), self.scaling)
        out = (out * self.magnitudes(weight, base.weight)).to(x.dtype)
        return out if base.bias is None else out + base.bias

    def forward(self, inner: View, x: Any) -> Any:
        if not inner.base.additive:
            return inner.apply(x, *self.merged(*inner.params()))
        if self.reads_as_is(inner.base, x):
            if self.dropped(x) is x and inner.is_base and is_plain_linear(inner.base.module):
                return self._fused(inner, x)
            x = x.to(self.dtype)
        weight, bias = inner.params()
        scale = self._scale(weight, inner.base.weight if inner.is_base and not inner.base.quantised else None,
                            inner.base)  # fmt: skip
        rank_part = self.scaling * inner.base.low_rank(self.dropped(x), *self.factors())
        out = inner.apply(x, weight, None) + rank_part
        ones = (1 for _ in range(weight.dim() - 2)) if inner.base.kind == "conv" else ()
        out = out * scale.view(-1, *ones)
        return out if bias is None else out + bias.view(-1, *(1 for _ in range(weight.dim() - 2)))

    @property
    def disk_names(self) -> Mapping[str, str]:  # type: ignore[override]
        return {**super().disk_names, "lora_magnitude_vector": "lora_magnitude_vector"}


def _directions(host: Host, x: Tensor) -> Layer | None:
    """What a host is to its siblings: a frozen layer with one update, whose bias comes after the magnitudes."""
    own = host.stack[0]
    found = updated(host, x, [own]) if isinstance(own, Dora) and len(host.stack) == 1 else None
    return None if found is None else found._replace(bias=None)
