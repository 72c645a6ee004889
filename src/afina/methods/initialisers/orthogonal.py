"""Orthogonal start: A and B in orthogonal halves of the rank's space, so that B A = 0 and neither is zero.

    Q = [Q1; Q2] random orthogonal (r, r);   A = Q1ᵀ Z,   B = Y Q2,   Z (r/2, in), Y (out, r/2) ~ N(0, 0.1²);   B A = 0

Both factors get gradients from the first step on; by default A gets none while B is zero. No paper; described at
datta0.github.io/posts/rethink-lora-init. The entries have the reference's standard deviation, 0.1 · √½.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ConfigError
from .start import Start

SIZE = 0.1
"""Standard deviation of the mixing matrices; small beside usual weights, as in the reference."""


def orthogonal(weight_OI: Tensor, rank: int) -> Start:
    """The orthogonal start; only the shape and the device of the weight matter.

    Raises:
        ConfigError: the rank is odd.
    """
    if rank % 2:
        raise ConfigError('the "orthogonal" start splits the rank in two halves', where="r", got=rank,
                          expected="an even number")  # fmt: skip
    out_features, in_features = weight_OI.shape
    device = weight_OI.device
    Q_RR = torch.linalg.qr(torch.randn(rank, rank, device=device))[0]
    Q1_HR, Q2_HR = Q_RR.chunk(2)
    A_RI = Q1_HR.mT @ (torch.randn(rank // 2, in_features, device=device) * SIZE)
    B_OR = (torch.randn(out_features, rank // 2, device=device) * SIZE) @ Q2_HR
    return Start(A_RI, B_OR, subtract=False)
