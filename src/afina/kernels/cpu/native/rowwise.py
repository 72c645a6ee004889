"""Passes over rows of `rowwise.cpp`: the loss of logits, norms, silu(gate) · up, rotary positions; bfloat16 or float32.

Shapes: N rows, D width, V vocabulary; B batch, H heads, T tokens.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from . import DTYPES, library
from .traced import TRACED

OVERWRITES = False
"""`gated_backward` leaves its inputs as they are."""


def fits(*tensors: Tensor) -> bool:
    """Whether these kernels are there and made for such tensors: on the processor, of one dtype, contiguous, and no
    subclass, which may have no memory of its own."""
    first = tensors[0].dtype
    return (
        first in DTYPES
        and not _is_watched()
        and all(t.dtype == first and is_plain(t) and t.is_contiguous() for t in tensors)
        and library() is not None
    )


def _is_watched() -> bool:
    """Whether somebody follows torch's operations, of which these are none, and is not told of them (`TRACED`)."""
    if TRACED.get() is not None:
        return False
    jit: Any = torch.jit
    return torch.compiler.is_compiling() or jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0


def is_plain(x: Tensor) -> bool:
    """Whether a tensor lies here and is no subclass but one that stands for such a tensor without data."""
    return x.device.type == "cpu" and type(x) in (Tensor, nn.Parameter, FakeTensor)


def _run(name: str, dtype: torch.dtype, *values: Any) -> None:
    tensors = [x for x in values if isinstance(x, Tensor)]
    if any(isinstance(x, FakeTensor) for x in tensors):
        if (tell := TRACED.get()) is not None:
            tell(tensors)
        return
    kernel = getattr(library(), f"afina_{name}_{DTYPES[dtype]}")
    kernel.restype = None
    kernel(*(_argument(x) for x in values), ctypes.c_int64(torch.get_num_threads()))


def _argument(x: Any) -> Any:
    if isinstance(x, Tensor):
        return ctypes.c_void_p(x.data_ptr())
    if x is None:
        return ctypes.c_void_p()
    kinds: dict[type, Any] = {int: ctypes.c_int64, float: ctypes.c_float}
    return kinds[type(x)](x) if type(x) in kinds else x


def losses(z_NV: Tensor, y_N1: Tensor, smoothing: float, backward: bool) -> Tensor:
    """The cross-entropies of logits, (N,), in float64; if `backward`, their sum's gradient takes the logits' place."""
    assert y_N1.numel() == len(z_NV)
    y_N1 = y_N1.long().contiguous()
    if len(y_N1) and not isinstance(y_N1, FakeTensor) and not bool(((y_N1 >= 0) & (y_N1 < z_NV.shape[1])).all()):
        raise IndexError(f"a label is not in the vocabulary of {z_NV.shape[1]}: {y_N1.min()} to {y_N1.max()}")
    each = torch.empty(len(z_NV), dtype=torch.float64)
    _run("cross_entropy", z_NV.dtype, z_NV, *z_NV.shape, y_N1, smoothing, int(backward), each)
    return each


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(weight · x / rms(x), 1 / rms(x)). x: (..., D). weight: (D,). The second: (N,) in float32."""
    out, kept = torch.empty_like(x), x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
    _run("norm", x.dtype, x, weight, out, kept, len(kept), x.shape[-1], float(eps))
    return out, kept


def rms_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor, kept: Tensor, wants_weight: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x and, if it is wanted, of the weight."""
    dx, width = torch.empty_like(x), x.shape[-1]
    # Sums of 64 rows each, in float32: the same for any number of threads.
    sums = x.new_zeros(-(-len(kept) // 64), width, dtype=torch.float32) if wants_weight else None
    _run("norm_backward", x.dtype, g, x, weight, kept, dx, sums, len(kept), width)
    return dx, None if sums is None else sums.sum(0).to(weight.dtype)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up."""
    out = torch.empty_like(gate)
    _run("gated", gate.dtype, gate, up, out, gate.numel())
    return out


def gated_backward(g: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up."""
    dgate, dup = torch.empty_like(gate), torch.empty_like(up)
    _run("gated_backward", g.dtype, g, gate, up, dgate, dup, gate.numel())
    return dgate, dup


class _Turned(ctypes.Structure):
    _fields_ = (
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("heads", "b", "h", "t", "b_", "h_", "t_")),
    )


def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> tuple[Tensor, Tensor]:
    """Rotary positions: x cos + (-x₂, x₁) sin for the halves x₁, x₂ of a row; or, `back`, the gradients of q and k.

    Args:
        q: (B, H, T, D). k: (B, K, T, D). cos, sin: (B or 1, T, D).

    Returns:
        of the same shapes, laid out as (B, T, heads, D)
    """
    (b, _, t, d), tensors, made = q.shape, (_Turned * 2)(), []
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    if isinstance(q, FakeTensor):
        made = [x.new_empty(b, t, x.shape[1], d).transpose(1, 2) for x in (q, k)]
        _run("turn", q.dtype, q, k, *made, cos, sin)
        return made[0], made[1]
    for place, x in zip(tensors, (q, k), strict=True):
        out = x.new_empty(b, t, x.shape[1], d).transpose(1, 2)
        place.source, place.target, place.heads = x.data_ptr(), out.data_ptr(), x.shape[1]
        (place.b, place.h, place.t), (place.b_, place.h_, place.t_) = x.stride()[:3], out.stride()[:3]
        made.append(out)
    _run("turn", q.dtype, tensors, cos, sin, t * d if len(cos) > 1 else 0, b, t, d, int(back))
    return made[0], made[1]
