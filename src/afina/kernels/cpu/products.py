"""Matrix products in float32 on processors, by whichever library of torch's is the faster one there.

torch's float32 products on x86 are MKL's, which gives processors of other makers than Intel code for older ones.
oneDNN, which torch also brings, uses all that they have: 2.2 times as fast on an AMD processor with AVX-512
(docs/speed.md). Sums run in another order there, so results agree to rounding. What is decided depends on the machine
and the sizes alone, so that a run repeated or resumed decides the same.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST = 2**22
"""Multiplications below which a product is too small to gain."""


def _prefers_onednn() -> bool:
    has: Any = torch.backends
    if not (has.mkldnn.is_available() and has.mkl.is_available()):
        return False
    try:
        with Path("/proc/cpuinfo").open() as lines:
            vendor = next((x.partition(":")[2].strip() for x in lines if x.startswith("vendor_id")), "")
    except OSError:
        return False
    return vendor == "AuthenticAMD" and torch.backends.cpu.get_cpu_capability() == "AVX512"


ONEDNN = _prefers_onednn()
"""Whether oneDNN's float32 products are the faster ones on this processor."""


def chooses_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether `x weightᵀ` is made by oneDNN. x: (N, I). weight: (O, I)."""
    return (
        ONEDNN
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.shape[0] * weight.numel() >= SMALLEST
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weightᵀ + bias`, without autograd. x: (N, I). weight: (O, I), any strides."""
    if not chooses_onednn(x, weight):
        return F.linear(x, weight, bias)
    # The compiler has rules of its own for torch's operation, which expect weights in oneDNN's own layout.
    return _opaque(x, weight, bias) if torch.compiler.is_compiling() else _onednn(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    run: Any = torch.ops.mkldnn._linear_pointwise
    out: Tensor = run(x, weight, bias, "none", [], "")
    return out


@torch.library.custom_op("afina::linear", mutates_args=(), device_types="cpu")
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _onednn(x, weight, bias)


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def mm(a: Tensor, b: Tensor) -> Tensor:
    """`a b`, without autograd. a: (N, I). b: (I, O)."""
    return linear(a, b.mT)


def differentiable_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x weightᵀ + bias` with gradients to all three. x: (..., I)."""
    run: Any = _Linear.apply
    out: Tensor = run(x, weight, bias)
    return out


def shaped(y_NO: Tensor, shape: Sequence[int]) -> Tensor:
    """A result that nobody else holds, in another shape. Autograd takes it for no view: models write into what a layer
    gives them (wav2vec 2.0 blanks what is padding), and that is forbidden in views that a Function gives."""
    out: Tensor = torch.ops.aten._unsafe_view(y_NO, shape)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.shape = x.shape
        y_NO = linear(x.flatten(0, -2), weight, bias)
        return shaped(y_NO, (*x.shape[:-1], y_NO.shape[1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        g_NO = g.flatten(0, -2)
        wants_x, wants_w, wants_b = ctx.needs_input_grad
        dx = mm(g_NO, weight).view(ctx.shape) if wants_x else None
        dw = mm(g_NO.mT, x.flatten(0, -2)) if wants_w else None
        return dx, dw, g_NO.sum(0) if wants_b else None
