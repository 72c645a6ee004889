"""HRA: the weight times a chain of Householder reflections.

    W' = W · H_1 H_2 ... H_r,   H_i = I - 2 u_i u_iᵀ / ||u_i||²   (optionally u_i made orthogonal by Gram-Schmidt)

Yuan et al. 2024, arXiv 2405.17484. Equal neighbours u_1 = u_2, ... make the chain start at the identity (r even).
Trainable: r · in · kernel (embedding: r · dim). Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d, Embedding, attention,
2-D parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site, WeightTransform
from .oft import as_rows, from_rows


@dataclass(kw_only=True)
class HRAConfig(LayerConfig):
    """Configuration of HRA; fields as in the reference.

    Attributes:
        r: reflections; an even number starts without changing the outputs.
        apply_GS: make their directions orthogonal, which leaves no start without a change.
    """

    r: int = bounded(8, ge=1, le=2**20)
    apply_GS: bool = False
    init_weights: bool = True
    bias: str = "none"

    default_learning_rate: ClassVar[float] = 1e-3


@register("HRA", HRAConfig)
class HRA(WeightTransform):
    """`hra_u`: (in · kernel, r)."""

    steady: ClassVar[bool] = True
    prefix = "hra_"
    kinds = frozenset({"linear", "conv", "embedding", "attention", "parameter"})

    def __init__(self, site: Site, config: HRAConfig) -> None:
        super().__init__(site, config)
        self.embedding = site.base.kind == "embedding"
        width = site.base.out_features if self.embedding else math.prod(site.base.shape[1:])
        self.r, self.gram_schmidt = config.r, config.apply_GS
        self.hra_u = site.empty(width, self.r)
        nn.init.kaiming_uniform_(self.hra_u, a=math.sqrt(5))
        # Orthogonalised directions must differ, so with Gram-Schmidt there is no start at the identity.
        if config.init_weights and not config.apply_GS and not self.hra_u.is_meta:
            with torch.no_grad():
                pairs = self.r // 2 * 2
                self.hra_u[:, 1:pairs:2] = self.hra_u[:, 0:pairs:2]

    def _directions(self) -> Tensor:
        units: Tensor = self.hra_u / self.hra_u.norm(dim=0)
        if not self.gram_schmidt:
            return units
        columns: list[Tensor] = []
        for i in range(self.r):
            left = self.hra_u[:, i]
            for done in columns:
                left = left - done * (done @ self.hra_u[:, i])
            columns.append(left / left.norm())
        return torch.stack(columns, dim=1)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        flat, units = as_rows(weight, self.embedding), self._directions()
        for i in range(self.r):
            flat = flat - 2 * torch.outer(flat @ units[:, i], units[:, i])
        return from_rows(flat, weight, self.embedding), bias
