"""How long a step takes on this machine: the products that it needs, at the speed at which the machine makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .memory import Numberless
from .precision import product_seconds

_SIZE = 1024


def step_flops(
    build: Callable[[], nn.Module],
    inputs: Mapping[str, Tensor],
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
) -> int:
    """Floating-point operations of the products in a training step; arguments as of `memory.step_memory`.

    Raises:
        RuntimeError: the model asks for a tensor's numbers on its way.
    """
    with torch.device("meta"):
        model = build()
        batch = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in inputs.items()}
        with FlopCounterMode(display=False) as counter, Numberless():  # type: ignore[no-untyped-call]
            loss(model, batch).backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def flops_per_second(dtype: torch.dtype) -> float:
    """What this machine reaches in large products of that dtype, measured for a moment."""
    # A torch that is built for a GPU names it where there is none.
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = there or torch.device("cpu")
    return 2 * 2 * _SIZE * _SIZE * (_SIZE // 2) / product_seconds(dtype, device, _SIZE, rounds=5)
