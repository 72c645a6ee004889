"""Passes over rows by liger-kernel's Triton kernels (Hsu et al. 2024, arXiv 2410.10989): norms, silu(gate) · up, rotary
positions; the interface is that of `cpu.native.rowwise`.

liger-kernel (the extra `gpu`) is imported where a tensor lies on a GPU only. What its functions write over is copied
first, but for the gate and up of `gated_backward`, whose copies would cost as much as the pass.

Shapes: D width, B batch, H heads, T tokens.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

OVERWRITES = True
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDEST = 65536
"""Numbers of a row that liger's kernels hold."""


def is_installed() -> bool:
    """Whether liger-kernel is; whether it runs is found out by `trial`."""
    return importlib.util.find_spec("liger_kernel") is not None


def fits(*tensors: Tensor) -> bool:
    """Whether these kernels are made for such tensors: on a GPU, of one dtype, contiguous, and no subclass."""
    first = tensors[0].dtype
    return (
        first in DTYPES
        and not (torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0)
        and all(t.dtype == first and is_plain(t) and t.is_contiguous() for t in tensors)
        and all(t.dim() == 0 or t.shape[-1] <= _WIDEST for t in tensors)
        and is_installed()
    )


def is_plain(x: Tensor) -> bool:
    """Whether a tensor lies here and is no subclass."""
    return x.device.type == "cuda" and type(x) in (Tensor, nn.Parameter)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(weight · x / rms(x), 1 / rms(x)). x: (..., D). weight: (D,)."""
    from liger_kernel.ops.rms_norm import rms_norm_forward

    out, _, kept, *_ = rms_norm_forward(x, weight, eps, 0.0, "llama", None)
    return out, kept


def rms_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor, kept: Tensor, wants_weight: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x and, if it is wanted, of the weight."""
    from liger_kernel.ops.rms_norm import _str_to_casting_mode
    from liger_kernel.ops.rms_norm import rms_norm_backward as backward
    from liger_kernel.ops.utils import calculate_settings

    width = x.shape[-1]
    block, warps = calculate_settings(width)
    dx, dw = backward(g, x.view(-1, width), weight, kept, 0.0, _str_to_casting_mode["llama"], block, warps,
                      in_place=False, row_mode=None, needs_dw=wants_weight)  # fmt: skip
    return dx, dw


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up."""
    from liger_kernel.ops.swiglu import swiglu_forward

    out: Tensor = swiglu_forward(gate, up)[2]
    return out


def gated_backward(g: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up, which take the place of both."""
    from liger_kernel.ops.swiglu import swiglu_backward

    dgate, dup = swiglu_backward(gate, up, g)
    return dgate, dup


def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> tuple[Tensor, Tensor]:
    """Rotary positions: x cos + (-x₂, x₁) sin for the halves x₁, x₂ of a row; or, `back`, the gradients of q and k.

    Args:
        q: (B, H, T, D). k: (B, K, T, D). cos, sin: (B or 1, T, D).

    Returns:
        of the same shapes, laid out as (B, T, heads, D)
    """
    from liger_kernel.ops.rope import rope_backward, rope_forward

    q, k = (x.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2) for x in (q, k))
    turned = (rope_backward if back else rope_forward)(q, k, cos, sin)
    return turned[0], turned[1]
