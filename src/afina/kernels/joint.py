"""Frozen linear layers with low-rank updates that read the same input (q, k, v; gate, up), as one operation.

    y_i = x W_iᵀ + b_i + s_i · (x A_iᵀ) B_iᵀ

x meets all A_i in one product, forward and backward, and the parts of its gradient are added by the products
themselves. A layer asked for its output makes the others' too, which they hand out when they are asked with the same
input. Only in 16 bits: in float32 the merged order (`lora_linear`) has no thin products to share. On GPUs the layers'
own products may carry the updates (`cuda.wide`), those of a layer that stands alone too; weights in 4 bits are read one
after the other into the buffer that all share (`cuda.few_bits`).

Shapes: N tokens, I inputs, O outputs of a layer, R rank of a layer, S sum of the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..core.hosts.host import Host, hosts
from .cuda.few_bits import shares_buffer
from .cuda.wide import ADDED, LOCK, Room, Way, Weight, input_gradient, layer_outputs, make_room, saves_apart
from .lora_linear import up


class Layer(NamedTuple):
    """weight: (O, I) and bias: (O,), frozen; a: (R, I), b: (O, R), of any dtype; what a and b are made of, if of
    something else."""

    weight: Weight
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float
    sources: tuple[Tensor, ...] = ()


def lora_linears(x: Tensor, layers: list[Layer], room: Room | None = None) -> tuple[Tensor, ...]:
    """The layers' outputs; gradients go to x and to every a and b.

    Args:
        x: (..., I).
        room: what the weights lie in, where the layers' products carry the updates.
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
    out: tuple[Tensor, ...] = run(x, room, tuple(layer.scale for layer in layers),
                                  *(t for layer in layers for t in layer[:4]))  # fmt: skip
    return out


def _times(b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    if scale == 1:
        return b.to(dtype)
    return torch.mul(b, scale, out=torch.empty(b.shape, dtype=dtype, device=b.device))


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, room: Room | None, scales: tuple[float, ...], *flat: Any) -> tuple[Tensor, ...]:
        weights, biases, a, b = (list(flat[i::4]) for i in range(4))
        a_SI = torch.cat(a).to(x.dtype)
        b_OR = [_times(t, s, x.dtype) for t, s in zip(b, scales, strict=True)]
        out, t_NS = layer_outputs(x.flatten(0, -2), weights, biases, a_SI, b_OR, room)
        # Where any is in few bits, none is looked after by autograd.
        ctx.few_bits = [] if all(isinstance(w, Tensor) for w in weights) else weights
        ctx.save_for_backward(x, a_SI, t_NS, *b_OR, *([] if ctx.few_bits else weights))
        ctx.room, ctx.scales, ctx.dtypes = room, scales, [t.dtype for t in (*a, *b)]
        return tuple(y.view(*x.shape[:-1], -1) for y in out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, a_SI, t_NS, *rest = ctx.saved_tensors
        count = len(ctx.scales)
        b_OR, weights, g_NO = rest[:count], ctx.few_bits or rest[count:], [t.flatten(0, -2) for t in grads]
        ranks = [t.shape[1] for t in b_OR]
        u_NS = torch.cat([g @ b for g, b in zip(g_NO, b_OR, strict=True)], 1)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = input_gradient(g_NO, u_NS, weights, a_SI, ctx.room).view(x.shape)
        da, parts = torch.split(u_NS.mT @ x.flatten(0, -2), ranks), torch.split(t_NS, ranks, 1)
        factors: list[Any] = []
        for i, (g, t_NR, scale) in enumerate(zip(g_NO, parts, ctx.scales, strict=True)):
            db = (t_NR.mT @ g).to(ctx.dtypes[count + i]).mT.contiguous()
            factors += [None, None, da[i].to(ctx.dtypes[i]), db if scale == 1 else db.mul_(scale)]
        return dx, None, None, *factors


Choose = Callable[[Sequence[Tensor], Sequence[int], int], Way]
"""Whether products carry updates, of the frozen weights, the updates' ranks and the number of tokens."""


class Siblings:
    """Hosts that read the same input.

    Attributes:
        made: an input, and the outputs that were made along with another's and not asked for yet, by host.
        choose: says whether their products carry the updates; None where they do not.
        room: what their weights lie in, where they do.
        stream: the one on which the room is written to and read.
    """

    def __init__(self, members: Sequence[Host], choose: Choose | None = None) -> None:
        self.members, self.choose = tuple(members), choose
        self.room: Room | None = None
        self.stream = 0
        # The input and the outputs in one value, so that no other thread's come between.
        self.made: tuple[Tensor | None, dict[int, tuple[Tensor, Any]]] = (None, {})

    def __getstate__(self) -> dict[str, Any]:
        """Copies are made without outputs in flight."""
        return {**self.__dict__, "made": (None, {})}

    def takes(self, x: Tensor) -> bool:
        """Whether its layers are made together for such an input: in float32 the merged order gains more where the
        weights need not be dequantised for it."""
        return x.dtype.itemsize == 2 or self.choose is not None or self.members[0].base.quantised

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
        room = self._room_for(layers, x)
        if room is None and len(layers) == 1 and isinstance(layers[0].weight, Tensor):
            return None
        states = [_state(layer, x) for layer in layers]
        made = dict(enumerate(zip(lora_linears(x, layers, room), states, strict=True)))
        out, _ = made.pop(me)
        self.made = (x, made)
        return out

    def _room_for(self, layers: list[Layer], x: Tensor) -> Room | None:
        """Where the weights lie, if their products carry these updates; they are moved there in the first step."""
        if self.choose is None or torch.compiler.is_compiling():
            return None
        weights = [layer.weight for layer in layers if isinstance(layer.weight, Tensor)]
        ranks, stream = tuple(len(layer.a) for layer in layers), _stream(x)
        if len(weights) < len(layers):
            return None
        with LOCK:
            if self.room is None or (self.room.way != ADDED and not self.room.holds(weights)):
                frozen = [w for w in weights if type(w) is nn.Parameter and w.device == x.device]
                if len(frozen) < len(weights):
                    return None
                way = self.choose(weights, ranks, x.numel() // x.shape[-1])
                self.room, self.stream = make_room(frozen, ranks, way), stream
                for host in self.members if way != ADDED else ():
                    saves_apart(host.base.module)
        there = self.stream == stream or _is_recorded(x)
        fits = self.room.way != ADDED and self.room.ranks == ranks and there
        return self.room if fits else None


def _stream(x: Tensor) -> int:
    """The CUDA stream that this thread works on; 0 elsewhere."""
    gpu: Any = torch.cuda
    return gpu.current_stream(x.device).cuda_stream if x.device.type == "cuda" else 0


def _is_recorded(x: Tensor) -> bool:
    """Whether work goes into a CUDA graph, which runs on whichever stream it is launched on."""
    gpu: Any = torch.cuda
    return x.device.type == "cuda" and bool(gpu.is_current_stream_capturing())


def _state(layer: Layer, x: Tensor) -> Any:
    """What changes when a layer's update or its input does."""
    if torch.compiler.is_compiling():
        return None
    sources = layer.sources or (layer.a, layer.b)
    return x._version, layer.scale, *((id(t), t._version) for t in sources)


def join(base: nn.Module, try_out: Callable[[], Any], choose: Choose | None = None) -> int:
    """Tell hosts of their siblings; returns how many sets there are.

    Args:
        choose: says whether products carry the updates, which is then asked of every layer; None where they do not.
        try_out: runs the model on something small, from which is seen which layers of one module read the same tensor.
    """
    seen: dict[Host, Tensor] = {}
    linear = [(path, host) for path, host in hosts(base) if host.base.kind == "linear"]
    linear = [(path, host) for path, host in linear if not host.base.quantised or shares_buffer(host.base.module)]
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
    alone = [[one] for one, *others in sets.values() if not others and (choose is not None or one.base.quantised)]
    for members in found + alone:
        beside = Siblings(members, choose)
        for host in members:
            host.beside = beside
    return len(found)
