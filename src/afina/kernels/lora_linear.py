"""A frozen linear layer with a low-rank update as one operation.

    y = x Wᵀ + b + s · (x Aᵀ) Bᵀ

The update is added by the matrix product itself (no scaled copy, no sum), 16-bit inputs are not converted to float32
and back, and the backward pass shares the output's gradient and adds both parts of the input's gradient in place.
Nothing is kept for the backward pass beyond the input and x Aᵀ. Where the batch is large against the layer (and the
dtype loses nothing by it), the order with the fewest operations is (W + s B A) first, computed again in the backward
pass: RunLoRA, Cherniuk et al. 2023, arXiv 2312.03415, extended by the merged order.

Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..core.layers.sharded import runs_whole
from .cpu import products


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float | Tensor) -> Tensor:
    """`x Wᵀ + bias + scale · x Aᵀ Bᵀ`; gradients go to x, a and b, which may be of another dtype than x and W.

    Args:
        x: (..., I). weight: (O, I), frozen. bias: (O,), frozen. a: (R, I). b: (O, R).
    """
    if left_to_compiler(x):
        return F.linear(x, weight, bias) + up(F.linear(x, a.to(x.dtype)), b, scale)
    run: Any = _LoraLinear.apply
    out: Tensor = run(x, weight, bias, a, b, scale)
    return out


def add_low_rank(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float | Tensor) -> Tensor:
    """`y + scale · x Aᵀ Bᵀ`; y: (..., O) is left as it is, x: (..., I)."""
    if left_to_compiler(x):
        return y + up(F.linear(x, a.to(x.dtype)), b, scale)
    run: Any = _AddLowRank.apply
    out: Tensor = run(y, x, a, b, scale)
    return out


def left_to_compiler(x: Tensor) -> bool:
    """Whether the formula is left as it stands: in 16 bits the compiler joins its sums with what is around them and
    differentiates it; operations that it does not look into would each cost more than the launches that they save."""
    return torch.compiler.is_compiling() and x.dtype.itemsize == 2


def up(t_NR: Tensor, b: Tensor, scale: float | Tensor) -> Tensor:
    """scale · t Bᵀ in t's dtype. t_NR: (..., R). b: (O, R), of any dtype."""
    b = b if not isinstance(scale, Tensor) and scale == 1 else b * scale
    return F.linear(t_NR, b.to(t_NR.dtype))


def merged_is_cheaper(tokens: int, weight: Tensor) -> bool:
    """Whether forming W + s B A costs fewer operations than the factored products; in 16 bits it would lose them."""
    out, width = weight.shape
    return weight.dtype.itemsize >= 4 and tokens * (out + width) > 2 * out * width


def is_plain_linear(module: nn.Module) -> bool:
    """Whether calling the module is nothing but a product with its frozen, ordinary weight (and its bias)."""
    weight, kind = module._parameters.get("weight"), getattr(type(module), "plain_class", type(module))
    known = kind.forward is nn.Linear.forward or (kind.__name__ == "Conv1D" and hasattr(module, "nf"))
    return (
        known
        and weight is not None
        and runs_whole(weight)
        and weight.is_floating_point()
        and not any(p is not None and p.requires_grad for p in module._parameters.values())
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and "forward" not in module.__dict__
    )


def _scaled(b: Tensor, scale: float | Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """(B, factor of the product); a scale that is a tensor goes into B, because products take numbers only."""
    return ((b * scale).to(dtype), 1.0) if isinstance(scale, Tensor) else (b.to(dtype), scale)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float | Tensor
    ) -> Tensor:
        x_NI = x.flatten(0, -2)
        a_RI, (b_OR, s) = a.to(weight.dtype), _scaled(b, scale, weight.dtype)
        ctx.merged = a.dtype == weight.dtype and merged_is_cheaper(x_NI.shape[0], weight)
        if ctx.merged:
            t_NR = None
            y_NO = products.linear(x_NI, torch.addmm(weight, b_OR, a_RI, alpha=s), bias)
        else:
            t_NR = products.linear(x_NI, a_RI)
            y_NO = products.linear(x_NI, weight, bias).addmm_(t_NR, b_OR.mT, alpha=s)
        ctx.save_for_backward(x_NI, weight, a_RI, b_OR, t_NR, scale if isinstance(scale, Tensor) else None)
        ctx.scale, ctx.dtypes, ctx.shape = s, (a.dtype, b.dtype), x.shape
        return products.shaped(y_NO, (*x.shape[:-1], y_NO.shape[1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x_NI, weight, a_RI, b_OR, t_NR, scale = ctx.saved_tensors
        g_NO = g.flatten(0, -2)
        u_NR = products.mm(g_NO, b_OR).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            if ctx.merged:
                dx = products.mm(g_NO, torch.addmm(weight, b_OR, a_RI, alpha=ctx.scale))
            else:
                dx = products.mm(g_NO, weight).addmm_(u_NR, a_RI)
            dx = dx.view(ctx.shape)
        if t_NR is None:
            t_NR = products.linear(x_NI, a_RI)
        return dx, None, None, *_factor_gradients(ctx, g_NO, u_NR, x_NI, t_NR, scale), None


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float | Tensor) -> Tensor:
        x_NI = x.flatten(0, -2)
        a_RI, (b_OR, s) = a.to(x.dtype), _scaled(b, scale, x.dtype)
        t_NR = products.linear(x_NI, a_RI)
        y_NO = y.flatten(0, -2).to(x.dtype)
        out = torch.addmm(y_NO, t_NR, b_OR.mT, alpha=s)
        ctx.save_for_backward(x_NI, a_RI, b_OR, t_NR, scale if isinstance(scale, Tensor) else None)
        ctx.scale, ctx.dtypes, ctx.shape, ctx.y_dtype = s, (a.dtype, b.dtype), x.shape, y.dtype
        return products.shaped(out, y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x_NI, a_RI, b_OR, t_NR, scale = ctx.saved_tensors
        g_NO = g.flatten(0, -2)
        u_NR = products.mm(g_NO, b_OR).mul_(ctx.scale)
        dx = (u_NR @ a_RI).view(ctx.shape) if ctx.needs_input_grad[1] else None
        dy = g.to(ctx.y_dtype) if ctx.needs_input_grad[0] else None
        return dy, dx, *_factor_gradients(ctx, g_NO, u_NR, x_NI, t_NR, scale), None


def _factor_gradients(
    ctx: Any, g_NO: Tensor, u_NR: Tensor, x_NI: Tensor, t_NR: Tensor, scale: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """(dA, dB) in the factors' own dtypes, where they are wanted."""
    at = 3 if len(ctx.needs_input_grad) == 6 else 2
    da = products.mm(u_NR.mT, x_NI).to(ctx.dtypes[0]) if ctx.needs_input_grad[at] else None
    db = None
    if ctx.needs_input_grad[at + 1]:
        db = products.mm(t_NR.mT, g_NO).to(ctx.dtypes[1]).mT.contiguous().mul_(ctx.scale if scale is None else scale)
    return da, db
