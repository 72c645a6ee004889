"""RoAd: pairs of a layer's outputs are rotated in their plane and scaled.

    y' = α_c cos θ_c ∘ y + α_s sin θ_s ∘ (-y_2, y_1),   (y_1, y_2) = elements j and j + g/2 of each group of g outputs

Liao and Monz 2024, arXiv 2409.00119. road_1: one angle and one scale a pair; road_2: one of each an output; road_4:
the cosine and the sine have their own too. Trainable: out, 2 · out, 4 · out a layer. Mergeable. Layers: Linear,
Conv1D, Conv1d/2d/3d, Embedding, MultiheadAttention, 2-D parameters, where g divides the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site, WeightTransform
from ...core.hosts.view import View
from ...errors import ConfigError

_PER_OUTPUT = (("road_1", 0.5), ("road_2", 1.0), ("road_4", 2.0))


@dataclass(kw_only=True)
class RoadConfig(LayerConfig):
    """Configuration of RoAd; fields as in the reference.

    Attributes:
        variant: "road_1", "road_2" or "road_4".
        group_size: g, outputs of a group; an even number.
    """

    variant: str = "road_1"
    group_size: int = bounded(64, ge=2)
    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 3e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in dict(_PER_OUTPUT):
            raise ConfigError("unknown variant", where="variant", got=self.variant,
                              expected=", ".join(dict(_PER_OUTPUT)))  # fmt: skip
        if self.group_size % 2:
            raise ConfigError("outputs are rotated in pairs", where="group_size", got=self.group_size,
                              expected="an even number")  # fmt: skip


@register("ROAD", RoadConfig)
class Road(WeightTransform):
    """`road_theta`, `road_alpha`: (out / 2,), (out,) or (2 out,)."""

    steady: ClassVar[bool] = True
    prefix = "road_"
    kinds = frozenset({"linear", "conv", "embedding", "attention", "parameter"})

    def __init__(self, site: Site, config: RoadConfig) -> None:
        super().__init__(site, config)
        out = site.base.out_features
        if out % config.group_size:
            raise ConfigError("must divide the layer's outputs", where=f"group_size at {site.name}",
                              got=config.group_size, expected=f"a divisor of {out}")  # fmt: skip
        self.group, self.form = config.group_size, config.variant
        size = int(dict(_PER_OUTPUT)[config.variant] * out)
        self.road_theta = site.zeros(size) if config.init_weights else site.normal(0.5, size)
        self.road_alpha = site.full(1.0, size) if config.init_weights else site.normal(0.5, size)
        self.last = site.base.kind == "linear"

    def _factors(self) -> tuple[Tensor, Tensor]:
        """What multiplies y and the turned y, (out,) each."""
        theta: Tensor = self.road_theta
        alpha: Tensor = self.road_alpha
        if self.form == "road_1":
            theta, alpha = (t.view(-1, 1, self.group // 2).expand(-1, 2, -1).reshape(-1) for t in (theta, alpha))
        if self.form != "road_4":
            return alpha * torch.cos(theta), alpha * torch.sin(theta)
        angles, scales = theta.view(-1, 2, self.group), alpha.view(-1, 2, self.group)
        return (scales[:, 0] * torch.cos(angles[:, 0])).flatten(), (scales[:, 1] * torch.sin(angles[:, 1])).flatten()

    def _turn(self, y: Tensor) -> Tensor:
        """The rotation of outputs in the last axis."""
        first, second = y.reshape(*y.shape[:-1], -1, 2, self.group // 2).unbind(-2)
        straight, across = self._factors()
        return straight * y + across * torch.stack([-second, first], dim=-2).flatten(-3)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self._turn(weight.movedim(0, -1)).movedim(-1, 0), None if bias is None else self._turn(bias)

    def forward(self, inner: View, x: Any) -> Any:
        return self._turn(inner(x)) if self.last else super().forward(inner, x)
