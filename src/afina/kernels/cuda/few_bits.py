"""Frozen layers in few bits whose weights are dequantised into one buffer, at each use and for all layers.

    forward  y = x W(q)ᵀ + b (in 8 bits: `eight_bits`),    backward  dx = g W(q)

Only the codes are kept between the two; bitsandbytes takes a new tensor of the weight's size each time. One buffer
serves each device, stream and dtype: a product is queued behind the dequantising that it reads and before the next.
Used on GPUs; on processors the layers' own forward is as good.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..swap import swap_forward
from .eight_bits import in_8_bits, is_in_8_bits, stored8

Kind = tuple[str, float]
"""How a weight is stored and used: nf4, fp4 or int8 (its inputs rounded or not); a threshold of the last."""


class Buffer:
    """Memory for one dequantised weight at a time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._held: dict[tuple[torch.device, int, torch.dtype], Tensor] = {}

    def of(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of that shape in the buffer, which grows to the largest that was asked for."""
        gpu: Any = torch.cuda
        key = device, gpu.current_stream(device).cuda_stream if device.type == "cuda" else 0, dtype
        held = self._held.get(key)
        if held is None or held.numel() < shape.numel():
            self._held.pop(key, None)
            held = self._held[key] = torch.empty(shape.numel(), dtype=dtype, device=device)
        return held[: shape.numel()].view(shape)


def share_buffer(base: nn.Module) -> int:
    """Give bitsandbytes' layers in 4 and 8 bits one buffer for all; returns how many there are."""
    found: list[Any] = [m for m in base.modules() if _is_in_4_bits(m) or is_in_8_bits(m)]
    buffer = Buffer()
    for layer in found:
        layer._buffer_of_all = _Held(buffer)
        swap_forward(layer, _forward)
    return len(found)


class FewBits(Protocol):
    """A frozen weight (O, I) in few bits."""

    @property
    def kind(self) -> Kind:
        """How it is stored."""

    def read(self, dtype: torch.dtype) -> AbstractContextManager[Tensor]:
        """The dequantised weight, for the products that are started inside."""

    def product(self, x_NI: Tensor, bias: Tensor | None, made: dict[Any, Any]) -> Tensor:
        """The layer's own, x Wᵀ + bias, (N, O), which nobody else has.

        Args:
            made: what is made of x, for other layers that read it.
        """


class Stored(NamedTuple):
    """A frozen weight (O, I) as its codes, and where it is dequantised to."""

    codes: Tensor
    state: Any
    buffer: Buffer

    @property
    def kind(self) -> Kind:
        """How it is stored."""
        return str(self.state.quant_type), 0.0

    @contextmanager
    def read(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The weight, for the products that are started inside."""
        with self.buffer.lock:
            yield _dequantised(self.codes, self.state, dtype, self.buffer)

    def product(self, x_NI: Tensor, bias: Tensor | None, made: dict[Any, Any]) -> Tensor:
        """x Wᵀ + bias."""
        with self.read(x_NI.dtype) as weight:
            return torch.nn.functional.linear(x_NI, weight, bias)


def in_few_bits(weight: Tensor, kind: Kind, buffer: Buffer) -> FewBits:
    """A weight (O, I), stored so."""
    if kind[0].startswith("int8"):
        return in_8_bits(weight, kind, buffer)
    functional: Any = importlib.import_module("bitsandbytes.functional")
    codes, state = functional.quantize_4bit(weight, quant_type=kind[0])
    return Stored(codes, state, buffer)


def shares_buffer(module: nn.Module) -> bool:
    """Whether a layer is one of those of `share_buffer`."""
    return "_buffer_of_all" in module.__dict__


def stored(module: Any, x: Tensor) -> FewBits | None:
    """What a layer multiplies an input by, where it shares a buffer and computes in the input's dtype."""
    if not shares_buffer(module) or torch.compiler.is_compiling():
        return None
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return None if hooked else _stored(module, x.dtype)


def _stored(module: Any, dtype: torch.dtype) -> FewBits | None:
    buffer = module._buffer_of_all.buffer
    if hasattr(module, "state"):
        return stored8(module, buffer)
    state = getattr(module.weight, "quant_state", None)
    if state is None or (module.compute_dtype or dtype) != dtype:
        return None
    return Stored(module.weight.data, state, buffer)


class _Held:
    """Holds the buffer in a layer; copies of the layer share it."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer

    def __deepcopy__(self, memo: dict[int, Any]) -> _Held:
        return self

    def __reduce__(self) -> Any:
        return _fresh, ()


def _fresh() -> _Held:
    return _Held(Buffer())


def _is_in_4_bits(module: Any) -> bool:
    weight: Any = getattr(module, "weight", None)
    return (
        type(module).__name__ == "Linear4bit"
        and not hasattr(type(module), "plain_class")
        and getattr(weight, "quant_state", None) is not None
        and not getattr(weight.quant_state, "packing_format_for_cpu", False)
    )


def _forward(kind: type[nn.Module], self: Any, x: Tensor) -> Tensor:
    dtype = getattr(self, "compute_dtype", None) or x.dtype
    # Where nothing is learnt and a token comes alone, bitsandbytes multiplies by the codes themselves.
    learns = torch.is_grad_enabled() and not torch.compiler.is_compiling() and x.dim() > 1 and x.numel()
    held = _stored(self, dtype) if learns else None
    if held is None:
        out: Tensor = kind.forward(self, x)
        return out
    return product(x.to(dtype), held, None if self.bias is None else self.bias.to(dtype)).to(x.dtype)


def product(x: Tensor, held: FewBits, bias: Tensor | None) -> Tensor:
    """x Wᵀ + bias, (..., O), whose gradient goes to x."""
    run: Any = _Product.apply
    out: Tensor = run(x, held, bias)
    return out


def _dequantised(codes: Tensor, state: Any, dtype: torch.dtype, buffer: Buffer) -> Tensor:
    """(O, I), in the buffer where the layer's own dtype is the wanted one."""
    functional: Any = importlib.import_module("bitsandbytes.functional")
    out = buffer.of(state.shape, state.dtype, codes.device)
    functional.dequantize_4bit(codes, state, out=out)
    return out.to(dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, held: FewBits, bias: Tensor | None) -> Tensor:
        ctx.held = held
        return held.product(x.flatten(0, -2), bias, {}).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        with ctx.held.read(g.dtype) as weight:
            return g @ weight, None, None
