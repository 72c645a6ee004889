"""TinyLoRA: a handful of trained numbers that mix fixed random matrices inside the weight's leading singular subspace.

    ΔW = B (Σ_i v_i P_i) A,   B A = the best rank-r approximation of W, singular values split evenly,   P_i: (r, r)

Morris et al. 2026, arXiv 2602.04118. v is shared by runs of neighbouring layers: `weight_tying` 0 gives every layer
its own, 1 one for all. P comes from `projection_seed` plus the layer's number; it is stored with A and B unless
`save_projection` is off, then only A and B are. Trainable: u a group. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d,
Embedding, MultiheadAttention, 2-D parameters.
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
from ...core.layers.weights import BaseWeight
from .low_rank import LowRankDelta


@dataclass(kw_only=True)
class TinyLoraConfig(LayerConfig):
    """Configuration of TinyLoRA; fields as in the reference.

    Attributes:
        r: dimensions of the subspace.
        u: trained numbers of a group of layers.
        weight_tying: how much layers share: from 0, each has its own numbers, to 1, all have the same.
        projection_seed: of the matrices P.
        save_projection: store P; A and B are stored in any case.
        init_v_bound: bound of the uniform start.
        tinylora_dropout: dropout on the layer's input.
        init_weights: True starts without changing the outputs; False and "uniform" within `init_v_bound`.
    """

    r: int = bounded(2, ge=1, le=2**20)
    u: int = bounded(64, ge=1)
    weight_tying: float = bounded(0.0, ge=0, le=1)
    projection_seed: int = bounded(42, ge=0)
    save_projection: bool = True
    init_v_bound: float = bounded(0.02, gt=0)
    tinylora_dropout: float = bounded(0.0, ge=0, lt=1)
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool | str = True

    default_learning_rate: ClassVar[float] = 5e-3
    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {"init_v_bound": ("init_weights", ...)}


class Vectors(nn.Module):
    """The trained vectors, one (u,) for each group of layers, and every layer's number."""

    def __init__(self, config: TinyLoraConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> None:
        super().__init__()
        device = next(iter(layers.values())).device
        groups = max(1, round(len(layers) * (1 - config.weight_tying)))
        self.numbers = {name: i for i, name in enumerate(layers)}
        self.run, self.last = len(layers) // groups, groups - 1
        self.tinylora_v = nn.ParameterList(
            nn.Parameter(torch.zeros(config.u, dtype=dtype, device=device)) for _ in range(groups)
        )
        if config.init_weights is not True:
            bound = config.init_v_bound
            for v in self.tinylora_v:
                nn.init.uniform_(v, -bound, bound)


@register("TINYLORA", TinyLoraConfig)
class TinyLora(LowRankDelta):
    """Buffers `tinylora_A`: (r, in · kernel), `tinylora_B`: (out, r), `tinylora_P`: (u, r, r)."""

    prefix = "tinylora_"

    def __init__(self, site: Site, config: TinyLoraConfig) -> None:
        super().__init__(site, config)
        self.share(site.shared)
        number = self.shared.numbers[site.name]
        self.group = min(number // self.shared.run, self.shared.last)
        rank = min(config.r, self.in_features, self.out_features)
        generator = torch.Generator().manual_seed(config.projection_seed + number)
        P = torch.normal(0.0, 1 / math.sqrt(rank), (config.u, rank, rank), generator=generator)
        values = {"A": torch.empty(rank, self.rows[1]), "B": torch.empty(self.rows[0], rank), "P": P}
        if site.device.type != "meta":
            values |= self._subspace(site, rank)
        for letter, value in values.items():
            kept = letter != "P" or config.save_projection
            placed = value.to(site.base.device, site.dtype).contiguous()
            self.register_buffer(f"tinylora_{letter}", placed, persistent=kept)
        self.drop(config.tinylora_dropout)

    @property
    def dtype(self) -> torch.dtype:
        return self.get_buffer("tinylora_A").dtype

    @property
    def rows(self) -> tuple[int, int]:
        """The shape that is decomposed: an embedding's is (vocabulary, dim), as it is stored."""
        shape = self.out_features, self.in_features
        return (shape[1], shape[0]) if self.embedding else shape

    @torch.no_grad()
    def _subspace(self, site: Site, rank: int) -> dict[str, Tensor]:
        weight = site.base.read()[0].flatten(1).float()
        U, S, Vh = torch.linalg.svd(weight.T if self.embedding else weight, full_matrices=False)
        root = S[:rank].sqrt()
        return {"A": root[:, None] * Vh[:rank], "B": U[:, :rank] * root}

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B, P = (self.get_buffer(f"tinylora_{letter}") for letter in "ABP")
        v: Tensor = self.shared.tinylora_v[self.group]
        mixed = torch.einsum("u,urs->rs", v.to(P.device), P)
        return (B.T, A.T @ mixed.T) if self.embedding else (A, B @ mixed)

    @classmethod
    def build_shared(cls, config: TinyLoraConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> nn.Module:
        return Vectors(config, layers, dtype)
