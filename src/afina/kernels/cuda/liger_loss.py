"""The loss of logits and its gradient by liger-kernel's Triton kernel (Hsu et al. 2024, arXiv 2410.10989).

Its fused loss runs this kernel in chunks of a size that follows the vocabulary's alone; here it runs in ours, which
follow the free memory (`chunks`). The interface is that of `cuda.loss`.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def losses(z_NV: Tensor, y_N1: Tensor, smoothing: float, backward: bool) -> Tensor:
    """The rows' losses, (N,), in float32; if `backward`, the gradient takes the place of the logits.

    Args:
        z_NV: contiguous. y_N1: int64, in the vocabulary.
    """
    import triton
    from liger_kernel.ops.cross_entropy import MAX_FUSED_SIZE, liger_cross_entropy_kernel

    rows, width = z_NV.shape
    loss_N = torch.zeros(rows, dtype=torch.float32, device=z_NV.device)
    kernel: Any = liger_cross_entropy_kernel
    if rows:
        kernel[(rows,)](
            X_ptr=z_NV, X_stride=width, Y_ptr=y_N1.contiguous(), Y_stride=1, weight_ptr=None, loss_ptr=loss_N,
            z_loss_ptr=None, loss_stride=1, token_accuracy_ptr=None, token_accuracy_stride=0,
            predicted_tokens_ptr=None, predicted_tokens_stride=0, n_cols=width, n_non_ignore=rows,
            sum_non_ignore_weight=rows, weight_sum=0.0, ignore_index=-100, lse_square_scale=0.0,
            label_smoothing=float(smoothing), reduction="none", softcap=None, RETURN_Z_LOSS=False,
            RETURN_TOKEN_ACCURACY=False, RETURN_PREDICTED_TOKENS=False, HAS_WEIGHT=False, HAS_SOFTCAPPING=False,
            HAS_GRADIENTS=backward, BLOCK_SIZE=min(MAX_FUSED_SIZE, triton.next_power_of_2(width)),
            num_warps=32 if torch.version.hip is None else 16,
        )  # fmt: skip
    return loss_N
