"""Passes over rows of `rows.cpp`: the loss of logits, RMSNorm, silu(gate) · up, in bfloat16 or float32.

Shapes: N rows, D width, V vocabulary.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from . import library

_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def fits(*tensors: Tensor) -> bool:
    """Whether these kernels are there and made for such tensors: on the processor, of one dtype, contiguous."""
    first = tensors[0].dtype
    return (
        first in _NAMES
        and all(t.dtype == first and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        and library() is not None
    )


def _run(name: str, *values: Tensor | int | float) -> None:
    first = values[0]
    assert isinstance(first, Tensor)
    kernel = getattr(library(), f"afina_{name}_{_NAMES[first.dtype]}")
    kernel.restype = None
    kernel(*(_argument(x) for x in values), ctypes.c_int64(torch.get_num_threads()))


def _argument(x: Tensor | int | float) -> Any:
    if isinstance(x, Tensor):
        return ctypes.c_void_p(x.data_ptr())
    return ctypes.c_int64(x) if isinstance(x, int) else ctypes.c_float(x)


def losses(z_NV: Tensor, y_N1: Tensor, smoothing: float, backward: bool) -> Tensor:
    """The sum of the cross-entropies of logits; if `backward`, its gradient takes their place in `z_NV`."""
    if len(y_N1) and not bool(((y_N1 >= 0) & (y_N1 < z_NV.shape[1])).all()):
        raise IndexError(f"a label is not in the vocabulary of {z_NV.shape[1]}: {y_N1.min()} to {y_N1.max()}")
    each = torch.empty(len(z_NV), dtype=torch.float64)
    _run("cross_entropy", z_NV, *z_NV.shape, y_N1.contiguous(), smoothing, int(backward), each)
    return each.sum().float()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(weight · x / rms(x), 1 / rms(x)). x: (..., D). weight: (D,). The second: (N,) in float32."""
    out, kept = torch.empty_like(x), x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
    _run("norm", x, weight, out, kept, len(kept), x.shape[-1], float(eps))
    return out, kept


def rms_norm_backward(g: Tensor, x: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    """The gradient of x."""
    dx = torch.empty_like(x)
    _run("norm_backward", g, x, weight, kept, dx, len(kept), x.shape[-1])
    return dx


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up."""
    out = torch.empty_like(gate)
    _run("gated", gate, up, out, gate.numel())
    return out


def gated_backward(g: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up."""
    dgate, dup = torch.empty_like(gate), torch.empty_like(up)
    _run("gated_backward", g, gate, up, dgate, dup, gate.numel())
    return dgate, dup
