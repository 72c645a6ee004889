"""ReFT: edit the hidden states of chosen layers within a learned low-dimensional subspace.

    LoReFT: h' = h + Rᵀ (W h + b - R h),   NoReFT: no orthogonality of R,   DiReFT: h' = h + W₂ᵀ (W₁ h + b)

Wu et al. 2024, arXiv 2404.03592. Edits the first `prefix_positions` and last `suffix_positions` positions of a sequence
(all, if both are 0). R has orthonormal rows, by torch's orthogonal parametrisation. Trainable: 2 · r · dim + r a layer.
Not mergeable. Layers: decoder blocks, or any module whose output is a tensor or starts with one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Activation, Site
from ...core.hosts.view import View
from ...errors import ConfigError
from ..selective.last_layers import block_stack
from .bottleneck_places import output_size


@dataclass(kw_only=True)
class ReftConfig(LayerConfig):
    """Configuration of ReFT; without targets, every block of the model's stack (or those in `layers`).

    Attributes:
        r: dimensions of the subspace.
        variant: "loreft", "noreft" or "direft".
        layers: numbers of the blocks to edit; None means all.
        prefix_positions: first positions of a sequence to edit.
        suffix_positions: last positions to edit; all, if both are 0.
    """

    r: int = bounded(4, ge=1)
    variant: Literal["loreft", "noreft", "direft"] = "loreft"
    layers: list[int] | None = None
    prefix_positions: int = bounded(0, ge=0)
    suffix_positions: int = bounded(0, ge=0)

    default_learning_rate: ClassVar[float] = 2e-3

    def own_targets(self, model: Any) -> list[str]:
        name, size = block_stack(model)
        return [f"{name}.{i}" for i in (range(size) if self.layers is None else self.layers)]


@register("REFT", ReftConfig)
class Reft(Activation):
    """`reft_R`: (r, dim); `reft_W`: (r, dim); `reft_b`: (r,)."""

    steady: ClassVar[bool] = True
    prefix = "reft_"
    kinds = frozenset({"linear", "embedding", "module"})

    def __init__(self, site: Site, config: ReftConfig) -> None:
        super().__init__(site, config)
        dim = output_size(site)
        start = torch.empty(config.r, dim)
        nn.init.orthogonal_(start)
        self.reft_R = nn.Parameter(start.to(dtype=site.dtype, device=site.device))
        # Equal projections edit nothing: the start is the base.
        self.reft_W = nn.Parameter((torch.zeros_like(start) if config.variant == "direft" else start).clone().to(
            dtype=site.dtype, device=site.device))  # fmt: skip
        self.reft_b = site.zeros(config.r)
        self.form = config.variant
        self.first, self.last = config.prefix_positions, config.suffix_positions

    def subspace(self) -> Tensor:
        """R with orthonormal rows (LoReFT), or as it is."""
        if self.form != "loreft":
            return self.reft_R
        # Gram-Schmidt; by a singular value decomposition the gradient at equal singular values, the start, is infinite.
        columns, upper = torch.linalg.qr(self.reft_R.float().mT)
        rows: Tensor = (columns * upper.diagonal().sign()).mT
        return rows.to(self.reft_R.dtype)

    def edit(self, h: Tensor) -> Tensor:
        """What is added to hidden states h of (..., dim)."""
        R = self.subspace()
        target = h @ self.reft_W.T + self.reft_b
        return (target if self.form == "direft" else target - h @ R.T) @ R

    def forward(self, inner: View, x: Any) -> Any:
        out = inner(x)
        first: Tensor = out[0] if isinstance(out, tuple) else out
        if first.shape[-1] != self.reft_R.shape[1]:
            raise ConfigError("ReFT edits hidden states, whose last dimension is their width", where="target_modules",
                              got=tuple(first.shape), expected=f"(..., {self.reft_R.shape[1]})",
                              fix="name blocks of a transformer")  # fmt: skip
        change = self.edit(first.to(self.dtype)).to(first.dtype)
        if self.first or self.last:
            length = first.shape[1]
            positions = torch.arange(length, device=first.device)
            chosen = (positions < self.first) | (positions >= length - self.last)
            change = change * chosen.view(1, -1, 1).to(change.dtype)
        changed = first + change
        return (changed, *out[1:]) if isinstance(out, tuple) else changed
