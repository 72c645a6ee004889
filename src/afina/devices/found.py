"""What devices there are, as torch tells; each with what decides how a model runs on it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import memory_use as memory

_CPUINFO = Path("/proc/cpuinfo")
_NVIDIA = Path("/proc/driver/nvidia/version")
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Of x86 and ARM processors."""


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        name: as torch has it: "cpu", "cuda:0", "mps", "xpu:0".
        title: what its maker calls it.
        total: bytes of its memory; None where it does not say.
        free: bytes that are free in it; None where it does not say.
        bfloat16: whether it has instructions for bfloat16, or emulates them; None where it does not say.
        capability: version of what a CUDA device can do; (8, 0) is Ampere.
    """

    name: str
    title: str
    total: int | None = None
    free: int | None = None
    bfloat16: bool | None = None
    capability: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """The name without its number."""
        return self.name.partition(":")[0]

    @property
    def half(self) -> str:
        """The dtype with the fewest bits that it computes in by itself."""
        if self.bfloat16 is not False:
            return "bfloat16"
        return "float16" if self.kind in SCALING else "float32"


SCALING = ("cuda", "xpu")
"""Kinds on which float16 trains with a scaled loss; without one its gradients vanish."""


def found() -> tuple[Device, ...]:
    """All devices, the processor last."""
    return (*_cuda(), *_xpu(), *_mps(), processor())


def out_of_reach() -> str:
    """What is in this machine and cannot be used by this torch; empty where nothing is known of."""
    import torch

    if not _NVIDIA.exists() or torch.cuda.is_available():
        return ""
    built = "is built without CUDA: install one with it (pytorch.org)"
    return f"an NVIDIA driver is here, but torch {built if torch.version.cuda is None else 'finds no GPU through it'}"


def _cuda() -> Iterator[Device]:
    import torch

    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name, has = f"cuda:{number}", torch.cuda.get_device_properties(number)
        with torch.cuda.device(number):
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        capability = torch.cuda.get_device_capability(number)
        yield Device(name, has.name, has.total_memory, memory.free_bytes(name), bfloat16, capability)


def _xpu() -> Iterator[Device]:
    import torch

    xpu: Any = getattr(torch, "xpu", None)
    for number in range(xpu.device_count() if xpu is not None and xpu.is_available() else 0):
        name, has = f"xpu:{number}", xpu.get_device_properties(number)
        yield Device(name, has.name, has.total_memory, memory.free_bytes(name), xpu.is_bf16_supported())


def _mps() -> Iterator[Device]:
    import torch

    mps: Any = torch.backends.mps
    if mps.is_available():
        total = int(torch.mps.recommended_max_memory())
        yield Device("mps", platform.processor() or "Apple GPU", total, memory.free_bytes("mps"),
                     mps.is_macos_or_newer(14, 0))  # fmt: skip


def processor() -> Device:
    """The processor with the machine's main memory."""
    title = next(iter(_cpuinfo("model name")), "") or platform.processor() or platform.machine()
    flags = {flag for line in _cpuinfo("flags", "Features") for flag in line.split()}
    bfloat16 = bool(flags & _BFLOAT16_FLAGS) if flags else None
    return Device("cpu", title, memory.total_bytes(), memory.free_bytes("cpu"), bfloat16)


def _cpuinfo(*keys: str) -> list[str]:
    """What the first processor says under these keys."""
    if not sys.platform.startswith("linux") or not _CPUINFO.is_file():
        return []
    out = []
    for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            out.append(value.strip())
    return out
