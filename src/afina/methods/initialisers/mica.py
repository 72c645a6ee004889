"""MiCA: adapt along the minor singular directions of W, which pretraining uses least.

    W = U S Vᵀ;   B = the r columns of U with the smallest singular values (frozen), A = 0 (trained)

arXiv 2604.01694. B must not be trained: the caller freezes it. Trainable: r · in a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .start import Start, check_rank


def mica(weight_OI: Tensor, rank: int) -> Start:
    """Zero A and the minor left singular vectors as B, the smallest singular value last.

    Raises:
        ConfigError: the rank exceeds min(in, out).
    """
    check_rank(weight_OI, rank)
    U, _, _ = torch.linalg.svd(weight_OI, full_matrices=False)
    A_RI = torch.zeros(rank, weight_OI.shape[1], device=weight_OI.device)
    return Start(A_RI, U[:, U.shape[1] - rank :].contiguous(), subtract=False)
