"""The basis that several matrices share: the higher-order generalised singular value decomposition.

Ponnapalli, Saunders, Van Loan, Alter 2011, A Higher-Order Generalized Singular Value Decomposition for Comparison of
Global mRNA Expression from Multiple Organisms, PLoS ONE 6(12).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def joint_basis(weights: list[Tensor], alpha: float) -> Tensor:
    """V: (in, in), float64, columns of length one, with W_i = U_i diag(l_i) Vᵀ for all weights W_i of (out, in)."""
    grams = [w.T @ w for w in (w.double() for w in weights)]
    if len(grams) == 1:
        own: Tensor = torch.linalg.eigh(grams[0]).eigenvectors
        return own
    one = torch.eye(len(grams[0]), dtype=grams[0].dtype, device=grams[0].device)
    regular = [g + alpha * g.diagonal().mean().clamp_min(1e-12) * one for g in grams]
    # Σ_{i≠j} D_i D_j⁻¹ = (Σ D)(Σ D⁻¹) - n I; with Σ D = L Lᵀ its eigenvectors are L times those of Lᵀ (Σ D⁻¹) L.
    L = torch.linalg.cholesky(torch.stack(regular).sum(0))
    inverse = torch.stack([torch.cholesky_inverse(torch.linalg.cholesky(d)) for d in regular]).sum(0)
    return F.normalize(L @ torch.linalg.eigh(L.T @ inverse @ L).eigenvectors, dim=0)
