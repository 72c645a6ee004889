"""Which dtype the frozen base should have on this machine: bfloat16 where a short measurement shows that it pays."""

from __future__ import annotations

import time
from dataclasses import dataclass

ENOUGH = 1.3
"""bfloat16 has to be this many times as fast as float32: it keeps 8 bits of every number."""


@dataclass(frozen=True)
class Choice:
    """A dtype, and why."""

    dtype: str
    reason: str


def choose_dtype(size: int = 1024, rounds: int = 5) -> Choice:
    """Measure products of `size` x `size` weights with `size` / 2 tokens, forward and input gradient, in both dtypes.

    Adapters and the optimizer stay in float32 either way.
    """
    import torch

    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Choice("float32", f"{torch.cuda.get_device_name()} has no bfloat16 instructions")
    seconds = {d: product_seconds(d, device, size, rounds) for d in (torch.float32, torch.bfloat16)}
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    told = f"matrix products in bfloat16 are {gain:.1f} times as fast as in float32 here"
    return Choice("bfloat16" if gain >= ENOUGH else "float32", told)


def product_seconds(dtype: object, device: object, size: int, rounds: int) -> float:
    """Seconds of the two products of `choose_dtype` in one dtype, the best of several rounds."""
    import torch

    weight = torch.randn(size, size, device=device, dtype=dtype)  # type: ignore[call-overload]
    x = torch.randn(size // 2, size, device=device, dtype=dtype)  # type: ignore[call-overload]
    best = float("inf")
    for _ in range(rounds + 1):
        start = time.perf_counter()
        torch.mm(torch.mm(x, weight.T), weight)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
