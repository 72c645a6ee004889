"""Attention in 16 bits on processors, by batched products.

The fused attention of torch is made for long sequences; on a CPU in bfloat16 its backward pass takes several times its
forward pass. At lengths where the scores are small, plain products are faster: measured on two AVX-512 cores, 4 x 256
tokens, 9 heads of 64: see docs/speed.md. Longer sequences, dropout, float32 and other devices keep torch's own.

Shapes: B batch, H query heads, K key heads, G = H / K, T tokens, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LONGEST = 512
NAME = "afina"


def short_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v, causal where `allowed` is None.

    Args:
        q: (B, H, T, D). k, v: (B, K, T, D), each serving H / K query heads.
        allowed: (B, 1, T, T), true (or zero, if it is to be added) where a query sees a key. A query that sees nothing
            sees everything.

    Returns:
        (B, T, H, D)
    """
    run: Any = _ShortAttention.apply
    out: Tensor = run(q, k, v, allowed, scale)
    return out


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
        b, h, t, d = q.shape
        heads = k.shape[1]
        q_, k_, v_ = q.reshape(b * heads, -1, d), k.reshape(b * heads, t, d), v.reshape(b * heads, t, d)
        lowest = torch.finfo(q.dtype).min
        if allowed is None:
            bias = torch.full((t, t), lowest, dtype=q.dtype, device=q.device).triu_(1).repeat(h // heads, 1)
            scores = torch.baddbmm(bias, q_, k_.mT, alpha=scale)
        else:
            scores = torch.bmm(q_, k_.mT).mul_(scale).view(b, heads, -1, t, t)
            if allowed.dtype == torch.bool:
                scores.masked_fill_(~allowed.unsqueeze(1), lowest)
            else:
                scores.add_(allowed.unsqueeze(1)).clamp_min_(lowest)
            scores = scores.view(b * heads, -1, t)
        shares = torch.softmax(scores, -1)
        ctx.save_for_backward(q_, k_, v_, shares)
        ctx.scale, ctx.shape = scale, (b, h, heads, t, d)
        return torch.bmm(shares, v_).view(b, h, t, d).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        q_, k_, v_, shares = ctx.saved_tensors
        b, h, heads, t, d = ctx.shape
        g_ = g.transpose(1, 2).reshape(b * heads, -1, d)
        dv = torch.bmm(shares.mT, g_)
        ds = torch._softmax_backward_data(torch.bmm(g_, v_.mT), shares, -1, shares.dtype).mul_(ctx.scale)
        dq, dk = torch.bmm(ds, k_), torch.bmm(ds.mT, q_)
        return dq.view(b, h, t, d), dk.view(b, heads, t, d), dv.view(b, heads, t, d), None, None


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """What transformers calls; it falls to torch's attention wherever the short form is not made for the case."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    length = query.shape[2]
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    fits = (
        query.device.type == "cpu"
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.requires_grad
        and 1 < length == key.shape[2] <= LONGEST
        and key.shape[-1] == value.shape[-1]
        and not dropout
        and (attention_mask is not None or causal)
    )
    if not fits:
        out: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = attention_mask if attention_mask is None else attention_mask[..., :length]
    return short_attention(query, key, value, mask, scale), None


def register() -> None:
    """Make the implementation known to transformers under `NAME`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
