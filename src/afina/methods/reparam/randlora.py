"""RandLoRA: a full-rank update as a sum of frozen random low-rank matrices, of which only diagonal factors are trained.

    ΔW = s · Σ_j B_j diag(λ_j) A diag(γ_j),   s = alpha / r,   n = ceil(min(in, out) / r) summands

Albert et al. 2025, arXiv 2502.00987. A: (r, 1, narrow), B: (wide, n, r) are shared by all layers, each using their
leading part (layers that are wider than tall use the transpose). They come from the seed `projection_prng_key`
(bfloat16 numbers, or signs where `sparse`), scaled to unit variance, and are stored with every layer as well, as the
reference does, unless `save_projection` is off. The reference pairs B's columns, counted by summand and rank, with A's
rows, counted by rank and summand; its files mean that. Trainable: n · (r + min(in, out)) a layer. Mergeable. Layers:
Linear, Conv1D, Conv1d/2d/3d, Embedding, MultiheadAttention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site
from ...core.layers.weights import BaseWeight
from .low_rank import LowRankDelta

_NAMES = ("randlora_A", "randlora_B")


@dataclass(kw_only=True)
class RandLoraConfig(LayerConfig):
    """Configuration of RandLoRA; fields as in the reference.

    Attributes:
        r: rank of one summand.
        sparse: make A and B of signs, two thirds of them zero.
        very_sparse: make A and B of signs, nearly all of them zero.
        randlora_dropout: dropout on the layer's input.
        randlora_alpha: s = randlora_alpha / r.
    """

    r: int = bounded(32, ge=1, le=2**20)
    projection_prng_key: int = bounded(0, ge=0)
    save_projection: bool = True
    sparse: bool = False
    very_sparse: bool = False
    randlora_dropout: float = bounded(0.0, ge=0, lt=1)
    fan_in_fan_out: bool = False
    randlora_alpha: int | float = bounded(640, gt=0, le=1e9)
    bias: str = "none"
    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 1e-3


class Bases(nn.Module):
    """The frozen A and B, as buffers."""

    def __init__(self, config: RandLoraConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> None:
        super().__init__()
        shapes = [base.shape for base in layers.values()]
        sides = max(s[0] for s in shapes), max(math.prod(s[1:]) for s in shapes)
        narrow, wide = min(sides), max(sides)
        count = math.ceil(narrow / config.r)
        generator = torch.Generator().manual_seed(config.projection_prng_key)
        if config.sparse or config.very_sparse:
            # Signs with the frequencies 1/2s, 1 - 1/s, 1/2s (Achlioptas 2003; Li et al. 2006).
            A, B = (torch.rand(s, generator=generator) for s in ((config.r, 1, narrow), (wide, count, config.r)))
            tail = [1 / (2 * math.sqrt(n)) if config.very_sparse else 1 / 6 for n in (narrow, wide)]
            A, B = ((x > 1 - t).float() - (x < t).float() for x, t in zip((A, B), tail, strict=True))
        else:
            A = _uniform(generator, config.r, 1, narrow)
            B = torch.cat([_uniform(generator, wide, 1, config.r) for _ in range(count)], dim=1)
        device = next(iter(layers.values())).device
        for name, value in zip(_NAMES, (A, B), strict=True):
            self.register_buffer(name, (value / value.std()).to(device, dtype), persistent=config.save_projection)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape, dtype=torch.bfloat16).uniform_(-bound, bound, generator=generator)


@register("RANDLORA", RandLoraConfig)
class RandLora(LowRankDelta):
    """`randlora_lambda`: (r, n), `randlora_gamma`: (n, min(in, out))."""

    steady: ClassVar[bool] = True
    prefix = "randlora_"
    reference_attributes = frozenset({"scaling"})

    def __init__(self, site: Site, config: RandLoraConfig) -> None:
        super().__init__(site, config)
        self.share(site.shared)
        self.narrow, self.wide = sorted((self.in_features, self.out_features))
        self.count = math.ceil(self.narrow / config.r)
        self.randlora_lambda = site.zeros(config.r, self.count)
        if not config.init_weights:
            nn.init.normal_(self.randlora_lambda)
        self.randlora_gamma = site.full(1 / self.narrow, self.count, self.narrow)
        self.scaling = self.initial_scaling = config.randlora_alpha / config.r
        self.saves_bases = config.save_projection
        self.drop(config.randlora_dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = (self.shared.get_buffer(n).to(self.randlora_lambda) for n in _NAMES)
        short = (self.randlora_lambda[:, :, None] * A[:, :, : self.narrow] * self.randlora_gamma).flatten(0, 1)
        tall = self.scaling * B[: self.wide, : self.count].flatten(1)
        return (short, tall) if self.out_features >= self.in_features else (tall.T, short.T)

    @classmethod
    def build_shared(cls, config: RandLoraConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> nn.Module:
        return Bases(config, layers, dtype)

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**own, **(self.shared.state_dict() if self.saves_bases else {})}

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        # The copies of the bases are read once, by the module that holds them.
        self.assign({n: t for n, t in tensors.items() if n not in _NAMES})
