"""KaSA: cut the smallest singular components out of W and learn new ones, as a singular value decomposition.

    W = U S Vᵀ;   W' = W - U_r S_r V_rᵀ + s · B diag(d) A,   r: the smallest ones
    loss += beta · ||d||² + gamma · (||Bᵀ B - I||_F + ||A Aᵀ - I||_F)

Wang et al. 2024, arXiv 2412.06071 (equations 9 to 11). W keeps its bits: what is cut is computed from it and held as a
frozen pair that no file needs. The reference leaves adding the penalty to the user; here it is part of the loss that
the model returns. Trainable: r · (in + out + 1) a layer. Mergeable. Layers: Linear, Conv1D, MultiheadAttention, 2-D
parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.hosts.adapter import Site
from ...core.hosts.view import View
from ..initialisers.start import check_rank
from .lora import Lora
from .lora_config import LoraConfig


@Lora.variant(lambda config: config.kasa_config is not None)
class Kasa(Lora):
    """`lora_diag`: (r,)."""

    kinds = frozenset({"linear", "attention", "parameter"})
    has_penalty = True

    def __init__(self, site: Site, config: LoraConfig) -> None:
        super().__init__(site, config)
        assert config.kasa_config is not None
        self.beta, self.gamma = config.kasa_config.beta, config.kasa_config.gamma
        self.lora_diag = site.normal(1.0, self.r)
        with torch.no_grad():
            weight_OI = site.base.read()[0].detach().float()
            check_rank(weight_OI, self.r)
            U, S, Vh = torch.linalg.svd(weight_OI, full_matrices=False)
            cut_B, cut_A = U[:, -self.r :] * S[-self.r :], Vh[-self.r :]
        # From the base, so that no file need hold them: on its device even where the parameters are still to come.
        self.register_buffer("cut_A", cut_A.to(site.dtype).contiguous(), persistent=False)
        self.register_buffer("cut_B", cut_B.to(site.dtype).contiguous(), persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_diag[:, None] * self.lora_A, self.lora_B

    def cut(self) -> tuple[Tensor, Tensor]:
        """V_rᵀ: (r, in) and U_r S_r: (out, r)."""
        return self.get_buffer("cut_A"), self.get_buffer("cut_B")

    def delta(self, weight: Tensor) -> Tensor:
        A, B = self.cut()
        return super().delta(weight) - B @ A

    def forward(self, inner: View, x: Any) -> Any:
        out = super().forward(inner, x)
        # Where the operator is not additive, the merged weight, and so `delta`, was used.
        return out - inner.base.low_rank(x, *self.cut()) if inner.base.additive else out

    def penalty(self) -> Tensor:
        d, A, B = (p.float() for p in (self.lora_diag, self.lora_A, self.lora_B))
        one = torch.eye(self.r, device=d.device)
        orthonormal = torch.linalg.matrix_norm(B.T @ B - one) + torch.linalg.matrix_norm(A @ A.T - one)
        loss: Tensor = self.beta * d.square().sum() + self.gamma * orthonormal
        return loss
