"""RMSNorm as one pass over memory each way, where there is a kernel for it (`backends`).

    y = w · x / sqrt(mean(x²) + ε)

Layers are known by what they compute, not by their names: one vector of weights, an ε, and this formula's numbers on a
trial.

Source: Zhang and Sennrich 2019, arXiv 1910.07467.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..core.layers.weights import autocasts
from . import backends
from .swap import swap_forward


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`weight · x / rms(x)`, for what `backends` has a kernel for. x: (..., D). weight: (D,)."""
    run: Any = _RMSNorm.apply
    out: Tensor = run(x, weight, eps)
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, kept = backends.on(x.device).rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, kept = ctx.saved_tensors
        backend = backends.on(x.device)
        dx, dw = backend.rms_norm_backward(g.contiguous(), x, weight, kept, ctx.needs_input_grad[1])
        return dx, dw, None


def fuse_norms(base: nn.Module) -> int:
    """Give RMSNorm layers the kernel; returns how many have it."""
    found = [m for m in base.modules() if _is_rms_norm(m)]
    for module in found:
        swap_forward(module, _forward)
    return len(found)


def _eps(module: Any) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _is_rms_norm(module: nn.Module) -> bool:
    weight, eps = module._parameters.get("weight"), _eps(module)
    if len(module._parameters) != 1 or module._modules or hasattr(type(module), "plain_class"):
        return False
    if weight is None or weight.dim() != 1 or not isinstance(eps, float) or not backends.fits("norms", weight.detach()):
        return False
    width = weight.shape[0]
    x = torch.linspace(-2, 3, 3 * width, dtype=weight.dtype, device=weight.device).view(1, 3, width)
    try:
        with torch.no_grad():
            own, ours = module(x), backends.on(x.device).rms_norm(x, weight, eps)[0]
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    if not isinstance(own, Tensor) or own.dtype != x.dtype or own.shape != x.shape:
        return False
    # In 16 bits both round the same float32 numbers twice; a sum in another order may move one of them by one place.
    return torch.allclose(own.float(), ours.float(), rtol=2 * torch.finfo(x.dtype).eps, atol=1e-6)


def _forward(kind: type[nn.Module], self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # Some take a gate beside the input.
    more = args or any(v is not None for v in kwargs.values())
    if more or autocasts(x) or not backends.fits("norms", x, self.weight) or x.shape[-1] != self.weight.shape[0]:
        out: Tensor = kind.forward(self, x, *args, **kwargs)
        return out
    return rms_norm(x, self.weight, _eps(self))
