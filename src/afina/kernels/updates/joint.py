"""Frozen linear layers with low-rank updates that read the same input (q, k, v; gate, up), as one operation.

    y_i = x W_iᵀ + b_i + s_i · (x A_iᵀ) B_iᵀ

x meets all A_i in one product, forward and backward, and the parts of its gradient are added by the products
themselves. On GPUs the layers' own products may carry the updates (`wide`), those of a layer that stands alone too, and
rows of a batch may have updates of their own (`row_columns`); weights in few bits are read one after the other into the
buffer that all share (`cuda.few_bits`).

Shapes: N tokens, I inputs, O outputs of a layer, R rank of a layer, S sum of the ranks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..lora_linear import up
from .row_columns import RowColumns, factor_gradients, filled, finite, not_finite, put_aside
from .wide import Room, Weight, input_gradient, layer_outputs


class Layer(NamedTuple):
    """weight: (O, I) and bias: (O,), frozen; a: (R, I), b: (O, R), of any dtype; what a and b are made of, if of
    something else; which rows of a batch go through which columns, if not all through all; whether whoever asks
    multiplies their outputs by magnitudes."""

    weight: Weight
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float
    sources: tuple[Tensor, ...] = ()
    rows: RowColumns | None = None
    magnified: bool = False


def lora_linears(x: Tensor, layers: list[Layer], room: Room | None = None) -> tuple[Tensor, ...]:
    """The layers' outputs; gradients go to x and to every a and b.

    Args:
        x: (..., I).
        room: what the weights lie in, where the layers' products carry the updates, or how else they are not added.
    """
    if torch.compiler.is_compiling():
        a_SI = torch.cat([layer.a for layer in layers]).to(x.dtype)
        parts = torch.split(F.linear(x, a_SI), [layer.a.shape[0] for layer in layers], -1)
        dense = [layer.weight for layer in layers if isinstance(layer.weight, Tensor)]
        return tuple(
            F.linear(x, weight, layer.bias) + up(t_NR, layer.b, layer.scale)
            for layer, weight, t_NR in zip(layers, dense, parts, strict=True)
        )
    run: Any = _LoraLinears.apply
    rows = [layer.rows for layer in layers if layer.rows is not None]
    out: tuple[Tensor, ...] = run(x, room, tuple(layer.scale for layer in layers), rows,
                                  *(t for layer in layers for t in layer[:4]))  # fmt: skip
    return out


def _times(b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    if scale == 1:
        return b.to(dtype)
    return torch.mul(b, scale, out=torch.empty(b.shape, dtype=dtype, device=b.device))


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, room: Room | None, scales: tuple[float, ...], rows: list[RowColumns], *flat: Any
    ) -> tuple[Tensor, ...]:
        weights, biases, a, b = (list(flat[i::4]) for i in range(4))
        b_OR = [_times(t, s, x.dtype) for t, s in zip(b, scales, strict=True)]
        if rows and room is not None:  # which may have room for more
            a = [filled(t.mT, held).mT for t, held in zip(a, room.ranks, strict=True)]
            b_OR = [filled(t, held) for t, held in zip(b_OR, room.ranks, strict=True)]
        a_SI, x_NI = torch.cat(a).to(x.dtype), x.flatten(0, -2)
        t_NS = x_NI @ a_SI.mT
        if rows:
            t_NS = put_aside(t_NS + not_finite(b_OR), rows, [len(t) for t in a])
            a_SI, b_OR = finite(a_SI), [finite(t) for t in b_OR]
        out = layer_outputs(x_NI, weights, biases, t_NS, b_OR, room)
        # Where any is in few bits, none is looked after by autograd.
        ctx.few_bits = [] if all(isinstance(w, Tensor) for w in weights) else weights
        ctx.save_for_backward(x, a_SI, t_NS, *b_OR, *([] if ctx.few_bits else weights))
        ctx.room, ctx.scales, ctx.rows, ctx.dtypes = room, scales, rows, [t.dtype for t in (*flat[2::4], *b)]
        return tuple(y.view(*x.shape[:-1], y.shape[1]) for y in out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, a_SI, t_NS, *rest = ctx.saved_tensors
        count = len(ctx.scales)
        b_OR, weights, g_NO = rest[:count], ctx.few_bits or rest[count:], [t.flatten(0, -2) for t in grads]
        ranks, x_NI = [t.shape[1] for t in b_OR], x.flatten(0, -2)
        u_NS = torch.cat([g @ b for g, b in zip(g_NO, b_OR, strict=True)], 1)
        if ctx.rows:
            u_NS = put_aside(u_NS, ctx.rows, ranks)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = input_gradient(g_NO, u_NS, weights, a_SI, ctx.room).view(x.shape)
        if ctx.rows:
            found = factor_gradients(x_NI, g_NO, t_NS, u_NS, ctx.rows, ranks)
        else:
            of_b = [(t.mT @ g).mT for g, t in zip(g_NO, torch.split(t_NS, ranks, 1), strict=True)]
            found = list(zip(torch.split(u_NS.mT @ x_NI, ranks), of_b, strict=True))
        factors: list[Any] = []
        for i, ((da, db), scale) in enumerate(zip(found, ctx.scales, strict=True)):
            db = db.to(ctx.dtypes[count + i]).contiguous()
            factors += [None, None, da.to(ctx.dtypes[i]), db if scale == 1 else db.mul_(scale)]
        return dx, None, None, None, *factors
