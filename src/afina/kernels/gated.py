"""The gated feed-forward part of decoder layers, keeping less for the backward pass.

    y = down(silu(gate(x)) * up(x))

Of the four wide tensors that autograd keeps (both projections, silu(gate), the product), two can be made again from the
other two by passes over memory that cost little beside the products: only gate(x) and up(x) are kept. Where there is
a kernel (`backends`), each direction is one pass. In 16 bits without one it is left as it is, because the passes are
a larger part of a step there and the tensors half as large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import backends
from .swap import swap_forward


class _Kept:
    """gate and up of one pass, where nobody else decides what is kept; `share` is silu(gate) between the two uses of a
    backward pass. `spent` once both have become their gradients."""

    def __init__(self, gate: Tensor | None = None, up: Tensor | None = None) -> None:
        self.gate, self.up = gate, up
        self.share: Tensor | None = None
        self.spent = False

    def product(self, part: slice, shape: torch.Size) -> Tensor:
        """The product of some of its numbers, which follow each other in memory."""
        self.spend(False)
        assert self.gate is not None
        assert self.up is not None
        gate, up = (x.flatten()[part].view(shape) for x in (self.gate, self.up))
        if _fits(gate, up):
            return backends.on(gate.device).gated(gate, up)
        share = F.silu(gate)
        if share.numel() == self.gate.numel():
            self.share = share.view_as(self.gate)
        return share * up

    def spend(self, overwritten: bool) -> None:
        """Note whether a backward pass leaves its gradients in the place of gate and up. Raises where one has."""
        if self.spent:
            raise RuntimeError("a second backward pass through a gated part, whose first one left its gradients in the "
                               "place of what it needs; leave speed_up out (training.fast=false)")  # fmt: skip
        self.spent = overwritten


def _fits(*tensors: Tensor) -> bool:
    return backends.fits("feed-forward", *tensors)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kept: _Kept) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.kept = kept
        return backends.on(gate.device).gated(gate, up) if _fits(gate, up) else F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        if _fits(g, gate, up):
            backend = backends.on(g.device)
            ctx.kept.spend(backend.OVERWRITES)
            return *backend.gated_backward(g, gate, up), None
        share, ctx.kept.share = ctx.kept.share, None
        share = F.silu(gate) if share is None else share
        return torch.ops.aten.silu_backward(g * up, gate), share.mul_(g), None


def _product(gate: Tensor, up: Tensor, kept: _Kept) -> Tensor:
    run: Any = _Gated.apply
    out: Tensor = run(gate, up, kept)
    return out


def gated(gate: Tensor, up: Tensor, down: Callable[[Tensor], Tensor]) -> Tensor:
    """`down(silu(gate) * up)`; what `down` keeps of its input, or of some of its rows, is made again in the backward
    pass."""
    kept = _Kept(gate.detach(), up.detach())
    product = _product(gate, up, kept)
    # Not the tensor itself: the backward pass holds on to both functions.
    own = product.untyped_storage()._cdata, product.dtype
    plain = gate.shape == up.shape and all(x.is_contiguous() for x in (gate, up, product))

    def pack(tensor: Tensor) -> Any:
        same = plain and (tensor.untyped_storage()._cdata, tensor.dtype) == own and tensor.is_contiguous()
        first = tensor.storage_offset()
        return (slice(first, first + tensor.numel()), tensor.shape) if same else tensor

    def unpack(held: Any) -> Tensor:
        return held if isinstance(held, Tensor) else kept.product(*held)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return down(product)


def keep_less(base: nn.Module, dtype: torch.dtype, device: torch.device) -> int:
    """Let feed-forward parts of this form keep less; returns how many there are.

    Args:
        dtype: what the base computes in.
        device: where it is.
    """
    if dtype != torch.float32 and not _fits(torch.empty(0, dtype=dtype, device=device)):
        return 0
    found = [m for m in base.modules() if _has_the_form(m, dtype)]
    for module in found:
        swap_forward(module, _forward)
    return len(found)


def _has_the_form(module: nn.Module, dtype: torch.dtype) -> bool:
    children = module._modules
    if hasattr(type(module), "plain_class") or children.keys() != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return False
    own: Any = module
    weight, width = getattr(own.gate_proj, "weight", None), getattr(own.gate_proj, "in_features", 0)
    if not isinstance(weight, Tensor) or not width or weight.device.type == "meta":
        return False
    was = module.training
    module.eval()
    try:
        with torch.no_grad():
            # A few fixed numbers tell this form from others: scales, clamps, another activation.
            x = torch.linspace(-2, 2, 2 * width, device=weight.device, dtype=dtype).view(1, 2, -1)
            return torch.equal(own(x), own.down_proj(F.silu(own.gate_proj(x)) * own.up_proj(x)))
    except (RuntimeError, TypeError, ValueError):
        return False
    finally:
        module.train(was)


def _forward(kind: type[nn.Module], self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args or kwargs or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        out: Tensor = kind.forward(self, x, *args, **kwargs)
        return out
    gate, up, others_keep = self.gate_proj(x), self.up_proj(x), _others_keep()
    if _fits(gate, up) and gate.shape == up.shape:
        out = self.down_proj(_product(gate, up, _Kept())) if others_keep else gated(gate, up, self.down_proj)
    elif others_keep or gate.dtype != torch.float32:
        out = self.down_proj(self.act_fn(gate) * up)
    else:
        out = gated(gate, up, self.down_proj)
    return out


def _others_keep() -> bool:
    """Whether somebody else decides what is kept (gradient checkpointing, offloading), as far as torch tells."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(True) is not None
