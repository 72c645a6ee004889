"""Which dtype the frozen base should have on a device: a GPU's own 16 bits; on a processor that computes in bfloat16
that, where a short measurement shows that it pays, and float32 where it would be emulated."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import MappingProxyType

from ..devices.found import Device
from ..devices.memory_use import synchronize
from ..devices.place import place

ENOUGH = 1.3
"""bfloat16 has to be this many times as fast as float32: it keeps 8 bits of every number."""
PATIENCE = 1.0
"""Seconds after which no further round is measured: an emulated bfloat16 takes seconds for one."""

_REASONS = MappingProxyType(
    {
        "bfloat16": "{} computes in it",
        "float16": "{} has no instructions for bfloat16; the loss is scaled, so that small gradients stay",
        "float32": "{} has no instructions for bfloat16",
    }
)


@dataclass(frozen=True)
class Choice:
    """A dtype, and why."""

    dtype: str
    reason: str


def choose_dtype(on: Device | None = None, size: int = 1024, rounds: int = 5) -> Choice:
    """The dtype for a device. Adapters and the optimizer stay in float32 whatever it is.

    On a processor with instructions for bfloat16, and where a device does not say what it can do, products of `size` x
    `size` weights with `size` / 2 tokens, forward and input gradient, are measured in both dtypes.

    Args:
        on: the device; the one that this machine would use if None.
    """
    import torch

    on = on or place()
    if on.bfloat16 is False or (on.bfloat16 and on.kind != "cpu"):
        return Choice(on.half, _REASONS[on.half].format(on.title))
    device = torch.device(on.name)
    seconds = {d: product_seconds(d, device, size, rounds) for d in (torch.float32, torch.bfloat16)}
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    told = f"matrix products in bfloat16 are {gain:.1f} times as fast as in float32 here"
    return Choice("bfloat16" if gain >= ENOUGH else "float32", told)


def product_seconds(dtype: object, device: object, size: int, rounds: int) -> float:
    """Seconds of the two products of `choose_dtype` in one dtype, the best of several rounds."""
    import torch

    weight = torch.randn(size, size, device=device, dtype=dtype)  # type: ignore[call-overload]
    x = torch.randn(size // 2, size, device=device, dtype=dtype)  # type: ignore[call-overload]
    best, began = float("inf"), time.perf_counter()
    for _ in range(rounds + 1):
        start = time.perf_counter()
        torch.mm(torch.mm(x, weight.T), weight)
        synchronize(device)
        end = time.perf_counter()
        best = min(best, end - start)
        if end - began > PATIENCE:
            break
    return best
