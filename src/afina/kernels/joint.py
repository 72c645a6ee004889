"""Frozen linear layers with low-rank updates that read the same input (q, k, v; gate, up), as one operation.

    y_i = x W_iᵀ + b_i + s_i · (x A_iᵀ) B_iᵀ

x meets all A_i in one product, forward and backward, and the parts of its gradient are added by the products
themselves. A layer asked for its output makes the others' too, which they hand out when they are asked with the same
input. Only in 16 bits: in float32 the merged order (`low_rank`) has no thin products to share.

Shapes: N tokens, I inputs, O outputs of a layer, R rank of a layer, S sum of the ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..core.hosts.host import Host, hosts
from .lora_linear import up


class Layer(NamedTuple):
    """weight: (O, I) and bias: (O,), frozen; a: (R, I), b: (O, R), of any dtype."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float


def lora_linears(x: Tensor, layers: list[Layer]) -> tuple[Tensor, ...]:
    """The layers' outputs; gradients go to x and to every a and b. x: (..., I)."""
    if torch.compiler.is_compiling():
        a_SI = torch.cat([layer.a for layer in layers]).to(x.dtype)
        parts = torch.split(F.linear(x, a_SI), [layer.a.shape[0] for layer in layers], -1)
        return tuple(
            F.linear(x, layer.weight, layer.bias) + up(t_NR, layer.b, layer.scale)
            for layer, t_NR in zip(layers, parts, strict=True)
        )
    run: Any = _LoraLinears.apply
    out: tuple[Tensor, ...] = run(x, tuple(layer.scale for layer in layers),
                                  *(t for layer in layers for t in layer[:4]))  # fmt: skip
    return out


def _outputs(
    x_NI: Tensor, weights: list[Tensor], biases: list[Tensor], a_SI: Tensor, b_OR: list[Tensor], scales: list[float]
) -> list[Tensor]:
    """The outputs, and x_NI a_SIᵀ last. biases: empty where there is none."""
    t_NS = x_NI @ a_SI.mT
    parts = torch.split(t_NS, [t.shape[1] for t in b_OR], 1)
    out = [
        F.linear(x_NI, w, bias if bias.numel() else None).addmm_(t_NR, b.mT, alpha=s)
        for w, bias, b, t_NR, s in zip(weights, biases, b_OR, parts, scales, strict=True)
    ]
    return [*out, t_NS]


def _gradients(
    g_NO: list[Tensor], x_NI: Tensor, weights: list[Tensor], a_SI: Tensor, b_OR: list[Tensor], t_NS: Tensor,
    scales: list[float], wants_x: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of a_SI, of every b (transposed), and of x_NI, which is empty if it is not wanted."""
    u_NS = torch.cat([(g @ b).mul_(s) for g, b, s in zip(g_NO, b_OR, scales, strict=True)], 1)
    dx = x_NI.new_empty(0)
    if wants_x:
        dx = u_NS @ a_SI
        for g, weight in zip(g_NO, weights, strict=True):
            dx.addmm_(g, weight)
    parts = torch.split(t_NS, [t.shape[1] for t in b_OR], 1)
    db_RO = [(t_NR.mT @ g).mul_(s) for t_NR, g, s in zip(parts, g_NO, scales, strict=True)]
    return [u_NS.mT @ x_NI, *db_RO, dx]


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: tuple[float, ...], *flat: Tensor | None) -> tuple[Tensor, ...]:
        count, (a, b) = len(scales), (flat[2::4], flat[3::4])
        weights = [t for t in flat[::4] if t is not None]
        biases = [x.new_empty(0) if t is None else t for t in flat[1::4]]
        a_SI = torch.cat([t for t in a if t is not None]).to(x.dtype)
        b_OR = [t.to(x.dtype) for t in b if t is not None]
        *out, t_NS = _outputs(x.flatten(0, -2), weights, biases, a_SI, b_OR, list(scales))
        ctx.save_for_backward(x, a_SI, t_NS, *weights, *b_OR)
        ctx.scales, ctx.dtypes = list(scales), [None if t is None else t.dtype for t in (*a, *b)]
        return tuple(out[i].view(*x.shape[:-1], -1) for i in range(count))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *g: Tensor) -> Any:
        x, a_SI, t_NS, *rest = ctx.saved_tensors
        count, wants_x = len(ctx.scales), ctx.needs_input_grad[0]
        weights, b_OR = rest[:count], rest[count:]
        da_SI, *db_RO, dx = _gradients(
            [t.flatten(0, -2) for t in g], x.flatten(0, -2), weights, a_SI, b_OR, t_NS, ctx.scales, wants_x
        )
        da = torch.split(da_SI, [t.shape[1] for t in b_OR])
        grads: list[Any] = []
        for i in range(count):
            db = db_RO[i].to(ctx.dtypes[count + i]).mT.contiguous()
            grads += [None, None, da[i].to(ctx.dtypes[i]), db]
        return dx.view(x.shape) if wants_x else None, None, *grads


class Siblings:
    """Hosts that read the same input.

    Attributes:
        made: an input, and the outputs that were made along with another's and not asked for yet, by host.
    """

    def __init__(self, members: list[Host]) -> None:
        self.members = tuple(members)
        # The input and the outputs in one value, so that no other thread's come between.
        self.made: tuple[Tensor | None, dict[int, tuple[Tensor, Any]]] = (None, {})

    def __getstate__(self) -> dict[str, Any]:
        """Copies are made without outputs in flight."""
        return {"members": self.members, "made": (None, {})}

    def output(self, host: Host, x: Tensor, layer_of: Callable[[Host, Tensor], Layer | None]) -> Tensor | None:
        """The host's output for x; None where one of them is no such layer now.

        Args:
            layer_of: what a host is, if it is a frozen layer with one low-rank update and nothing else.
        """
        me = next(i for i, member in enumerate(self.members) if member is host)
        source, waiting = self.made
        found = waiting.pop(me, None) if source is x else None
        if found is not None:
            out, state = found
            if not waiting:
                self.made = (None, {})
            mine = layer_of(host, x)
            if mine is not None and _state(mine, x) == state:
                return out
        layers = [layer for layer in (layer_of(member, x) for member in self.members) if layer is not None]
        self.made = (None, {})
        if len(layers) < len(self.members):
            return None
        states = [_state(layer, x) for layer in layers]
        made = dict(enumerate(zip(lora_linears(x, layers), states, strict=True)))
        out, _ = made.pop(me)
        self.made = (x, made)
        return out


def _state(layer: Layer, x: Tensor) -> Any:
    """What changes when a layer's update or its input does."""
    if torch.compiler.is_compiling():
        return None
    return *(t._version for t in (layer.a, layer.b, x)), id(layer.a), id(layer.b), layer.scale


def join(base: nn.Module, try_out: Callable[[], Any]) -> int:
    """Tell hosts of their siblings; returns how many sets there are.

    Args:
        try_out: runs the model on something small, from which is seen which layers of one module read the same tensor.
    """
    seen: dict[Host, Tensor] = {}
    linear = [(path, host) for path, host in hosts(base) if host.base.kind == "linear" and not host.base.quantised]
    if len(linear) < 2:
        return 0

    def look(host: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(host, Host) and args:
            seen[host] = args[0]

    handles = [host.register_forward_pre_hook(look) for _, host in linear]
    try:
        try_out()
    finally:
        for handle in handles:
            handle.remove()
    sets: dict[tuple[str, int], list[Host]] = {}
    for path, host in linear:
        if host in seen:
            sets.setdefault((path.rpartition(".")[0], id(seen[host])), []).append(host)
    found = [members for members in sets.values() if len(members) > 1]
    for members in found:
        beside = Siblings(members)
        for host in members:
            host.beside = beside
    return len(found)
