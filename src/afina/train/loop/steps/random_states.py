"""The random states of a process: kept, gone back to, and left by measuring as they were."""

from __future__ import annotations

import random
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor


def measure_apart(trainer: Any) -> None:
    """Let the trainer's measuring draw from states of its own.

    Going through held-out rows draws a seed, and some tasks draw answers: how often a run is measured would change
    what its training draws next.
    """
    evaluate = trainer.evaluate

    @wraps(evaluate)
    def apart(*args: Any, **how: Any) -> Any:
        before = random_states()
        try:
            return evaluate(*args, **how)
        finally:
            set_random_states(before)

    trainer.evaluate = apart


def random_states() -> tuple[Any, ...]:
    """Those of torch (of the processor and of all devices), numpy and Python."""
    return torch.get_rng_state(), _device_states(), np.random.get_state(), random.getstate()


def set_random_states(states: tuple[Any, ...]) -> None:
    """Go back to states as `random_states` gives them."""
    own, devices, arrays, plain = states
    torch.set_rng_state(own)
    for number, state in enumerate(devices):
        _accelerator().set_rng_state(state, number) if len(devices) > 1 else _accelerator().set_rng_state(state)
    np.random.set_state(arrays)
    random.setstate(plain)


def drew(since: tuple[Any, ...]) -> bool:
    """Whether torch has drawn random numbers, on the processor or on a device, since these states."""
    before, now = [since[0], *since[1]], [torch.get_rng_state(), *_device_states()]
    return not all(map(torch.equal, before, now))


def _accelerator() -> Any:
    """Torch's module for the devices that it has beside the processor; None where it has none."""
    return torch.get_device_module() if torch.accelerator.is_available() else None


def _device_states() -> list[Tensor]:
    module = _accelerator()
    if module is None:
        return []
    count = torch.accelerator.device_count()
    return [module.get_rng_state(n) for n in range(count)] if count > 1 else [module.get_rng_state()]
