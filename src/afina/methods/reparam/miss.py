"""MiSS: an update whose columns repeat with period r, and a variant that multiplies blocks of the weight.

    ΔW[o, i] = D[i mod r, o];   "mini": D's columns repeat too, D[i mod r, o mod mini_r];
    "bat": ΔW[block o, block i] = W[block o, block i] · D_o + D_o,   blocks of r x r

Kang and Yin 2024, arXiv 2409.15371 (formerly Bone). Trainable: r · out, r · mini_r or r · out a layer. Mergeable.
Layers: Linear, Conv1D, Conv1d/2d/3d, Embedding, MultiheadAttention, 2-D parameters ("bat": where r divides in · kernel
and out).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site
from ...errors import ConfigError
from .low_rank import LowRankDelta


@dataclass(kw_only=True)
class MissConfig(LayerConfig):
    """Configuration of MiSS; fields as in the reference.

    Attributes:
        r: rows of D; of "bat", the side of a block.
        miss_dropout: dropout on the layer's input.
        mini_r: of "mini": columns of D.
        init_weights: True starts without changing the outputs, False at random; "bat" and "mini" choose these variants.
    """

    r: int = bounded(64, ge=1, le=2**20)
    miss_dropout: float = bounded(0.0, ge=0, lt=1)
    mini_r: int = bounded(1, ge=1)
    init_weights: bool | str = True
    bias: str = "none"

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "mini_r": ("init_weights", "mini"),
    }
    default_learning_rate: ClassVar[float] = 2e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_weights not in (True, False, "bat", "mini"):
            raise ConfigError("unknown choice", where="init_weights", got=self.init_weights,
                              expected="true, false, bat or mini")  # fmt: skip


@register("MISS", MissConfig)
class Miss(LowRankDelta):
    """`miss_block`: (r, out), mini (r, mini_r), bat (out / r, r, r)."""

    steady: ClassVar[bool] = True
    prefix = "miss_"

    def __init__(self, site: Site, config: MissConfig) -> None:
        super().__init__(site, config)
        out, r = self.out_features, config.r
        self.r, self.is_bat = r, config.init_weights == "bat"
        columns = config.mini_r if config.init_weights == "mini" else out
        if out % columns:
            raise ConfigError("must divide the layer's outputs", where=f"mini_r at {site.name}", got=columns,
                              expected=f"a divisor of {out}")  # fmt: skip
        if self.is_bat and (out % r or self.in_features % r):
            raise ConfigError("must divide the layer's inputs and outputs", where=f"r at {site.name}", got=r,
                              expected=f"a divisor of {math.gcd(out, self.in_features)}")  # fmt: skip
        self.miss_block = site.zeros(out // r, r, r) if self.is_bat else site.zeros(r, columns)
        if config.init_weights is False:
            nn.init.kaiming_uniform_(self.miss_block, a=math.sqrt(5))
        self.drop(config.miss_dropout)
        self.factored = self.factored and not self.is_bat

    def factors(self) -> tuple[Tensor, Tensor]:
        repeats = -(-self.in_features // self.r)
        period = torch.eye(self.r, dtype=self.dtype, device=self.miss_block.device).repeat(1, repeats)
        return period[:, : self.in_features], self.miss_block.T.repeat(self.out_features // self.miss_block.shape[1], 1)

    def delta(self, weight: Tensor) -> Tensor:
        if not self.is_bat:
            return super().delta(weight)
        r = self.r
        blocks = weight.reshape(self.out_features // r, r, -1, r)
        return (torch.einsum("opiq,oqs->opis", blocks, self.miss_block) + self.miss_block[:, :, None]).reshape(
            weight.shape
        )
