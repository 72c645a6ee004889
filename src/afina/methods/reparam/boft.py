"""BOFT: the weight times a product of butterfly-permuted block rotations, and a trained scale for every output.

    W' = s ∘ (W · Π_i P_iᵀ blockdiag(R_i) P_i),   R = (I + Q)(I - Q)⁻¹,  Q = (M - Mᵀ) / 2

Liu et al. 2023, arXiv 2311.06243. P_0 is the identity; P_i gathers inputs that lie 2^(i-1) blocks of half the size
apart. The reference (0.21.2) keeps one factor whatever `boft_n_butterfly_factor` says: its files fit the default only.
Trainable: factors · in · kernel · b + out. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d, attention, 2-D parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site, WeightTransform
from ...errors import ConfigError
from .oft import cayley


@dataclass(kw_only=True)
class BOFTConfig(LayerConfig):
    """Configuration of BOFT; fields as in the reference. Exactly one of the first two is 0.

    Attributes:
        boft_block_size: b, inputs of a block.
        boft_block_num: blocks of a layer.
        boft_n_butterfly_factor: factors of the product.
        boft_dropout: probability that a block's rotation is left out in a training step.
    """

    boft_block_size: int = bounded(4, ge=0)
    boft_block_num: int = bounded(0, ge=0)
    boft_n_butterfly_factor: int = bounded(1, ge=1, le=32)
    boft_dropout: float = bounded(0.0, ge=0, lt=1)
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.boft_block_size == 0) == (self.boft_block_num == 0):
            raise ConfigError("exactly one must be 0", where="boft_block_size, boft_block_num",
                              got=f"{self.boft_block_size}, {self.boft_block_num}")  # fmt: skip


def butterfly(size: int, block: int, level: int) -> Tensor:
    """The order in which level `level` of a butterfly network gathers inputs: (size,) indices.

    Level 0 keeps the order; level i brings into one block the half-blocks that lie 2^(i-1) half-blocks apart.
    """
    if level == 0:
        return torch.arange(size)
    half = block // 2
    pieces = torch.arange(size).view(-1, half)
    group = 2**level
    # In each group of 2^level half-blocks, the first half is interleaved with the second.
    paired = pieces.view(-1, 2, group // 2, half).transpose(1, 2)
    return paired.reshape(-1)


@register("BOFT", BOFTConfig)
class BOFT(WeightTransform):
    """`boft_R`: (factors, blocks, b, b); `boft_s`: (out, 1), for convolutions (1, out)."""

    prefix = "boft_"
    kinds = frozenset({"linear", "conv", "attention", "parameter"})

    def __init__(self, site: Site, config: BOFTConfig) -> None:
        super().__init__(site, config)
        width, out = math.prod(site.base.shape[1:]), site.base.out_features
        self.block = config.boft_block_size or width // config.boft_block_num
        if width % self.block or (config.boft_block_num and width % config.boft_block_num):
            raise ConfigError("must divide the layer's inputs", where=f"boft_block_size at {site.name}",
                              got=self.block, expected=f"a divisor of {width}")  # fmt: skip
        factors, blocks = config.boft_n_butterfly_factor, width // self.block
        if factors > 1 and (self.block % 2 or blocks % 2 ** (factors - 1)):
            raise ConfigError("this many factors need an even block size and enough blocks",
                              where=f"boft_n_butterfly_factor at {site.name}", got=factors,
                              expected=f"2^(factors - 1) divides {blocks}")  # fmt: skip
        shape = (factors, blocks, self.block, self.block)
        self.boft_R = site.zeros(*shape) if config.init_weights else site.normal(0.1, *shape)
        self.boft_s = site.full(1.0, *((1, out) if site.base.kind == "conv" else (out, 1)))
        order = torch.stack([butterfly(width, self.block, i) for i in range(factors)])
        self.register_buffer("order", order.to(site.base.device), persistent=False)
        self.register_buffer("inverse", order.argsort(dim=1).to(site.base.device), persistent=False)
        self.drop = config.boft_dropout

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        flat = weight.flatten(1)
        for level in range(self.boft_R.shape[0]):
            q_NBB = (self.boft_R[level] - self.boft_R[level].mT) / 2
            blocks = cayley(q_NBB, None)
            if self.training and self.drop:
                keep = (torch.rand(len(blocks), 1, 1, device=flat.device) >= self.drop).to(flat.dtype)
                blocks = keep * blocks + (1 - keep) * torch.eye(self.block, dtype=flat.dtype, device=flat.device)
            gathered = flat[:, self.get_buffer("order")[level]].view(len(flat), -1, self.block)
            turned = torch.einsum("onb,nbc->onc", gathered, blocks).flatten(1)
            flat = turned[:, self.get_buffer("inverse")[level]]
        return (flat * self.boft_s.view(-1, 1)).view(weight.shape), bias
