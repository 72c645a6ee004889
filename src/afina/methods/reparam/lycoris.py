"""What LoHa and LoKr share: alpha / rank scaling, ranks by pattern, and dropout of rows or of the whole update."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.config import LayerConfig, bounded
from ...core.hosts.adapter import DeltaWeight, Site
from ...core.inject.patterns import value_for


@dataclass(kw_only=True)
class LycorisConfig(LayerConfig):
    """Fields that LoHa and LoKr have in common, as in the reference.

    Attributes:
        alpha: the update counts alpha / r.
        rank_dropout: probability that a row of the update is left out in a training step.
        module_dropout: probability that the whole update is.
        use_effective_conv2d: give kernels larger than 1 a Tucker core.
    """

    r: int = bounded(8, ge=1, le=2**20)
    alpha: int | float = bounded(8, gt=0, le=1e9)
    rank_dropout: float = bounded(0.0, ge=0, lt=1)
    module_dropout: float = bounded(0.0, ge=0, lt=1)
    use_effective_conv2d: bool = False

    def idle(self, model: Any, paths: Sequence[str]) -> Iterable[str]:
        kernels = (getattr(model.get_submodule(p), "kernel_size", ()) for p in paths)
        tucker = any(k > 1 for kernel in kernels if isinstance(kernel, tuple) for k in kernel)
        return ["use_effective_conv2d (no kernel is larger than 1)"] if self.use_effective_conv2d and not tucker else []

    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"bounds": {"ge": 1}})
    alpha_pattern: dict[str, int | float] = field(default_factory=dict, metadata={"bounds": {"gt": 0}})
    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 1e-3


class Lycoris(DeltaWeight):
    """A subclass builds its factors in `__init__` and gives `product`."""

    reference_attributes = frozenset({"r", "alpha", "scaling"})
    kinds = frozenset({"linear", "conv", "embedding", "attention", "parameter"})

    def __init__(self, site: Site, config: LycorisConfig) -> None:
        super().__init__(site, config)
        self.r = int(value_for(site.name, config.rank_pattern, config.r))
        self.alpha = value_for(site.name, config.alpha_pattern, config.alpha, "alpha_pattern")
        self.scaling = self.initial_scaling = self.alpha / self.r
        self.rank_dropout, self.module_dropout = config.rank_dropout, config.module_dropout
        self.scale_dropped = bool(getattr(config, "rank_dropout_scale", False))
        kernel = site.base.shape[2:]
        # Tucker factors only pay where there is a kernel to factor.
        self.tucker = config.use_effective_conv2d and len(kernel) > 0 and any(k > 1 for k in kernel)

    def product(self) -> Tensor:
        """The unscaled update, reshapeable to the weight's shape."""
        raise NotImplementedError

    def delta(self, weight: Tensor) -> Tensor:
        out: Tensor = self.scaling * self.product().reshape(weight.shape)
        if self.training and self.rank_dropout:
            keep = (torch.rand(out.shape[0], device=out.device) >= self.rank_dropout).to(out.dtype)
            out = out * keep.view(-1, *(1 for _ in out.shape[1:]))
            if self.scale_dropped:
                out = out / keep.mean().clamp_min(1 / out.shape[0])
        if self.training and self.module_dropout:
            # A factor and not a branch, so that compiled code has one path.
            out = out * (torch.rand((), device=out.device) >= self.module_dropout).to(out.dtype)
        return out
