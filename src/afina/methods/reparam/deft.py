"""DEFT: take a low-dimensional subspace of the outputs out of the weight, and put a trained matrix in its place.

    W' = (I - Π_P) W + s · Q_P R;   relu: Π_P = P relu(P)ᵀ, Q_P = P;   qr: Q_P = qr(P), Π_P = Q_P Q_Pᵀ;   PaRa: no R

DEFT 2025, NeurIPS; PaRa: Chen et al. 2024, arXiv 2406.05641. R starts so that nothing changes (except with PaRa).
Trainable: r (out + in), with PaRa r · out. Mergeable. Layers: Linear, Conv1D, attention, 2-D parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site, WeightTransform
from ...core.hosts.view import View


@dataclass(kw_only=True)
class DeftConfig(LayerConfig):
    """Configuration of DEFT; fields as in the reference.

    Attributes:
        r: dimensions of the subspace.
        decomposition_method: how the projections follow from P.
        init_scale: factor of P at the start.
        alpha: s = alpha / r; None for s = 1.
        para: only take the subspace out (PaRa): there is no R.
        deft_dropout: dropout on the input of the part that is put in.
        init_weights: choose R so that the outputs do not change; False starts it at random.
    """

    r: int = bounded(8, ge=1, le=2**20)
    decomposition_method: Literal["relu", "qr"] = "relu"
    init_scale: float = 1.0
    alpha: float | None = None
    para: bool = False
    fan_in_fan_out: bool = False
    deft_dropout: float = bounded(0.0, ge=0, lt=1)
    init_weights: bool = True
    bias: str = "none"

    default_learning_rate: ClassVar[float] = 1e-3


@register("DEFT", DeftConfig)
class Deft(WeightTransform):
    """`deft_P`: (out, r); `deft_R`: (r, in)."""

    steady: ClassVar[bool] = True
    prefix = "deft_"
    kinds = frozenset({"linear", "attention", "parameter"})

    def __init__(self, site: Site, config: DeftConfig) -> None:
        super().__init__(site, config)
        out, width = site.base.shape
        self.by_qr = config.decomposition_method == "qr"
        self.scaling = 1.0 if config.alpha is None else config.alpha / config.r
        self.dropout = nn.Dropout(config.deft_dropout) if config.deft_dropout else None
        self.deft_P = site.empty(out, config.r)
        nn.init.kaiming_uniform_(self.deft_P, a=math.sqrt(5))
        if not self.deft_P.is_meta:
            self.deft_P.data.mul_(config.init_scale)
        self.deft_R: nn.Parameter | None = None
        if not config.para:
            self.deft_R = site.normal(0.02, config.r, width)
            if config.init_weights and not self.deft_P.is_meta:
                with torch.no_grad():
                    _, right = self._subspace()
                    self.deft_R.copy_(right.T @ site.base.read()[0].to(site.dtype) / self.scaling)

    def _subspace(self) -> tuple[Tensor, Tensor]:
        """(Q, Z) with Π = Q Zᵀ."""
        if self.by_qr:
            wide = torch.promote_types(self.deft_P.dtype, torch.float32)
            basis = torch.linalg.qr(self.deft_P.to(wide)).Q.to(self.deft_P.dtype)
            return basis, basis
        return self.deft_P, torch.relu(self.deft_P)

    def _parts(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """(W - Π W, what is put in the place of the removed part)."""
        left, right = self._subspace()
        added = None if self.deft_R is None else self.scaling * (left @ self.deft_R)
        return weight - left @ (right.T @ weight), added

    def forward(self, inner: View, x: Any) -> Any:
        if self.dropout is None or not self.training or not inner.base.additive:
            return super().forward(inner, x)
        weight, bias = inner.params()
        kept, added = self._parts(weight)
        out = inner.apply(x, kept, bias)
        return out if added is None else out + inner.apply(self.dropout(x), added, None)

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW, which depends on the weight."""
        return self.merged(weight, None)[0] - weight

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        kept, added = self._parts(weight)
        return (kept if added is None else kept + added), bias
