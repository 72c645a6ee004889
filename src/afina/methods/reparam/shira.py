"""SHiRA: a sparse update, trained at a few random elements of the weight.

    ΔW[i_k, j_k] = v_k at n = r (in + out) random places

Bhardwaj et al. 2024, arXiv 2406.13175. The places are stored with the values. Trainable: r (in · kernel + out) a
layer. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d, Embedding, MultiheadAttention, 2-D parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import DeltaWeight, Site
from ...errors import CheckpointError, ConfigError


@dataclass(kw_only=True)
class ShiraConfig(LayerConfig):
    """Configuration of SHiRA; fields as in the reference.

    Attributes:
        r: as many values are trained as a LoRA of this rank has.
        mask_type: "random" is all there is.
        random_seed: of the places; None lets torch's own generator draw.
    """

    r: int = bounded(32, ge=1, le=2**20)
    mask_type: str = "random"
    random_seed: int | None = None
    fan_in_fan_out: bool = False
    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 5e-4
    default_targets: ClassVar[Mapping[str, list[str] | str]] = MappingProxyType({"phi": ["q_proj", "v_proj"]})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_type != "random":
            raise ConfigError("unknown choice", where="mask_type", got=self.mask_type, expected="random")


@register("SHIRA", ShiraConfig)
class Shira(DeltaWeight):
    """`shira_weight`: (n,), `shira_indices`: (2, n), rows and columns."""

    steady: ClassVar[bool] = True
    prefix = "shira_"
    kinds = frozenset({"linear", "conv", "embedding", "attention", "parameter"})

    def __init__(self, site: Site, config: ShiraConfig) -> None:
        super().__init__(site, config)
        self.size = out, width = site.base.out_features, math.prod(site.base.shape[1:])
        count = config.r * (out + width)
        if count > out * width:
            raise ConfigError("more values than the weight has elements", where=f"r at {site.name}", got=config.r,
                              expected=f"<= {out * width // (out + width)}")  # fmt: skip
        self.shira_weight = site.zeros(count) if config.init_weights else site.normal(1.0, count)
        generator = None if config.random_seed is None else torch.Generator().manual_seed(config.random_seed)
        places = torch.randperm(out * width, generator=generator)[:count]
        indices = torch.stack([places // width, places % width]).int()
        self.register_buffer("shira_indices", indices.to(site.base.device))

    def delta(self, weight: Tensor) -> Tensor:
        rows, columns = self.get_buffer("shira_indices").long()
        flat = self.shira_weight.new_zeros(self.size[0] * self.size[1])
        return flat.index_add(0, rows * self.size[1] + columns, self.shira_weight).view(weight.shape)

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        index = tensors["shira_indices"]
        if (index < 0).any() or (index >= torch.tensor(self.size)[:, None]).any():
            raise CheckpointError("an index lies outside the weight", where="shira_indices", got=int(index.max()),
                                  expected=f"below {self.size}")  # fmt: skip
        super().load_disk_state(tensors)
