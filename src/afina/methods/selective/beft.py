"""BEFT: a trained bias added to the output of chosen projections, by default the values of attention.

    y = W x + b + c

Huang et al. 2025, arXiv 2509.15974. Trainable: out a layer. Mergeable (a layer without a bias gets one). Layers:
Linear, Conv1D, Conv1d/2d/3d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...core.adapter import Site, WeightTransform
from ...core.config import LayerConfig, register
from ...core.view import View


@dataclass(kw_only=True)
class BeftConfig(LayerConfig):
    """Configuration of BEFT; fields as in the reference."""

    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 1e-3


@register("BEFT", BeftConfig)
class Beft(WeightTransform):
    """`beft_bias`: (1, out)."""

    prefix = "beft_"
    kinds = frozenset({"linear", "conv"})

    def __init__(self, site: Site, config: BeftConfig) -> None:
        super().__init__(site, config)
        out = site.base.out_features
        self.beft_bias = site.zeros(1, out) if config.init_weights else site.normal(1.0, 1, out)
        self.ones = (1,) * len(site.base.shape[2:])

    def forward(self, inner: View, x: Any) -> Any:
        return inner(x) + self.beft_bias.view(-1, *self.ones)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight, self.beft_bias[0] if bias is None else bias + self.beft_bias[0]
