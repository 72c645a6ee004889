"""How long operations take on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

_ROUNDS = 5


def milliseconds(runs: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """The least time of each on the device, of five in turn after one that is not counted."""
    if device.type != "cuda":
        return _by_the_host(runs)
    gpu: Any = torch.cuda
    times: list[list[float]] = [[] for _ in runs]
    with gpu.device(device):
        for _ in range(_ROUNDS + 1):
            for run, taken in zip(runs, times, strict=True):
                begin, end = (gpu.Event(enable_timing=True) for _ in range(2))
                begin.record()
                run()
                end.record()
                end.synchronize()
                taken.append(begin.elapsed_time(end))
    return [min(taken[1:]) for taken in times]


def _by_the_host(runs: Sequence[Callable[[], Any]]) -> list[float]:
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(_ROUNDS + 1):
        for run, taken in zip(runs, times, strict=True):
            at = time.perf_counter()
            run()
            taken.append(1e3 * (time.perf_counter() - at))
    return [min(taken[1:]) for taken in times]
