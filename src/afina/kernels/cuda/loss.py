"""The loss of logits and its gradient in one Triton kernel, which passes twice over each row.

With shares p = softmax(z), targets y and label smoothing s, a row costs

    log Σ exp(z) − (1 − s) z_y − s mean(z),    gradient  p − s / V − (1 − s) [j = y].

The first pass keeps the largest logit so far and the sum of the exponentials relative to it, which is rescaled when a
larger one comes (the online normaliser of Milakov and Gimelshein 2018, arXiv 1805.02867). The second writes the
gradient over the logits. Arithmetic is in float32 whatever the logits are. `loss._block` is the same in torch's
operations; the two agree to rounding.

This module needs Triton to be installed; `loss_trial` imports it only where the kernel may run.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

import subprocess
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

FAULTS = (TritonError, RuntimeError, OSError, ImportError, ValueError, TypeError, AssertionError,
          NotImplementedError, subprocess.SubprocessError)  # fmt: skip
"""What Triton raises where it cannot compile or start a kernel: also its C compiler and its driver may be missing."""
LARGEST = 8192
"""Logits of a row that one program holds at a time."""
PER_WARP = 512
"""Of these, those that one warp holds: 16 a thread."""


def losses(z_NV: Tensor, y_N1: Tensor, smoothing: float, backward: bool) -> Tensor:
    """The rows' losses, (N,), in float32; if `backward`, the gradient takes the place of the logits.

    A target outside the vocabulary makes its row's loss and gradient nan.

    Args:
        z_NV: contiguous, in float32 or 16 bits. y_N1: int64.
    """
    rows, width = z_NV.shape
    loss_N = torch.empty(rows, dtype=torch.float32, device=z_NV.device)
    if rows:
        block = block_of(width)
        gpu: Any = torch.cuda
        with gpu.device_of(z_NV):
            row_loss[(rows,)](
                z_NV, y_N1.contiguous(), loss_N, width, float(smoothing), BACKWARD=backward, BLOCK=block,
                num_warps=max(1, block // PER_WARP),
            )  # fmt: skip
    return loss_N


def block_of(width: int) -> int:
    """How many logits of a row of `width` are worked on at a time; a power of two."""
    return min(LARGEST, 1 << (width - 1).bit_length())


@triton.jit
def row_loss(
    z_ptr: tl.tensor, y_ptr: tl.tensor, loss_ptr: tl.tensor, width: tl.tensor, smoothing: tl.tensor,
    BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One row: its loss and, if BACKWARD, its gradient over its logits. One program a row."""
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * width
    y = tl.load(y_ptr + row)
    known = (y >= 0) & (y < width)
    z_y = tl.load(z_ptr + y, mask=known, other=float("nan")).to(tl.float32)

    # The least finite number instead of -inf: a block of nothing but -inf then adds 0, where -inf less -inf were nan.
    top = -3.4028234663852886e38
    total = 0.0
    plain_sum = 0.0
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z = tl.load(z_ptr + at, mask=at < width, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher), 0)
        plain_sum += tl.sum(tl.where(at < width, z, 0.0), 0)
        top = higher

    # Differences to the largest logit, not to the normaliser: rounding then does not grow with the logits.
    loss = tl.log(total) + (1 - smoothing) * (top - z_y)
    if smoothing > 0:
        loss += smoothing * (top - plain_sum / width)
    tl.store(loss_ptr + row, loss)

    if BACKWARD:
        scale = tl.where(known, 1 / total, float("nan"))
        # No warp may write before every warp has read the target's logit.
        tl.debug_barrier()
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            z = tl.load(z_ptr + at, mask=at < width, other=0.0).to(tl.float32)
            g = tl.exp(z - top) * scale - smoothing / width - tl.where(at == y, 1 - smoothing, 0.0)
            tl.store(z_ptr + at, g.to(z_ptr.dtype.element_ty), mask=at < width)
