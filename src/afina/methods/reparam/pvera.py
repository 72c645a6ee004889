"""PVeRA: VeRA whose low-rank activations are drawn from a normal distribution that the adapter learns.

    y = W x + b ∘ B z,   z = μ + ε ∘ exp(log σ² / 2),   (μ, log σ²) = d ∘ (A x)

Fillioux et al. 2025, arXiv 2512.07703. A: (2 r, widest input) and B: (widest output, r) are shared and frozen, from
the seed `projection_prng_key` and are stored too unless `save_projection` is off. Outside of training z = μ and ΔW =
diag(b) B diag(d_μ) A_μ, unless `sample_at_inference` is set; then the layer cannot be merged (the reference merges the
mean). Trainable: 2 r + out a layer. Mergeable. Layers: Linear, Conv1D.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site
from ...core.hosts.view import View
from ...core.layers.weights import BaseWeight
from ...errors import AfinaWarning, NotMergeable
from .low_rank import LowRankDelta
from .vera import Projections


@dataclass(kw_only=True)
class PveraConfig(LayerConfig):
    """Configuration of PVeRA; fields as in the reference.

    Attributes:
        r: rank of the frozen matrices.
        pvera_dropout: dropout on the layer's input.
        d_initial: d at the start.
        sample_at_inference: draw z outside of training too.
        generator_seed: without effect: torch's own generator draws, because checkpointing replays that one.
    """

    r: int = bounded(256, ge=1, le=2**20)
    projection_prng_key: int = bounded(0, ge=0)
    save_projection: bool = True
    pvera_dropout: float = bounded(0.0, ge=0, lt=1)
    d_initial: float = 0.1
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool = True
    sample_at_inference: bool = False
    generator_seed: int | None = None

    default_learning_rate: ClassVar[float] = 4e-3
    default_targets: ClassVar[Mapping[str, list[str] | str]] = MappingProxyType(
        {"phi": ["q_proj", "v_proj"], "dinov2": ["query", "value"]}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generator_seed is not None:
            warnings.warn("generator_seed has no effect; use torch.manual_seed", AfinaWarning, stacklevel=3)


@register("PVERA", PveraConfig)
class Pvera(LowRankDelta):
    """`pvera_lambda_b`: (out,), `pvera_lambda_d`: (2 r,), the means' factors first."""

    steady: ClassVar[bool] = True
    prefix = "pvera_lambda_"
    kinds = frozenset({"linear"})

    def __init__(self, site: Site, config: PveraConfig) -> None:
        super().__init__(site, config)
        self.share(site.shared)
        self.pvera_lambda_b = site.zeros(self.out_features)
        self.pvera_lambda_d = site.full(config.d_initial, 2 * config.r)
        if not config.init_weights:
            nn.init.normal_(self.pvera_lambda_b)
        self.sample_at_inference = config.sample_at_inference
        self.drop(config.pvera_dropout)

    def _both(self) -> tuple[Tensor, Tensor]:
        """d ∘ A, the means' rows first, and b ∘ B."""
        d, b = self.pvera_lambda_d, self.pvera_lambda_b
        A, B = (self.shared.get_buffer(n).to(d) for n in ("pvera_A", "pvera_B"))
        return d[:, None] * A[:, : self.in_features], b[:, None] * B[: self.out_features]

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = self._both()
        return A[: B.shape[1]], B

    def forward(self, inner: View, x: Any) -> Any:
        if not self.training and not self.sample_at_inference:
            return super().forward(inner, x)
        A, B = self._both()
        mean, log_variance = F.linear(self.dropped(x), A).chunk(2, dim=-1)
        return inner(x) + F.linear(mean + torch.randn_like(mean) * torch.exp(log_variance / 2), B)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.sample_at_inference:
            raise NotMergeable("a layer that samples at inference is no fixed weight", where=type(self).__name__)
        return super().merged(weight, bias)

    @classmethod
    def build_shared(cls, config: PveraConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> nn.Module:
        return Projections(("pvera_A", "pvera_B"), layers, 2 * config.r, config, dtype)
