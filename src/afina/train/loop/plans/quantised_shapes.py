"""A base in few bits, by shapes alone: what its layers make of a weight while they run, and what dtype the rest has.

The packed weights' own classes cannot be made without data; their layers are stood for by ones that have the weight's
shape and allocate what dequantising it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...recipe.sections import ModelSection

BITS: Mapping[str, float] = MappingProxyType({"nf4": 4.13, "fp4": 4.13, "int8": 8.0, "int8wo": 8.0, "int4wo": 5.0})
"""Bits that a weight takes with its scales."""
_ANY_INPUT = ("nf4", "fp4", "int8")
"""Storages of layers that take inputs of any dtype: bitsandbytes'."""


class _Dequantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        wide = torch.empty_like(weight)
        return F.linear(x.to(wide.dtype), wide, None if bias is None else bias.to(wide.dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        wide = torch.empty_like(weight)
        return (g.to(wide.dtype) @ wide).to(g.dtype), None, None


class FewBits(nn.Linear):
    """A layer whose weight is dequantised for each product."""

    def forward(self, x: Tensor) -> Tensor:
        """The product. x: (..., in)."""
        run: Any = _Dequantised.apply
        out: Tensor = run(x, self.weight, self.bias)
        return out


def quantised(section: ModelSection, base: Any) -> Any:
    """The base in the section's storage: its linear layers but the head stand for packed ones. What has 16 bits beside
    those of bitsandbytes goes to float32; torchao's take inputs of their own dtype only."""
    if section.quantize not in BITS:
        return base
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    for module in base.modules():
        if type(module) is nn.Linear and module is not head:
            module.__class__ = FewBits
    for module in base.modules() if section.quantize in _ANY_INPUT else ():
        for name, parameter in module._parameters.items() if not isinstance(module, FewBits) else ():
            if parameter is not None and parameter.dtype.itemsize == 2:
                module._parameters[name] = nn.Parameter(parameter.detach().float(), requires_grad=False)
    if head is not None and getattr(base.config, "tie_word_embeddings", False):
        base.tie_weights()
    return base.requires_grad_(False)


def stored_bytes(section: ModelSection, weight: Tensor, gpu: bool) -> int:
    """Bytes of a packed weight.

    On a processor torchao packs what is mapped from a file, whose pages stay in memory with those of the embeddings
    beside; what lies beside bitsandbytes' is copied to float32, and the file is let go.
    """
    packed = round(weight.numel() * BITS[section.quantize] / 8)
    return packed if gpu or section.quantize in _ANY_INPUT else packed + weight.numel() * weight.element_size()
