"""Uni-LoRA: the LoRA matrices of all layers read their elements from one short trained vector, at fixed random indices.

    ΔW = B A,   A[i, j] = θ[k] / sqrt(n_k),   k = index of that element, n_k = how many elements of all layers have it

Li et al. 2025, arXiv 2506.00799. Every index is used equally often, give or take one; which element has which follows
from `proj_seed` (numpy's PCG64) and the order of the layers; `save_indices` stores them too. Trainable: theta_d_length
for the whole model. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d, Embedding, MultiheadAttention.
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
from ...errors import CheckpointError, ConfigError
from .low_rank import LowRankDelta


@dataclass(kw_only=True)
class UniLoraConfig(LayerConfig):
    """Configuration of Uni-LoRA; fields as in the reference.

    Attributes:
        proj_seed: seed of the indices.
        theta_d_length: numbers of θ, all that is trained.
        unilora_dropout: dropout on the layer's input.
        init_theta_d_bound: bound of θ's uniform start; so the outputs change a little from the beginning.
        init_weights: start within that bound; False draws from N(0, 1).
        save_indices: store the indices with every layer.
    """

    r: int = bounded(4, ge=1, le=2**20)
    proj_seed: int = bounded(42, ge=0)
    theta_d_length: int = bounded(256, ge=1)
    unilora_dropout: float = bounded(0.0, ge=0, lt=1)
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_theta_d_bound: float = bounded(0.02, gt=0, le=1e6)
    init_weights: bool = True
    save_indices: bool = False

    default_learning_rate: ClassVar[float] = 5e-3


def balanced_indices(total: int, length: int, seed: int) -> Tensor:
    """`total` indices below `length` in random order, each as often as any other or once more."""
    import numpy as np

    generator = np.random.default_rng(seed)
    extra = generator.choice(length, total % length, replace=False)
    out = np.concatenate([np.repeat(np.arange(length), total // length), extra])
    generator.shuffle(out)
    return torch.from_numpy(out)


class Theta(nn.Module):
    """The trained vector (theta_d_length,), and which layer reads it where: in the model's order, A before B."""

    def __init__(self, config: UniLoraConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> None:
        super().__init__()
        device = next(iter(layers.values())).device
        theta = torch.empty(config.theta_d_length, dtype=dtype, device=device)
        bound = config.init_theta_d_bound
        self.unilora_theta_d = nn.Parameter(theta.uniform_(-bound, bound) if config.init_weights else theta.normal_())
        shapes = [base.shape for base in layers.values()]
        sides = [n for s in shapes for n in (math.prod(s[1:]), s[0])]
        if config.r > max(sides):
            raise ConfigError("larger than the layers", where="r", got=config.r, expected=f"<= {max(sides)}")
        sizes = [config.r * n for n in sides]
        every = balanced_indices(sum(sizes), config.theta_d_length, config.proj_seed)
        self.scales = torch.bincount(every, minlength=config.theta_d_length).clamp(min=1).rsqrt()
        pieces = torch.split(every, sizes)
        self.indices = dict(zip(layers, zip(pieces[::2], pieces[1::2], strict=True), strict=True))


@register("UNILORA", UniLoraConfig)
class UniLora(LowRankDelta):
    """Buffers `unilora_indices_*` and `unilora_scales_*`: A (r, in · kernel), B (out, r)."""

    prefix = "unilora_"

    def __init__(self, site: Site, config: UniLoraConfig) -> None:
        super().__init__(site, config)
        self.share(site.shared)
        self.length = config.theta_d_length
        shapes = {"A": (config.r, self.in_features), "B": (self.out_features, config.r)}
        for (letter, shape), flat in zip(shapes.items(), self.shared.indices.pop(site.name), strict=True):
            index = flat.view(shape)
            scales = self.shared.scales[index].to(site.base.device, site.dtype)
            self.register_buffer(f"unilora_indices_{letter}", index.to(site.base.device), config.save_indices)
            self.register_buffer(f"unilora_scales_{letter}", scales, config.save_indices)
        self.drop(config.unilora_dropout)

    @property
    def dtype(self) -> torch.dtype:
        theta: Tensor = self.shared.unilora_theta_d
        return theta.dtype

    def _read(self, letter: str) -> Tensor:
        index, scales = (self.get_buffer(f"unilora_{what}_{letter}") for what in ("indices", "scales"))
        theta: Tensor = self.shared.unilora_theta_d
        return theta.to(index.device)[index] * scales

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        for name, values in tensors.items():
            if not values.is_floating_point() and not 0 <= int(values.min()) <= int(values.max()) < self.length:
                raise CheckpointError("an index lies outside the trained vector", where=name, got=int(values.max()))
        super().load_disk_state(tensors)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self._read("A"), self._read("B")

    @classmethod
    def build_shared(cls, config: UniLoraConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> nn.Module:
        return Theta(config, layers, dtype)
