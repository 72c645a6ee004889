"""LoHa: the weight update as an elementwise product of two low-rank matrices, so rank r² with twice LoRA's parameters.

    ΔW = (alpha / r) · (w1_a w1_b) ∘ (w2_a w2_b);   convolutions may use Tucker cores t1, t2 of (r, r, *kernel)

Hyeon-Woo, Ye-Bin, Oh 2021 (FedPara), arXiv 2108.06098. As in LyCORIS, w2_a starts at zero.
Trainable: 2 r (out + in · kernel); with cores 2 (r² · kernel + r (out + in)). Mergeable. Layers: Linear, Conv1D,
Conv1d/2d/3d (grouped too), Embedding, MultiheadAttention, 2-D parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ...core.config import register
from ...core.hosts.adapter import Site
from .lycoris import Lycoris, LycorisConfig


@dataclass(kw_only=True)
class LoHaConfig(LycorisConfig):
    """Configuration of LoHa; fields as in the reference, all of them `LycorisConfig`'s."""


@register("LOHA", LoHaConfig)
class LoHa(Lycoris):
    """w1_a, w2_a: (out, r); w1_b, w2_b: (r, in · kernel). With cores: a (r, out), b (r, in), t (r, r, *kernel)."""

    steady: ClassVar[bool] = True
    prefix = "hada_"

    def __init__(self, site: Site, config: LoHaConfig) -> None:
        super().__init__(site, config)
        out, width, *kernel = site.base.shape
        shape_a = (self.r, out) if self.tucker else (out, self.r)
        shape_b = (self.r, width if self.tucker else width * math.prod(kernel))
        self.hada_w1_a, self.hada_w1_b = site.normal(0.1, *shape_a), site.normal(1.0, *shape_b)
        self.hada_w2_a = site.zeros(*shape_a) if config.init_weights else site.normal(0.1, *shape_a)
        self.hada_w2_b = site.normal(1.0, *shape_b)
        self.hada_t1: nn.Parameter | None = None
        self.hada_t2: nn.Parameter | None = None
        if self.tucker:
            self.hada_t1 = site.normal(0.1, self.r, self.r, *kernel)
            self.hada_t2 = site.normal(0.1, self.r, self.r, *kernel)

    def product(self) -> Tensor:
        return self._factor(self.hada_w1_a, self.hada_w1_b, self.hada_t1) * self._factor(
            self.hada_w2_a, self.hada_w2_b, self.hada_t2
        )

    @staticmethod
    def _factor(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
        if core is None:
            return a @ b
        # core: (r of a, r of b, *kernel) -> (out, in, *kernel)
        spread = (a.T @ core.flatten(1)).view(a.shape[1], *core.shape[1:])
        return (b.T @ spread.flatten(2)).view(a.shape[1], b.shape[1], *core.shape[2:])
