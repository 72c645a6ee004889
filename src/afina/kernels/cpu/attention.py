"""Attention on processors, by batched products of blocks of queries.

In bfloat16 the backward pass of torch's fused attention takes several times its forward pass on a CPU. Products of a
block of queries with the keys that it may see are faster: half of the scores of causal attention are never computed,
and a block stays in the processor's cache from its scores to its output. One kernel does it all where there is one
(`native.attention`). Else, in 16 bits and up to `KEPT` tokens, the shares are kept for the backward pass, beyond they
are computed again. Measured in docs/speed.md. Dropout, float32 beyond `KEPT` tokens without the kernel and other
devices keep torch's own.

Shapes: B batch, H query heads, K key heads, G = H / K, T tokens, D head size, S tokens of a block, W keys it sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...core.layers.weights import autocasts
from .native import attention as native

KEPT = 512
BLOCK = 64
NAME = "afina"


def short_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v.

    Args:
        q: (B, H, T, D). k, v: (B, K, T, D), each serving H / K query heads.
        allowed: true (or zero, if it is to be added) where a query sees a key: (B, 1, T, T); or, in uint8, (B, 1, 1, T)
            for the keys that may be seen causally; None for plain causal attention. A query that sees nothing gets a
            mean.

    Returns:
        (B, T, H, D)
    """
    out: Tensor = _forward(q, k, v, allowed, scale)[0]
    return out


def _blocks(t: int, allowed: Tensor | None) -> Iterator[tuple[int, int, int]]:
    """(first query, end of the queries, end of the keys) of every block."""
    for i in range(0, t, BLOCK):
        j = min(t, i + BLOCK)
        yield i, j, j if is_causal(allowed) else t


def is_causal(allowed: Tensor | None) -> bool:
    """Whether queries see no later key, whatever else the mask says."""
    return allowed is None or allowed.dtype == torch.uint8


def _rows(x: Tensor, i: int, j: int, heads: int) -> Tensor:
    """(B, H, T, D) -> (B K, G S, D)."""
    b, _, _, d = x.shape
    return x[:, :, i:j].reshape(b * heads, -1, d)


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale · a b; the factor goes into the product."""
    return torch.baddbmm(a.new_empty(a.shape[0], a.shape[1], b.shape[2]), a, b, beta=0, alpha=scale)


def _shares(
    q: Tensor, k_: Tensor, allowed: Tensor | None, scale: float, block: tuple[int, int, int], out: Tensor | None = None
) -> Tensor:
    """(B K, G S, W), of one block of queries. k_: (B K, T, D)."""
    i, j, end = block
    b, h = q.shape[:2]
    scores = _scaled(_rows(q, i, j, k_.shape[0] // b), k_[:, :end].mT, scale)
    whole, lowest = scores.view(b, h, j - i, end), torch.finfo(q.dtype).min
    if allowed is not None:
        part = allowed[..., :end].bool() if is_causal(allowed) else allowed[:, :, i:j, :end]
        if part.dtype == torch.bool:
            whole.masked_fill_(~part, lowest)
        else:
            whole.add_(part).clamp_min_(lowest)
    if is_causal(allowed):
        later = torch.ones(j - i, j - i, dtype=torch.bool, device=q.device).triu_(1)
        if allowed is None:  # cheaper, and the same where every query sees something
            whole[..., i:].add_(q.new_zeros(j - i, j - i).masked_fill_(later, lowest))
        else:
            whole[..., i:].masked_fill_(later, lowest)
    return torch.softmax(scores, -1, out=None if out is None else out.view(scores.shape))


def _kept(q: Tensor, allowed: Tensor | None) -> int:
    """How many shares are kept for the backward pass."""
    b, h, t, _ = q.shape
    full = t // BLOCK
    seen = BLOCK * BLOCK * full * (full + 1) // 2 + (t - BLOCK * full) * t if is_causal(allowed) else t * t
    return b * h * seen if t <= KEPT and q.dtype.itemsize == 2 else 0


@torch.library.custom_op("afina::attention", mutates_args=(), device_types="cpu")
def _forward(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    if native.fits(q, k, v, allowed):
        return native.forward(q, k, v, allowed, scale)
    (b, h, t, d), heads = q.shape, k.shape[1]
    k_, v_ = k.reshape(b * heads, t, d), v.reshape(b * heads, t, d)
    out, kept = q.new_empty(b, t, h, d), q.new_empty(_kept(q, allowed))
    at = 0
    for block in _blocks(t, allowed):
        i, j, end = block
        place = kept[at : at + b * h * (j - i) * end] if len(kept) else None
        shares = _shares(q, k_, allowed, scale, block, place)
        out[:, i:j] = torch.bmm(shares, v_[:, :end]).view(b, h, j - i, d).transpose(1, 2)
        at += shares.numel()
    return out, kept


@torch.library.custom_op("afina::attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, out: Tensor | None, kept: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    if out is not None:
        return native.backward(g, q, k, v, allowed, out, kept, scale)
    (b, h, t, d), heads = q.shape, k.shape[1]
    k_, v_, g = k.reshape(b * heads, t, d), v.reshape(b * heads, t, d), g.transpose(1, 2)
    dq, dk, dv = q.new_empty(q.shape), k.new_zeros(b * heads, t, d), v.new_zeros(b * heads, t, d)
    at = 0
    for block in _blocks(t, allowed):
        i, j, end = block
        g_, q_ = _rows(g, i, j, heads), _rows(q, i, j, heads)
        if len(kept):
            shares = kept[at : at + b * h * (j - i) * end].view(b * heads, -1, end)
            at += shares.numel()
        else:
            shares = _shares(q, k_, allowed, scale, block)
        dv[:, :end].baddbmm_(shares.mT, g_)
        ds = torch._softmax_backward_data(torch.bmm(g_, v_[:, :end].mT), shares, -1, shares.dtype)
        dq[:, :, i:j] = _scaled(ds, k_[:, :end], scale).view(b, h, j - i, d)
        dk[:, :end].baddbmm_(ds.mT, q_, alpha=scale)
    return dq, dk.view(k.shape), dv.view(v.shape)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    b, h, t, d = q.shape
    if native.fits(q, k, v, allowed):
        return q.new_empty(b, t, h, d), q.new_empty(b, h, t, 2, dtype=torch.float32)
    return q.new_empty(b, t, h, d), q.new_empty(_kept(q, allowed))


@_backward.register_fake
def _(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, out: Tensor | None, kept: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    if out is not None:
        return native.laid_out(q), native.laid_out(k), native.laid_out(v)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, allowed, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, allowed, output[0] if native.fits(q, k, v, allowed) else None, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, g: Tensor | None, _: Any) -> Any:
    found = (None, None, None) if g is None else _backward(g, *ctx.saved_tensors, ctx.scale)
    return *found, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


_CHANGES = ("position_bias", "softcap", "s_aux", "cache")
"""What transformers may hand over beside the mask that changes the result; torch's attention takes it or refuses it."""


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """What transformers calls; it falls to torch's attention wherever the short form is not made for the case."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if wanted := autocasts(query):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    mask = attention_mask if attention_mask is None else attention_mask[..., : key.shape[2]]
    plain = not dropout and all(kwargs.get(name) is None for name in _CHANGES) and (mask is not None or causal)
    if not plain or not _fits(query, key, value, mask):
        if mask is not None and is_causal(mask):
            mask = mask.bool() & torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=mask.device).tril()
        out: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False) if wanted else nullcontext():
        return short_attention(query, key, value, mask, scale), None


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether `short_attention` is made for these tensors, and expected to be the faster one."""
    length = query.shape[2]
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype
        and query.requires_grad
        and 1 < length == key.shape[2]
        and key.shape == value.shape
        and (
            mask is None
            or (not mask.requires_grad and mask.dim() == 4 and (is_causal(mask) or mask.shape[2] == length))
        )
        and (query.dtype.itemsize == 2 or length <= KEPT or native.fits(query, key, value, mask))
    )


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """What transformers calls for the mask: where it is causal and leaves out keys (padding), only the keys."""
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    padding, length = kwargs.get("attention_mask"), kwargs.get("q_length")
    whole: Tensor | None = sdpa_mask(*args, **kwargs)
    simple = (
        whole is not None
        and not args
        and kwargs.get("mask_function", causal_mask_function) is causal_mask_function
        and padding is not None
        and padding.dtype == torch.bool
        and whole.dtype == torch.bool
        and whole.shape[2] == length == whole.shape[3] == padding.shape[-1]
        and not kwargs.get("q_offset") and not kwargs.get("kv_offset")
    )  # fmt: skip
    # In a dtype that no mask of anybody else's has, because nothing else says that later keys do not count.
    return padding[:, None, None, :].to(torch.uint8) if simple and padding is not None else whole


def register() -> None:
    """Make the implementation known to transformers under `NAME`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, _mask)
