"""VeRA: two random matrices that all layers share stay frozen; each layer trains two vectors that scale them.

    ΔW = diag(b) B diag(d) A,   A: (r, widest input), B: (widest output, r), each layer uses their leading part

Kopiczko et al. 2024, arXiv 2310.11454. A and B come from the seed `projection_prng_key` (Kaiming-uniform) and are
stored too unless `save_projection` is off. Trainable: r + out a layer. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d,
Embedding, MultiheadAttention, 2-D parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site
from ...core.layers.weights import BaseWeight
from .low_rank import LowRankDelta, kaiming


@dataclass(kw_only=True)
class VeraConfig(LayerConfig):
    """Configuration of VeRA; fields as in the reference.

    Attributes:
        r: rank of the frozen matrices.
        vera_dropout: dropout on the layer's input.
        d_initial: d at the start.
    """

    r: int = bounded(256, ge=1, le=2**20)
    projection_prng_key: int = bounded(0, ge=0)
    save_projection: bool = True
    vera_dropout: float = bounded(0.0, ge=0, lt=1)
    d_initial: float = 0.1
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 6e-3
    rate_exponent: ClassVar[float] = 1.0
    default_targets: ClassVar[Mapping[str, list[str] | str]] = MappingProxyType({"phi": ["q_proj", "v_proj"]})


class Projections(nn.Module):
    """The frozen matrices that all layers of one adapter share, as buffers A: (rows, widest in), B: (widest out, r)."""

    def __init__(self, names: tuple[str, str], layers: Mapping[str, BaseWeight], rows: int, config: Any,
                 dtype: torch.dtype) -> None:  # fmt: skip
        super().__init__()
        shapes = [base.shape for base in layers.values()]
        generator = torch.Generator().manual_seed(config.projection_prng_key)
        A = kaiming(generator, rows, max(math.prod(s[1:]) for s in shapes))
        B = kaiming(generator, max(s[0] for s in shapes), config.r)
        device = next(iter(layers.values())).device
        for name, value in zip(names, (A, B), strict=True):
            self.register_buffer(name, value.to(device, dtype), persistent=config.save_projection)


@register("VERA", VeraConfig)
class Vera(LowRankDelta):
    """`vera_lambda_b`: (out,), `vera_lambda_d`: (r,)."""

    steady: ClassVar[bool] = True
    prefix = "vera_lambda_"

    def __init__(self, site: Site, config: VeraConfig) -> None:
        super().__init__(site, config)
        self.share(site.shared)
        self.vera_lambda_b = site.zeros(self.out_features)
        self.vera_lambda_d = site.full(config.d_initial, config.r)
        if not config.init_weights:
            nn.init.normal_(self.vera_lambda_b)
        self.drop(config.vera_dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        d, b = self.vera_lambda_d, self.vera_lambda_b
        A, B = (self.shared.get_buffer(n).to(d) for n in ("vera_A", "vera_B"))
        return d[:, None] * A[:, : self.in_features], b[:, None] * B[: self.out_features]

    @classmethod
    def build_shared(cls, config: VeraConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> nn.Module:
        return Projections(("vera_A", "vera_B"), layers, config.r, config, dtype)
