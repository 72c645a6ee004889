"""DeLoRA: LoRA whose ranks are normalised, so that a trained bound alone sets the size of the update.

    ΔW = (λ / r) · B diag(1 / (||a_i|| ||b_i||)) A diag(w),   w_j = norm of W's column j at the start

Bini et al. 2025, arXiv 2503.18225. Norms below 1e-4 count as 1e-4. w is stored. Trainable: r (in · kernel + out) + 1 a
layer. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d, Embedding, MultiheadAttention, 2-D parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site
from ...core.inject.patterns import value_for
from .low_rank import LowRankDelta


@dataclass(kw_only=True)
class DeloraConfig(LayerConfig):
    """Configuration of DeLoRA; fields as in the reference.

    Attributes:
        delora_lambda: λ at the start.
        module_dropout: probability that a layer's update is left out in a training step.
        lambda_pattern: names or patterns of modules -> their own λ.
    """

    r: int = bounded(8, ge=1, le=2**20)
    delora_lambda: int | float = bounded(15, gt=0)
    module_dropout: float = bounded(0.0, ge=0, lt=1)
    bias: str = "none"
    init_weights: bool = True
    rank_pattern: dict[str, int] | None = field(default_factory=dict, metadata={"bounds": {"ge": 1}})
    lambda_pattern: dict[str, int | float] | None = field(default_factory=dict, metadata={"bounds": {"ge": 0}})

    default_learning_rate: ClassVar[float] = 1e-3


@register("DELORA", DeloraConfig)
class Delora(LowRankDelta):
    """`delora_A`: (r, in · kernel), `delora_B`: (out, r), `delora_lambda`: (1,), `delora_w_norm`: (in · kernel,)."""

    steady: ClassVar[bool] = True
    prefix = "delora_"

    def __init__(self, site: Site, config: DeloraConfig) -> None:
        super().__init__(site, config)
        rank = int(value_for(site.name, config.rank_pattern, config.r))
        bound = float(value_for(site.name, config.lambda_pattern, config.delora_lambda, "lambda_pattern"))
        self.delora_A = site.empty(rank, self.in_features)
        nn.init.kaiming_uniform_(self.delora_A, a=math.sqrt(5))
        self.delora_B = site.zeros(self.out_features, rank)
        if not config.init_weights:
            nn.init.kaiming_uniform_(self.delora_B, a=math.sqrt(5))
        self.delora_lambda = site.full(bound, 1)
        with torch.no_grad():
            norms = site.base.read()[0].flatten(1).float().norm(dim=0)
        self.register_buffer("delora_w_norm", norms.to(site.dtype))
        self.module_dropout = config.module_dropout

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = self.delora_A, self.delora_B
        sizes = A.norm(dim=1).clamp(min=1e-4) * B.norm(dim=0).clamp(min=1e-4)
        bound = self.delora_lambda / len(A)
        if self.training and self.module_dropout:
            bound = bound * (torch.rand(1, device=A.device) >= self.module_dropout).to(bound)
        return A * self.get_buffer("delora_w_norm"), B * (bound / sizes)
