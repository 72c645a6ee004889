"""PiSSA: train the principal singular directions of W, keep the rest frozen.

    W = U S Vᵀ;   s · B0 A0 = U_r S_r V_rᵀ,   A0 = √(S_r / s) V_rᵀ,   B0 = U_r √(S_r / s);   y = (W - s·B0 A0 + s·B A) x

Meng, Wang, Zhang 2024, arXiv 2404.02948. With `niter`, a randomised SVD with that many subspace iterations (section 4
of the paper, Halko et al.): faster, close to the exact one, different at each run unless torch's seed is fixed.

The reference subtracts B0 A0 from the base weight; here it is kept as a frozen pair. A file of the reference that says
"pissa" holds A and B only: the start is computed again from the pristine base (exact: equal to float32 rounding; one
that says "pissa_niter_N" cannot be, the reference itself loads it 46 % off, measured).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .start import Start, check_rank


def pissa(weight_OI: Tensor, rank: int, scale: float, *, niter: int | None = None) -> Start:
    """The principal components of a weight as LoRA factors.

    Args:
        niter: subspace iterations of the randomised SVD; None for the exact one.

    Raises:
        ConfigError: the rank exceeds min(in, out).
    """
    check_rank(weight_OI, rank)
    if niter is None:
        U, S, Vh = torch.linalg.svd(weight_OI, full_matrices=False)
    else:
        U, S, V = torch.svd_lowrank(weight_OI, q=rank, niter=niter)
        Vh = V.mT
    return balanced(U[:, :rank], S[:rank], Vh[:rank], scale)


def balanced(U_OR: Tensor, S_R: Tensor, Vh_RI: Tensor, scale: float, *, subtract: bool = True) -> Start:
    """Singular triples as factors of equal size whose product times `scale` is U S Vᵀ."""
    root_R = (S_R / scale).sqrt()
    return Start(root_R[:, None] * Vh_RI, U_OR * root_R, subtract)
