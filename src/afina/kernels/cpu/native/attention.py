"""Attention of `attention.cpp`: nothing but the output and two numbers a row are kept for the backward pass.

Shapes: B batch, H query heads, K key heads, T tokens, D head size.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import DTYPES, library

_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p


class _Heads(ctypes.Structure):
    _fields_ = (("at", _POINTER), ("batch", _INT), ("head", _INT), ("token", _INT))


class _Task(ctypes.Structure):
    _fields_ = (
        *((name, _INT) for name in ("b", "h", "kv", "t", "d", "parts")),
        ("scale", ctypes.c_float),
        ("causal", _INT),
        ("allowed", _POINTER),
        *((name, _INT) for name in ("allowed_batch", "allowed_query", "threads")),
        *((name, _Heads) for name in ("q", "k", "v", "out", "g", "dq", "dk", "dv")),
        ("stats", _POINTER),
        ("partial", _POINTER),
    )


def fits(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> bool:
    """Whether this kernel is there and made for the case; the arguments are those of `forward`."""
    b, h, t, d = q.shape
    return (
        q.dtype in DTYPES
        and all(x.dtype == q.dtype and x.device.type == "cpu" for x in (q, k, v))
        and k.shape == v.shape == (b, k.shape[1], t, d)
        and h % k.shape[1] == 0
        and d % 16 == 0
        and d <= 256
        and (allowed is None or _is_known(allowed, b, t))
        and library() is not None
    )


def _is_known(allowed: Tensor, b: int, t: int) -> bool:
    (rows, heads, queries, keys), causal = allowed.shape, allowed.dtype == torch.uint8
    whole = rows in (1, b) and heads == 1 and keys == t and queries == (1 if causal else t)
    return whole and (causal or allowed.dtype == torch.bool) and allowed.device.type == "cpu"


def _ready(x: Tensor) -> Tensor:
    """Neighbours within a row, and an even number of elements from row to row."""
    return x if x.stride(-1) == 1 and x.stride(-2) % 2 == 0 else x.contiguous()


def _heads(x: Tensor) -> _Heads:
    return _Heads(x.data_ptr(), *x.stride()[:3])


def _task(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float, out: Tensor, stats: Tensor) -> _Task:
    (b, h, t, d), kv, threads = q.shape, k.shape[1], torch.get_num_threads()
    # One key head to a thread, or parts of its query heads where there are few of them.
    parts = next(p for p in range(1, h // kv + 1) if h // kv % p == 0 and (b * kv * p >= 4 * threads or p == h // kv))
    task = _Task(b=b, h=h, kv=kv, t=t, d=d, parts=parts, scale=scale, threads=threads, stats=stats.data_ptr(),
                 q=_heads(q), k=_heads(k), v=_heads(v), out=_heads(out.transpose(1, 2)))  # fmt: skip
    task.causal = allowed is None or allowed.dtype == torch.uint8
    if allowed is not None:
        task.allowed, task.allowed_batch = allowed.data_ptr(), allowed.stride(0) if allowed.shape[0] > 1 else 0
        task.allowed_query = 0 if task.causal else allowed.stride(2)
    return task


def _run(name: str, dtype: torch.dtype, task: _Task) -> None:
    if getattr(library(), f"afina_{name}_{DTYPES[dtype]}")(ctypes.byref(task)):
        raise MemoryError("no memory for a block of attention")


def forward(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale · q kᵀ) v, and what the backward pass needs beside it.

    Args:
        q: (B, H, T, D). k, v: (B, K, T, D).
        allowed: true where a query sees a key: (B or 1, 1, T, T); or, in uint8, (B or 1, 1, 1, T) for the keys that may
            be seen causally; None for plain causal attention. A query that sees nothing gets a mean.

    Returns:
        (B, T, H, D), and (B, H, T, 2) in float32
    """
    b, h, t, d = q.shape
    allowed = allowed if allowed is None or allowed.stride(-1) == 1 else allowed.contiguous()
    out, stats = q.new_empty(b, t, h, d), q.new_empty(b, h, t, 2, dtype=torch.float32)
    q, k, v = _ready(q), _ready(k), _ready(v)
    _run("attention", q.dtype, _task(q, k, v, allowed, scale, out, stats))
    return out, stats


def backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, out: Tensor, stats: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, laid out as (B, T, heads, D). g: (B, T, H, D), the output's."""
    allowed = allowed if allowed is None or allowed.stride(-1) == 1 else allowed.contiguous()
    q, k, v, g = _ready(q), _ready(k), _ready(v), _ready(g.transpose(1, 2))
    dq, dk, dv = (laid_out(x) for x in (q, k, v))
    task = _task(q, k, v, allowed, scale, out, stats)
    task.g, task.dq, task.dk, task.dv = _heads(g), _heads(dq), _heads(dk), _heads(dv)
    if task.parts > 1:
        partial = stats.new_empty(2, task.parts, k.numel())
        task.partial = partial.data_ptr()
    _run("attention_backward", q.dtype, task)
    return dq, dk, dv


def laid_out(x: Tensor) -> Tensor:
    """An empty (B, H, T, D), as the projections lay it out, which spares a copy on the way back to them."""
    b, h, t, d = x.shape
    return x.new_empty(b, t, h, d).transpose(1, 2)
