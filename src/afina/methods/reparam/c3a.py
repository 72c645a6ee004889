"""C3A: the weight update as blocks that are circulant matrices, each given by its first row.

    ΔW[o b + p, i b + q] = k[o, i, (q - p) mod b] / in

Chen et al. 2024, arXiv 2407.19342; there the product is a Fourier transform, here the blocks are written out.
Trainable: in · kernel · out / b a layer. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d, MultiheadAttention, where b
divides in · kernel and out. With several active adapters the reference feeds one into the next; here their updates
add.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import DeltaWeight, Site
from ...core.inject.patterns import value_for
from ...errors import ConfigError

_STARTS = (True, False, "gaussian", "kaiming_uniform", "xavier_uniform")


@dataclass(kw_only=True)
class C3AConfig(LayerConfig):
    """Configuration of C3A; fields as in the reference.

    Attributes:
        block_size: b, side of a circulant block.
        block_size_pattern: names or patterns of modules -> their own b.
        init_weights: True starts at zero; "gaussian", "kaiming_uniform" and "xavier_uniform" (also False and None) at
            random.
    """

    block_size: int = bounded(256, ge=1)
    bias: str = "none"
    block_size_pattern: dict[str, int] | None = field(default_factory=dict, metadata={"bounds": {"ge": 1}})
    init_weights: bool | str | None = "xavier_uniform"

    default_learning_rate: ClassVar[float] = 1e-1
    default_targets: ClassVar[Mapping[str, list[str] | str]] = MappingProxyType(
        {model: ["mlp.c_proj"] for model in ("gpt2", "gpt_bigcode")}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_weights is not None and self.init_weights not in _STARTS:
            raise ConfigError("unknown start", where="init_weights", got=self.init_weights,
                              expected=", ".join(map(str, _STARTS)))  # fmt: skip


@register("C3A", C3AConfig)
class C3A(DeltaWeight):
    """`c3a_kernel`: (out / b, in · kernel / b, b)."""

    steady: ClassVar[bool] = True
    prefix = "c3a_"
    kinds = frozenset({"linear", "conv", "attention", "parameter"})

    def __init__(self, site: Site, config: C3AConfig) -> None:
        super().__init__(site, config)
        self.block = int(value_for(site.name, config.block_size_pattern, config.block_size, "block_size_pattern"))
        out, width = site.base.out_features, math.prod(site.base.shape[1:])
        for size in (out, width):
            if size % self.block:
                raise ConfigError("must divide the layer's inputs and outputs", where=f"block_size at {site.name}",
                                  got=self.block, expected=f"a divisor of {size}")  # fmt: skip
        shape = out // self.block, width // self.block, self.block
        self.width = width
        if config.init_weights is True:
            self.c3a_kernel = site.zeros(*shape)
        elif config.init_weights == "gaussian":
            self.c3a_kernel = site.normal(1.0, *shape)
        else:
            self.c3a_kernel = site.empty(*shape)
            bound = 1 / math.sqrt(width) if config.init_weights == "kaiming_uniform" else math.sqrt(6 / (out + width))
            nn.init.uniform_(self.c3a_kernel, -bound, bound)

    def delta(self, weight: Tensor) -> Tensor:
        step = torch.arange(self.block, device=weight.device)
        blocks = self.c3a_kernel[:, :, (step - step[:, None]) % self.block]
        return blocks.permute(0, 2, 1, 3).reshape(weight.shape) / self.width
