"""PSOFT: an orthogonal transformation inside the subspace of the weight's leading singular vectors.

    ΔW = s · B (R - I) A,   s · B A = the best rank-r approximation of W,   R = diag(b) (I + Q)(I - Q)⁻¹ diag(a), Q skew

Wu et al. 2025, arXiv 2505.11235. "psoft_init": A has orthonormal rows; "pissa_init": the singular values are split
evenly. A and B are not stored: they are computed again from the base. Q's inverse is exact or a Neumann series.
Without `psoft_orth` R is a free matrix; `psoft_mag_a` and `psoft_mag_b` choose the diagonals. Trainable: r (r - 1) / 2
+ 2 r a layer. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d, Embedding, MultiheadAttention, 2-D parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site
from ...errors import ConfigError
from .low_rank import LowRankDelta
from .oft import cayley, skew


@dataclass(kw_only=True)
class PsoftConfig(LayerConfig):
    """Configuration of PSOFT; fields as in the reference.

    Attributes:
        r: dimensions of the subspace.
        psoft_alpha: s = psoft_alpha / r.
        psoft_dropout: dropout on the layer's input.
        ab_svd_init: how A and B share the singular values: "psoft_init" or "pissa_init".
        psoft_svd: "full", or "lowrank" for a randomised decomposition.
        psoft_svd_lowrank_niter: of "lowrank": power iterations.
        random_seed: of "lowrank".
        psoft_orth: keep R's inner part orthogonal.
        psoft_mag_b: train the diagonal b.
        psoft_mag_a: train the diagonal a.
        use_cayley_neumann: replace the inverse by a Neumann series.
        num_cayley_neumann_terms: terms of that series.
        cayley_neumann_eps: largest ||Q|| in that series; None for no bound.
    """

    r: int = bounded(32, ge=1, le=2**20)
    psoft_alpha: int | float = bounded(32, gt=0, le=1e9)
    psoft_dropout: float = bounded(0.0, ge=0, lt=1)
    fan_in_fan_out: bool = False
    ab_svd_init: str = "psoft_init"
    psoft_svd: str = "full"
    psoft_svd_lowrank_niter: int = bounded(10, ge=0, le=1000)
    random_seed: int = bounded(0, ge=0)
    psoft_orth: bool = True
    psoft_mag_b: bool = True
    psoft_mag_a: bool = True
    use_cayley_neumann: bool = False
    num_cayley_neumann_terms: int = bounded(5, ge=2, le=100)
    cayley_neumann_eps: float | None = None
    init_weights: bool = True

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "psoft_svd_lowrank_niter": ("psoft_svd", "lowrank"),
        "random_seed": ("psoft_svd", "lowrank"),
        "num_cayley_neumann_terms": ("use_cayley_neumann", True),
        "cayley_neumann_eps": ("use_cayley_neumann", True),
    }
    default_learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {"ab_svd_init": ("psoft_init", "pissa_init"), "psoft_svd": ("full", "lowrank")}
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ConfigError("unknown choice", where=key, got=getattr(self, key), expected=" or ".join(allowed))


@register("PSOFT", PsoftConfig)
class Psoft(LowRankDelta):
    """`psoft_R`: (r (r - 1) / 2,) above Q's diagonal, row by row, or (r, r); `vector_a`, `vector_b`: (r,)."""

    prefix = "psoft_"

    def __init__(self, site: Site, config: PsoftConfig) -> None:
        super().__init__(site, config)
        r = config.r
        if r > min(self.in_features, self.out_features):
            raise ConfigError("larger than the weight's rank", where=f"r at {site.name}", got=r,
                              expected=f"<= {min(self.in_features, self.out_features)}")  # fmt: skip
        self.r, self.orthogonal, self.eps = r, config.psoft_orth, config.cayley_neumann_eps
        self.terms = config.num_cayley_neumann_terms if config.use_cayley_neumann else None
        self.scaling = self.initial_scaling = config.psoft_alpha / r
        if config.psoft_orth:
            size = r * (r - 1) // 2
            self.psoft_R = site.zeros(size) if config.init_weights else site.normal(0.1, size)
        else:
            self.psoft_R = nn.Parameter(torch.eye(r, dtype=site.dtype, device=site.device))
            if not config.init_weights:
                nn.init.normal_(self.psoft_R, std=0.1)
        self.vector_b = site.full(1.0, r) if config.psoft_mag_b else None
        self.vector_a = site.full(1.0, r) if config.psoft_mag_a else None
        for name, value in zip(("subspace_A", "subspace_B"), self._subspace(site, config), strict=True):
            self.register_buffer(name, value.to(site.base.device, site.dtype).contiguous(), persistent=False)
        self.drop(config.psoft_dropout)

    @torch.no_grad()
    def _subspace(self, site: Site, config: PsoftConfig) -> tuple[Tensor, Tensor]:
        weight, r = site.base.read()[0].flatten(1).float(), config.r
        if config.psoft_svd == "lowrank":
            with torch.random.fork_rng():
                torch.manual_seed(config.random_seed)
                U, S, V = torch.svd_lowrank(weight, q=r, niter=config.psoft_svd_lowrank_niter)
            Vh = V.T
        else:
            U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
        U, S, Vh = U[:, :r], S[:r], Vh[:r]
        if config.ab_svd_init == "psoft_init":
            return Vh, U * (S / self.scaling)
        root = torch.sqrt(S / self.scaling)
        return root[:, None] * Vh, U * root

    def rotation(self) -> Tensor:
        """R, (r, r)."""
        R: Tensor = self.psoft_R
        if self.orthogonal:
            R = self._cayley(skew(self.psoft_R[None], self.r)[0])
        if self.vector_b is not None:
            R = self.vector_b[:, None] * R
        return R if self.vector_a is None else R * self.vector_a

    def _cayley(self, Q: Tensor) -> Tensor:
        if self.terms is None:
            return cayley(Q, None)
        eye = torch.eye(self.r, dtype=Q.dtype, device=Q.device)
        if self.eps is not None:
            Q = Q * (self.eps / (Q.norm() + 1e-12)).clamp(max=1.0)
        # (I + Q)(I + Q + ... + Q^(terms - 2)): the highest power is terms - 1.
        series = power = eye
        for _ in range(self.terms - 2):
            power = power @ Q
            series = series + power
        return series + Q @ series

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = self.get_buffer("subspace_A"), self.get_buffer("subspace_B")
        R = self.rotation()
        return A, self.scaling * (B @ (R - torch.eye(self.r, dtype=R.dtype, device=R.device)))

    @property
    def disk_names(self) -> Mapping[str, str]:  # type: ignore[override]
        return {"psoft_R": "psoft_R.weight", "vector_a": "psoft_R.vector_a", "vector_b": "psoft_R.vector_b"}
