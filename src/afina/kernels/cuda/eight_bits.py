"""Frozen layers in bitsandbytes' 8 bits: their inputs are rounded once for all that read the same.

    forward  y = s_x s_W / 127² · (q(x) q(W)ᵀ) + x_o W_oᵀ + b,    backward  dx = g (s_W q(W) / 127)

LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339): rows of x and of W are rounded to 8 bits; the columns o of x that
have a number above the threshold are left out of that and multiplied as they are. The backward pass multiplies by the
dequantised weight, for which bitsandbytes takes a new tensor each time; it also keeps x until then, which is not
needed.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .few_bits import Buffer, Kind


class Stored8(NamedTuple):
    """A frozen weight (O, I) as its codes and a scale for each output, and where it is dequantised to; whether inputs
    are rounded too."""

    codes: Tensor
    scale: Tensor
    threshold: float
    buffer: Buffer
    rounds: bool = True

    @property
    def kind(self) -> Kind:
        """How it is stored."""
        return ("int8", self.threshold) if self.rounds else ("int8, inputs as they are", 0.0)

    @contextmanager
    def read(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The weight, for the products that are started inside; to the bit that of bitsandbytes' backward pass."""
        with self.buffer.lock:
            out = self.buffer.of(self.codes.shape, dtype, self.codes.device)
            yield torch.mul(self.codes, self.scale[:, None] * (1 / 127), out=out)

    def product(self, x_NI: Tensor, bias: Tensor | None, made: dict[Any, Any]) -> Tensor:
        """x Wᵀ + bias, (N, O), in 8 bits where inputs are rounded too; nobody else has it.

        Args:
            made: keeps the rounded input for the other layers that read it.
        """
        if not self.rounds:
            with self.read(x_NI.dtype) as weight:
                return F.linear(x_NI, weight, bias)
        if self.threshold not in made:
            made[self.threshold] = _ops().int8_vectorwise_quant(x_NI.to(torch.float16).contiguous(), self.threshold)
        codes, scale, odd = made[self.threshold]
        if self.threshold > 0:
            out: Tensor = _ops().int8_mixed_scaled_mm(x_NI, codes, self.codes, scale, self.scale, odd, bias)[0]
            return out
        out = _ops().int8_scaled_mm(codes, self.codes, scale, self.scale, bias=bias, dtype=x_NI.dtype)
        return out


def in_8_bits(weight: Tensor, kind: Kind, buffer: Buffer) -> Stored8:
    """A weight (O, I), stored so."""
    codes, scale, _ = _ops().int8_vectorwise_quant(weight.to(torch.float16), 0.0)
    return Stored8(codes, scale, kind[1], buffer, rounds=kind[0] == "int8")


def stored8(module: Any, buffer: Buffer) -> Stored8 | None:
    """A layer's weight, where it is in 8 bits now."""
    held = module.weight if getattr(module.weight, "CB", None) is not None else module.state
    if module.weight.dtype != torch.int8 or held.CB is None or held.SCB is None:
        return None
    return Stored8(held.CB, held.SCB, float(module.state.threshold), buffer)


def is_in_8_bits(module: Any) -> bool:
    """Whether a layer is one of those."""
    own = type(module).__name__ == "Linear8bitLt" and not hasattr(type(module), "plain_class")
    return own and not module.state.has_fp16_weights and module.weight.dtype == torch.int8


def _ops() -> Any:
    import bitsandbytes  # noqa: F401  which registers its operations

    return torch.ops.bitsandbytes
