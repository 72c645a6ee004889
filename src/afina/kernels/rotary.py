"""Rotary positions in one pass over queries and keys, where there is a kernel for it (`backends`).

transformers' attention layers call a function of their module for it. A layer whose function gives this formula's
numbers on a trial gets a forward with another function under that name; the module itself stays as it is.

Source: Su et al. 2021, arXiv 2104.09864.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import backends
from .swap import swap_forward

_CALLED = "apply_rotary_pos_emb"


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys at their positions, for what `backends` has a kernel for; gradients go to both.

    Args:
        q: (B, H, T, D). k: (B, K, T, D). cos, sin: (B or 1, T, D).
    """
    run: Any = _Rotate.apply
    out: tuple[Tensor, Tensor] = run(q, k, cos, sin)
    return out


def formula(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The same in torch's operations."""

    def turn(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]

    return turn(q), turn(k)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return backends.on(q.device).turn(q, k, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_q: Tensor, g_k: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return *backends.on(g_q.device).turn(g_q, g_k, cos, sin, back=True), None, None


def fuse_rotary(base: nn.Module, dtype: torch.dtype, device: torch.device) -> int:
    """Give attention layers the kernel; returns how many have it.

    Args:
        dtype: what the base computes in.
        device: where it is.
    """
    if not backends.fits("rotary positions", torch.empty(0, dtype=dtype, device=device)):
        return 0
    found = [m for m in base.modules() if _takes_kernel(type(m))]
    for module in found:
        swap_forward(module, _forward)
    return len(found)


def _takes_kernel(kind: Any) -> bool:
    return not hasattr(kind, "plain_class") and _with_kernel(kind) is not None


def _forward(kind: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    return (kind.forward if torch.compiler.is_compiling() else _with_kernel(kind))(self, *args, **kwargs)


@functools.lru_cache(maxsize=64)
def _with_kernel(kind: Any) -> Any:
    """The forward of a class of layers, calling ours; None where it calls no such function, or another formula."""
    forward = inspect.unwrap(kind.forward)  # transformers 5.24 wraps it, to tell of an argument's former name
    if not isinstance(forward, types.FunctionType) or _CALLED not in forward.__code__.co_names:
        return None
    own = forward.__globals__.get(_CALLED)
    if not callable(own) or not _is_the_formula(own):
        return None

    fits: dict[str, bool] = {}

    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        kind = q.device.type
        if kind not in fits:
            fits[kind] = backends.reads_all_angles(q.device) or all(map(_has_equal_halves, (cos, sin)))
        if args or kwargs or not fits[kind] or not backends.can_turn(q, k, cos, sin):
            return own(q, k, cos, sin, *args, **kwargs)
        return rotate(q, k, cos, sin)

    ours = types.FunctionType(forward.__code__, {**forward.__globals__, _CALLED: rotary}, forward.__name__,
                              forward.__defaults__, forward.__closure__)  # fmt: skip
    ours.__kwdefaults__ = forward.__kwdefaults__
    return ours


def _has_equal_halves(angles: Tensor) -> bool:
    first, second = angles.chunk(2, -1)
    return first.shape == second.shape and torch.equal(first, second)


def _is_the_formula(function: Any) -> bool:
    q, k = torch.linspace(-2, 3, 2 * 3 * 5 * 8).view(2, 3, 5, 8), torch.linspace(1, -3, 2 * 5 * 8).view(2, 1, 5, 8)
    angles = torch.linspace(0, 7, 2 * 5 * 8).view(2, 5, 8)
    cos, sin = angles.cos(), angles.sin()
    try:
        own = function(q, k, cos, sin)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    ours = formula(q, k, cos, sin)
    return isinstance(own, tuple) and len(own) == 2 and all(
        isinstance(a, Tensor) and a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
        for a, b in zip(own, ours, strict=True)
    )  # fmt: skip
