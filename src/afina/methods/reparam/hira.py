"""HiRA: the weight update as the weight itself times a low-rank matrix, elementwise, and so of high rank.

    ΔW = W ∘ (B A)

Huang et al. 2025, ICLR. Trainable: r (in · kernel + out). Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d (grouped
too), Embedding, MultiheadAttention, 2-D parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import DeltaWeight, Site
from ...core.inject.patterns import value_for


@dataclass(kw_only=True)
class HiraConfig(LayerConfig):
    """Configuration of HiRA; fields as in the reference.

    Attributes:
        hira_dropout: dropout on the layer's input.
    """

    r: int = bounded(32, ge=1, le=2**20)
    hira_dropout: float = bounded(0.0, ge=0, lt=1)
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"bounds": {"ge": 1}})
    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 1e-3


@register("HIRA", HiraConfig)
class Hira(DeltaWeight):
    """A: (r, in, *kernel); B: (out, r, *ones)."""

    steady: ClassVar[bool] = True
    prefix = "hira_"
    kinds = frozenset({"linear", "conv", "embedding", "attention", "parameter"})
    reference_attributes = frozenset({"r"})

    def __init__(self, site: Site, config: HiraConfig) -> None:
        super().__init__(site, config)
        self.r = int(value_for(site.name, config.rank_pattern, config.r))
        out, width, *kernel = site.base.shape
        self.hira_A = site.empty(self.r, width, *kernel)
        self.hira_B = site.zeros(out, self.r, *(1 for _ in kernel))
        nn.init.kaiming_uniform_(self.hira_A, a=math.sqrt(5))
        if not config.init_weights:
            nn.init.normal_(self.hira_B, std=1 / self.r)
        self.drop(config.hira_dropout)
        self.embedding = site.base.kind == "embedding"

    def delta(self, weight: Tensor) -> Tensor:
        return weight * (self.hira_B.flatten(1) @ self.hira_A.flatten(1)).view(weight.shape)

    @property
    def disk_names(self) -> Mapping[str, str]:  # type: ignore[override]
        """Embeddings have names of their own."""
        return {"hira_A": "hira_embedding_A", "hira_B": "hira_embedding_B"} if self.embedding else {}
