"""Decoder layers compiled by `torch.compile`, where the steps to come pay for the time that compiling takes.

What is between the products (norms, rotary embedding, activations, residuals) then runs in a few passes over memory.
Only training passes with gradients are compiled; evaluation and generation keep the plain code.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import nn

from ..core.layers.sharded import units
from ..core.layers.tensor_parallel import is_cut
from ..errors import AfinaWarning
from .swap import swap_forward

PAYS = 2e13
"""Steps x tokens x parameters of the compiled layers from which compiling pays: docs/speed.md has the measurement."""


def compile_layers(base: Any, steps: int, tokens: int) -> str:
    """Compile a transformers model's repeated layers if `steps` of `tokens` tokens pay for it; says what it did."""
    names = set(getattr(base, "_no_split_modules", None) or ())
    layers = [m for m in base.modules() if type(m).__name__ in names]
    if not steps or not layers:
        return f"compiled layers: off, because {'the model has none' if steps else 'the number of steps is not known'}"
    if any(True for _ in units(base)) or is_cut(base):
        return "compiled layers: off, because their weights are spread over processes"
    if hasattr(type(layers[0]), "plain_class"):
        return "compiled layers: on already"
    work = tokens * sum(p.numel() for layer in layers for p in layer.parameters())
    if steps * work < PAYS:
        return f"compiled layers: off, because they pay from about {PAYS / max(work, 1):,.0f} steps on"
    if (fault := _fault(layers[0])) is not None:
        return f"compiled layers: off, because nothing can be compiled here ({fault})"
    for layer in layers:
        swap_forward(layer, _forward)
    return f"compiled layers: on, {len(layers)} of them; the first steps take longer"


def _fault(layer: nn.Module) -> str | None:
    """Why the compiler does not work on this machine; None where it does."""
    device = next(layer.parameters()).device
    try:
        torch.compile(_small)(torch.ones(2, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        return str(error).strip().splitlines()[0][:100]
    return None


def _small(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


@functools.lru_cache(maxsize=64)
def _compiled(kind: Any) -> Any:
    # One form for all lengths: with one a length and then a general one, a resumed run would round otherwise.
    return torch.compile(kind.forward, dynamic=True)


def _forward(kind: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    apart = not self.training or not torch.is_grad_enabled() or getattr(self, "gradient_checkpointing", False)
    if apart or getattr(self, "not_compilable", False):
        return kind.forward(self, *args, **kwargs)
    from torch._dynamo.exc import TorchDynamoException

    try:
        return _compiled(kind)(self, *args, **kwargs)
    except TorchDynamoException as error:
        self.not_compilable = True
        fault = str(error).strip().splitlines()[0][:100]
        warnings.warn(f"a layer cannot be compiled and runs as it is ({fault})", AfinaWarning, stacklevel=2)
        return kind.forward(self, *args, **kwargs)
