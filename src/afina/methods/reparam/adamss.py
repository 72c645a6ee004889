"""AdaMSS: the weight's rows fall into clusters, and each cluster learns a small update inside the leading row space.

    ΔW[rows k] = B_k A_k V,   V: the r leading right singular vectors of [W, b]; so Δb too, from V's last column

AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient Fine-Tuning, NeurIPS 2025 (OpenReview 8ZdWmpYxT0). The
rows of the left singular vectors are clustered; A_k starts at the leading right singular vectors of its cluster's, B_k
at zero. The file holds V but not who belongs to which cluster: that follows from the base and `random_seed`. With
`use_asa` fewer and fewer clusters go on learning: call `model.update_and_allocate(step)` before `zero_grad()` (exactly
the budget's number, where the reference keeps one less). Trainable: Σ_k rank_k (r + rows_k) a layer. Mergeable. Layers:
Linear, Conv1D, Conv1d/2d/3d, Embedding, MultiheadAttention, 2-D parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site
from ...core.hosts.view import View
from ...core.layers.weights import BaseWeight
from ...errors import AfinaWarning, ConfigError
from .low_rank import LowRankDelta
from .subspace_budget import SubspaceBudget
from .subspaces import k_means, leading_rows, leading_vectors


@dataclass(kw_only=True)
class AdamssConfig(LayerConfig):
    """Configuration of AdaMSS; fields as in the reference.

    Attributes:
        r: directions of the row space that all clusters' updates lie in.
        num_subspaces: clusters of a layer's rows.
        subspace_rank: rank of a cluster's update; with `use_dynamic_rank` the largest.
        init_weights: "orthogonal" starts without changing the outputs, None at random.
        use_asa: let fewer and fewer clusters learn.
        asa_target_subspaces: of `use_asa`: clusters of all layers together that learn to the end.
        init_warmup: of `use_asa`: the step at which their number begins to fall.
        final_warmup: of `use_asa`: the step at which it has fallen to the target.
        mask_interval: of `use_asa`: steps from one choice to the next.
        asa_importance_beta: of `use_asa`: decay of the smoothed importance.
        asa_uncertainty_beta: of `use_asa`: decay of its smoothed spread.
        asa_schedule_exponent: of `use_asa`: how early the number falls; 1 is a straight line, more is earlier.
        use_dynamic_rank: let a cluster's rank follow from its singular values.
        svd_threshold: of `use_dynamic_rank`: the share of the largest squared singular value that a direction must
            exceed.
        random_seed: of the random projection that finds V.
    """

    r: int = bounded(100, ge=1, le=2**20)
    num_subspaces: int = bounded(5, ge=1, le=2**20)
    subspace_rank: int = bounded(1, ge=1, le=2**20)
    init_weights: str | bool | None = "orthogonal"
    use_asa: bool = False
    asa_target_subspaces: int = bounded(50, ge=1)
    init_warmup: int = bounded(50, ge=0)
    final_warmup: int = bounded(1000, ge=1)
    mask_interval: int = bounded(100, ge=1)
    asa_importance_beta: float = bounded(0.85, ge=0, lt=1)
    asa_uncertainty_beta: float = bounded(0.85, ge=0, lt=1)
    asa_schedule_exponent: float = bounded(3.0, gt=0)
    use_dynamic_rank: bool = False
    svd_threshold: float = bounded(0.1, ge=0, lt=1)
    random_seed: int = bounded(0, ge=0)

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "asa_target_subspaces": ("use_asa", True),
        "init_warmup": ("use_asa", True),
        "final_warmup": ("use_asa", True),
        "mask_interval": ("use_asa", True),
        "asa_importance_beta": ("use_asa", True),
        "asa_uncertainty_beta": ("use_asa", True),
        "asa_schedule_exponent": ("use_asa", True),
        "svd_threshold": ("use_dynamic_rank", True),
    }
    default_learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.init_weights = self.init_weights or None
        if self.init_weights not in ("orthogonal", None):
            raise ConfigError("unknown start", where="init_weights", got=self.init_weights,
                              expected="orthogonal or None")  # fmt: skip
        if self.use_asa and self.init_warmup >= self.final_warmup:
            raise ConfigError("subspaces need steps in which they become fewer", where="init_warmup",
                              got=self.init_warmup, expected=f"< final_warmup = {self.final_warmup}")  # fmt: skip


@register("ADAMSS", AdamssConfig)
class Adamss(LowRankDelta):
    """`adamss_A.k`: (rank_k, r), `adamss_B.k`: (rows_k, rank_k), V is `adamss_newB`: (r, in · kernel [+ bias])."""

    steady: ClassVar[bool] = True
    prefix = "adamss_"

    def __init__(self, site: Site, config: AdamssConfig) -> None:
        super().__init__(site, config)
        self.name = site.name
        self.rank_limit = config.subspace_rank if config.use_dynamic_rank else 0
        self.stopped: frozenset[int] = frozenset()
        weight, bias = site.base.read()
        self.has_bias = bias is not None
        U, V = leading_vectors(weight, bias, config.r, config.random_seed)
        if len(V) == len(U) > config.num_subspaces > 1:
            told = "with r = rows these are all equally far apart and rounding decides on the clusters: take r < rows"
            warnings.warn(f"{site.name}: {told}, or a file may not fit elsewhere", AfinaWarning, stacklevel=2)
        members = k_means(U, config.num_subspaces, 10)
        threshold = config.svd_threshold if config.use_dynamic_rank else None
        self.register_buffer("order", torch.cat(members).to(site.base.device), persistent=False)
        self.register_buffer("adamss_newB", V.to(site.dtype).contiguous())
        self.adamss_A, self.adamss_B = nn.ParameterList(), nn.ParameterList()
        for rows in members:
            start = leading_rows(U[rows.to(U.device)], config.subspace_rank, threshold)
            self.adamss_A.append(nn.Parameter(start.to(device=site.device, dtype=site.dtype).contiguous()))
            size = len(rows), len(start)
            self.adamss_B.append(site.zeros(*size) if config.init_weights else site.normal(0.01, *size))
        if isinstance(site.shared, SubspaceBudget):
            site.shared.join(self)

    def _combined(self) -> Tensor:
        """(out, r): every row's B_k A_k."""
        parts = torch.cat([B @ A for A, B in zip(self.adamss_A, self.adamss_B, strict=True)])
        return torch.zeros_like(parts).index_copy(0, self.get_buffer("order"), parts)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.get_buffer("adamss_newB")[:, : self.in_features], self._combined()

    def _shift(self) -> Tensor:
        """Δb: (out,)."""
        return self._combined() @ self.get_buffer("adamss_newB")[:, -1]

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight, bias = super().merged(weight, bias)
        return weight, bias + self._shift() if self.has_bias and bias is not None else bias

    def forward(self, inner: View, x: Any) -> Any:
        out = super().forward(inner, x)
        if not self.factored or not self.has_bias:
            return out
        return out + self._shift().view(-1, *(1 for _ in self.kernel))

    @classmethod
    def build_shared(
        cls, config: AdamssConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype
    ) -> nn.Module | None:
        return SubspaceBudget(config) if config.use_asa else None

    def stop(self, k: int) -> None:
        """Let cluster k learn no more."""
        self.stopped |= {k}
        for parameter in (self.adamss_A[k], self.adamss_B[k]):
            parameter.requires_grad_(False)
            parameter.grad = None

    def frozen(self) -> frozenset[str]:
        return frozenset(f"adamss_{letter}.{k}" for letter in "AB" for k in self.stopped)

    # -- on disk: with `use_dynamic_rank` the file says the clusters' ranks ------------------------------------------

    def disk_shapes(self, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        own = super().disk_shapes(found)
        for a, b in ((f"adamss_A.{k}", f"adamss_B.{k}") for k in range(len(self.adamss_A))):
            rank = found[a][0] if len(found.get(a, ())) == 2 else 0
            if 1 <= rank <= self.rank_limit:
                own[a], own[b] = (rank, own[a][1]), (own[b][0], rank)
        return own

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        for name, values in (("adamss_A", self.adamss_A), ("adamss_B", self.adamss_B)):
            for k, old in enumerate(values):
                if old.shape != tensors[f"{name}.{k}"].shape:
                    values[k] = nn.Parameter(old.new_empty(tensors[f"{name}.{k}"].shape), old.requires_grad)
        super().load_disk_state(tensors)
