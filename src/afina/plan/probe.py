"""How fast a device is: products at three sizes, memory, and what it costs to start an operation; kept in the cache.

Seconds are the process's own where the device is the processor and one thread works, so that others on the machine do
not count.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..cache import cache_dir
from ..devices.found import Device
from ..devices.memory_use import synchronize
from ..version import __version__
from .work import FAR, Product, Work

SIZES = ((64, 16, 512), (256, 512, 512), (512, 1024, 2048))
"""Rows, inner and columns of the products: as an adapter's, a small layer's and a large one's."""
_ROUNDS, _SECONDS = 5, 0.25
_NEAR, _FAR = 2**19, 2**22
_LAYERS, _CALLS = 64, 5
"""Small layers, and operations of one: a product forward, two and a sum backward, and adding a gradient."""


@dataclass(frozen=True)
class Speed:
    """Of one device in one dtype.

    Attributes:
        flops: floating-point operations a second in products of `SIZES`.
        near, far: bytes a second that an operation reads and writes, of 2 MiB, and of tensors that no cache holds.
        start: seconds of an operation on a few numbers, with its part of the backward pass.
        measured: False where the figures are published ones.
        overlaps: whether operations start while others run, as on a GPU, so that the longer of both counts.
    """

    flops: tuple[float, ...]
    near: float
    far: float
    start: float
    measured: bool = True
    overlaps: bool = False

    def product(self, product: Product) -> float:
        """Seconds of a product; between sizes the speed goes with the logarithm of the operations. With few rows it
        takes what reading the weight takes."""
        known = [2.0 * a * b * c for a, b, c in SIZES]
        one = max(product.flops / product.matrices, 1.0)
        at = _between(math.log(one), [math.log(k) for k in known], list(self.flops))
        read = product.matrices * product.inner * product.columns * product.dtype.itemsize
        return max(product.flops / at, read / (self.far if read >= FAR else self.near))

    def step(self, work: Work) -> float:
        """Seconds of a step."""
        products = sum(times * self.product(one) for one, times in work.products.items())
        runs, starts = products + work.near / self.near + work.far / self.far, work.calls * self.start
        return max(runs, starts) if self.overlaps else runs + starts


def _between(x: float, places: list[float], values: list[float]) -> float:
    if x <= places[0]:
        return values[0]
    for (a, b), (u, v) in zip(pairwise(places), pairwise(values), strict=True):
        if x <= b:
            return u + (v - u) * (x - a) / (b - a)
    return values[-1]


def speed_of(device: Device, dtype: torch.dtype, *, again: bool = False) -> Speed:
    """The device's speed, measured once for a version of torch, a number of threads and a dtype.

    Args:
        again: measure anew.
    """
    name = f"{device.title}, {dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}, {__version__}"
    file = cache_dir() / "speeds.json"
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if name in known and not again:
        return Speed(**{**known[name], "flops": tuple(known[name]["flops"])})
    found = measure(torch.device(device.name), dtype)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps({**known, name: asdict(found)}, indent=1), encoding="utf-8")
        part.replace(file)
    except OSError:
        pass  # it is measured again next time
    return found


def measure(device: torch.device, dtype: torch.dtype) -> Speed:
    """Measure for about a second."""
    from ..kernels.cpu import products

    multiply: Callable[..., Any] = products.linear if device.type == "cpu" else torch.nn.functional.linear
    flops = []
    for rows, inner, columns in SIZES:
        x = torch.randn(rows, inner, device=device).to(dtype)
        weight = torch.randn(columns, inner, device=device).to(dtype)
        seconds = _best(lambda x=x, w=weight: multiply(x, w), device)  # type: ignore[misc]
        flops.append(2 * rows * inner * columns / seconds)
    near, far = (_bandwidth(count, dtype, device) for count in (_NEAR, _FAR))
    return Speed(tuple(flops), near, far, _start(device), overlaps=device.type != "cpu")


def _bandwidth(count: int, dtype: torch.dtype, device: torch.device) -> float:
    """Of a gate and a product, as steps are full of."""
    a = torch.ones(count, device=device).to(dtype)
    out, silu = torch.empty_like(a), torch.ops.aten.silu.out
    return 5 * count * a.element_size() / _best(lambda: torch.mul(silu(a, out=out), a, out=out), device)


def _start(device: torch.device) -> float:
    """Seconds of an operation among small layers, forward and backward, with the Python around it."""
    layers = nn.Sequential(*(nn.Linear(8, 8, device=device) for _ in range(_LAYERS)))
    x = torch.ones(1, 8, device=device)
    return _best(lambda: layers(x).sum().backward(), device) / (_LAYERS * _CALLS)


def _best(run: Callable[[], Any], device: torch.device) -> float:
    """The shortest of some rounds after one that warms up, each long enough for the clock."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    times: list[float] = []
    repeats, began = 1, time.perf_counter()
    run()
    while len(times) < _ROUNDS and (not times or time.perf_counter() - began < _SECONDS):
        start = clock()
        for _ in range(repeats):
            run()
        synchronize(device)
        seconds = (clock() - start) / repeats
        if seconds * repeats < 2e-3 and repeats < 2**12:
            repeats *= 4
            continue
        times.append(seconds)
    return min(times)
