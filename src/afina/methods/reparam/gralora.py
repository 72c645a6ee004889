"""GraLoRA: a k x k grid of small LoRAs, one for each pair of input and output blocks, optionally beside a plain one.

    ΔW[block m, block n] = s · B_mn A_mn of rank r / k,   s = alpha / (r + hybrid_r);   + s · B A of rank hybrid_r

Jung et al. 2025, arXiv 2505.20355. Trainable: (r + hybrid_r) (in · kernel + out) a layer. Mergeable. Layers: Linear,
Conv1D, Conv1d/2d/3d, MultiheadAttention, 2-D parameters, where k divides in · kernel and out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import DeltaWeight, Site
from ...errors import ConfigError


@dataclass(kw_only=True)
class GraloraConfig(LayerConfig):
    """Configuration of GraLoRA; fields as in the reference.

    Attributes:
        r: rank of a row of blocks together; one block has r / gralora_k.
        hybrid_r: rank of the plain LoRA beside the grid; 0 for none.
        alpha: s = alpha / (r + hybrid_r).
        gralora_dropout: dropout on the layer's input.
        gralora_k: blocks along a side of the grid; divides r.
    """

    r: int = bounded(32, ge=1, le=2**20)
    hybrid_r: int = bounded(0, ge=0, le=2**20)
    alpha: int | float = bounded(64, gt=0, le=1e9)
    gralora_dropout: float = bounded(0.0, ge=0, lt=1)
    gralora_k: int = bounded(2, ge=1)
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 2e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r % self.gralora_k:
            raise ConfigError("must be a multiple of gralora_k", where="r", got=self.r, expected=self.gralora_k)


@register("GRALORA", GraloraConfig)
class Gralora(DeltaWeight):
    """`gralora_A`: (k, in / k, r), `gralora_B`: (k, r, out / k); the plain pair: (hybrid_r, in), (out, hybrid_r)."""

    steady: ClassVar[bool] = True
    prefix = "gralora_"
    kinds = frozenset({"linear", "conv", "attention", "parameter"})
    disk_names: ClassVar[Mapping[str, str]] = MappingProxyType(
        {f"gralora_{letter}_general": f"gralora_{letter}_general.weight" for letter in "AB"}
    )

    def __init__(self, site: Site, config: GraloraConfig) -> None:
        super().__init__(site, config)
        out, width, k, r = site.base.out_features, math.prod(site.base.shape[1:]), config.gralora_k, config.r
        for size in (out, width):
            if size % k:
                raise ConfigError("must divide the layer's inputs and outputs", where=f"gralora_k at {site.name}",
                                  got=k, expected=f"a divisor of {size}")  # fmt: skip
        self.k = k
        self.scaling = self.initial_scaling = config.alpha / (r + config.hybrid_r)
        self.gralora_A, self.gralora_B = site.empty(k, width // k, r), site.zeros(k, r, out // k)
        nn.init.uniform_(self.gralora_A, -math.sqrt(k / width), math.sqrt(k / width))
        if config.hybrid_r:
            self.gralora_A_general = site.empty(config.hybrid_r, width)
            self.gralora_B_general = site.zeros(out, config.hybrid_r)
            nn.init.kaiming_uniform_(self.gralora_A_general, a=math.sqrt(5))
        self.hybrid = bool(config.hybrid_r)
        if not config.init_weights:
            for late in (self.gralora_B, *([self.gralora_B_general] if self.hybrid else [])):
                nn.init.kaiming_uniform_(late, a=math.sqrt(5))
        self.drop(config.gralora_dropout)

    def delta(self, weight: Tensor) -> Tensor:
        k = self.k
        A = self.gralora_A.view(k, self.gralora_A.shape[1], k, -1)
        B = self.gralora_B.view(k, k, -1, self.gralora_B.shape[2])
        # m, n: output and input block; q: rank of one block.
        flat = torch.einsum("mnqo,nimq->moni", B, A).reshape(weight.shape[0], -1)
        if self.hybrid:
            flat = flat + self.gralora_B_general @ self.gralora_A_general
        return self.scaling * flat.view(weight.shape)
