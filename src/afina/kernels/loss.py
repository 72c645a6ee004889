"""The next token's cross-entropy, where only supervised positions cost anything.

Most positions of a fine-tuning example carry no label (the prompt, padding). `linear_cross_entropy` takes hidden states
and the vocabulary projection: only supervised rows are projected, in chunks that follow a memory target, and the
gradient is computed chunk by chunk on the way, so that the logits are never held whole. (The idea of the fused head is
in Wijmans et al. 2024, arXiv 2411.09009, and Hsu et al. 2024, arXiv 2410.10989; the arithmetic is ours.)
`supervised_loss` serves models that have computed all logits already.

Shapes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MEMORY = 64 * 2**20
"""Bytes that a chunk's logits may take in float32."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, ignore_index: int = -100,
    label_smoothing: float = 0.0, softcap: float | None = None, count: Tensor | float | None = None,
    memory: int = MEMORY,
) -> Tensor:  # fmt: skip
    """Cross-entropy of softmax(hidden weightᵀ + bias) against targets.

    Args:
        hidden: (N, D). weight: (V, D). targets: (N,). bias: (V,), frozen.
        label_smoothing: share of the target that is spread over the whole vocabulary.
        softcap: logits are softcap · tanh(logits / softcap).
        count: what the sum is divided by; the number of targets if None.
        memory: bytes for a chunk's logits in float32.
    """
    run: Any = _LinearCrossEntropy.apply
    out: Tensor = run(hidden, weight, bias, targets, ignore_index, label_smoothing, softcap, count, memory)
    return out


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int,
        smoothing: float, softcap: float | None, count: Tensor | float | None, memory: int,
    ) -> Tensor:  # fmt: skip
        rows = (targets != ignore_index).nonzero().squeeze(1)
        h_ND, y_N = hidden[rows], targets[rows].unsqueeze(1)
        wants_h, wants_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        dh_ND = torch.empty_like(h_ND) if wants_h else None
        dw_VD = torch.zeros_like(weight) if wants_w else None
        total = torch.zeros((), dtype=torch.promote_types(torch.float32, hidden.dtype), device=hidden.device)
        step = max(1, memory // (4 * weight.shape[0]))
        for i in range(0, len(rows), step):
            part = slice(i, i + step)
            loss, dz_NV = _chunk(h_ND[part], weight, bias, y_N[part], smoothing, softcap, wants_h or wants_w)
            total = total + loss
            if dz_NV is not None and dh_ND is not None:
                torch.mm(dz_NV, weight, out=dh_ND[part])
            if dz_NV is not None and dw_VD is not None:
                dw_VD.addmm_(dz_NV.mT, h_ND[part])
        divisor = len(rows) if count is None else count
        ctx.save_for_backward(rows, dh_ND, dw_VD)
        ctx.divisor, ctx.shape = divisor, hidden.shape
        return total / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        rows, dh_ND, dw_VD = ctx.saved_tensors
        factor = g / ctx.divisor
        dh = None
        if dh_ND is not None:
            dh = dh_ND.new_zeros(ctx.shape)
            dh[rows] = dh_ND * factor.to(dh_ND.dtype)
        dw = None if dw_VD is None else dw_VD * factor.to(dw_VD.dtype)
        return dh, dw, *(None for _ in range(7))


def _chunk(
    h_ND: Tensor, weight: Tensor, bias: Tensor | None, y_N1: Tensor, smoothing: float, softcap: float | None,
    backward: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(sum of the losses, its gradient towards the logits in the weight's dtype)."""
    z_NV = F.linear(h_ND, weight, bias)
    slope = None
    if softcap is not None:
        z_NV = torch.tanh(z_NV / softcap)
        slope = 1 - z_NV.square() if backward else None
        z_NV = z_NV * softcap
    wide = torch.promote_types(torch.float32, z_NV.dtype)
    top, at = z_NV.max(-1, keepdim=True)
    p_NV = torch.softmax(z_NV, -1, dtype=wide)
    # The largest share is at least 1 / V, so its logarithm is exact enough to stand for the normaliser.
    normaliser = top.to(wide) - p_NV.gather(1, at).log()
    loss = normaliser - (1 - smoothing) * z_NV.gather(1, y_N1).to(wide)
    if smoothing:
        loss = loss - smoothing * z_NV.mean(-1, keepdim=True, dtype=wide)
    if not backward:
        return loss.sum(), None
    p_NV.scatter_add_(1, y_N1, p_NV.new_full(y_N1.shape, smoothing - 1))
    if smoothing:
        p_NV.sub_(smoothing / z_NV.shape[1])
    if slope is not None:
        p_NV.mul_(slope)
    return loss.sum(), p_NV.to(weight.dtype)


def supervised_loss(
    logits: Tensor, labels: Tensor | None, vocab_size: int | None = None, num_items_in_batch: Any = None,
    ignore_index: int = -100, shift_labels: Tensor | None = None, **kwargs: Any,
) -> Tensor:  # fmt: skip
    """transformers' loss of causal language models, computed on supervised positions only.

    Args:
        logits: (batch, tokens, V). labels: (batch, tokens), shifted here; or `shift_labels`, shifted already.
    """
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1).to(logits.device)
    run: Any = _SupervisedLoss.apply
    out: Tensor = run(logits.reshape(-1, logits.shape[-1]), targets, ignore_index, num_items_in_batch)
    return out


class _SupervisedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignore_index: int, count: Any) -> Tensor:
        rows = (targets != ignore_index).nonzero().squeeze(1)
        z_NV, y_N1 = logits[rows], targets[rows].unsqueeze(1)
        wide = torch.promote_types(torch.float32, logits.dtype)
        top, at = z_NV.max(-1, keepdim=True)
        p_NV = torch.softmax(z_NV, -1, dtype=wide)
        loss = (top.to(wide) - p_NV.gather(1, at).log() - z_NV.gather(1, y_N1).to(wide)).sum()
        p_NV.scatter_add_(1, y_N1, p_NV.new_full(y_N1.shape, -1.0))
        ctx.divisor = len(rows) if count is None else count
        ctx.save_for_backward(p_NV.to(logits.dtype) if ctx.needs_input_grad[0] else None, rows)
        ctx.shape = logits.shape
        mean: Tensor = loss / ctx.divisor
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        dz_NV, rows = ctx.saved_tensors
        out = dz_NV.new_zeros(ctx.shape)
        out[rows] = dz_NV * (g / ctx.divisor).to(dz_NV.dtype)
        return out, None, None, None


def sparse_rows_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x weightᵀ` with a frozen weight; the backward pass leaves out rows whose gradient is zero throughout."""
    run: Any = _SparseRowsLinear.apply
    out: Tensor = run(x, weight)
    return out


class _SparseRowsLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        g_NV = g.reshape(-1, g.shape[-1])
        rows = g_NV.any(-1).nonzero().squeeze(1)
        if len(rows) > 0.9 * len(g_NV):
            whole: Tensor = g @ weight
            return whole, None
        out = g_NV.new_zeros(len(g_NV), weight.shape[1])
        out[rows] = g_NV[rows] @ weight
        return out.view(*g.shape[:-1], -1), None
