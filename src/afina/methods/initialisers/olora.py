"""OLoRA: an orthonormal B from the QR decomposition of W.

    W = Q R;   B0 = Q_r (orthonormal columns),   A0 = R_r;   y = (W - s·B0 A0 + s·B A) x

Büyükakyüz 2024, arXiv 2406.01775. As in the reference, B0 A0 is not divided by s. The reference subtracts it from the
base weight; here it is kept as a frozen pair, and computed again from the pristine base when a file of the reference
says "olora". Unlike there, transformers' Conv1D works whatever its shape (the weight arrives as (out, in)).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .start import Start, check_rank


def olora(weight_OI: Tensor, rank: int) -> Start:
    """The leading part of the QR decomposition as LoRA factors.

    Raises:
        ConfigError: the rank exceeds min(in, out).
    """
    check_rank(weight_OI, rank)
    Q, R = torch.linalg.qr(weight_OI)
    return Start(R[:rank].contiguous(), Q[:, :rank].contiguous(), subtract=True)
