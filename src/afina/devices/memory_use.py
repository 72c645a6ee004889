"""What memory a device has free, and what this process holds there: a GPU's own, or for the processor the machine's."""

from __future__ import annotations

import ctypes
import functools
import resource
import sys
from pathlib import Path
from typing import Any

_ARENA_MAX = -8  # of malloc.h
_STATUS, _MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")


def resident_kib(entry: str = "VmRSS") -> float:
    """Resident memory, or with "VmHWM" its peak; where there is no /proc, the peak of the process's life."""
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{entry}:"):
                return float(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**10 if sys.platform == "darwin" else float(peak)


def total_bytes() -> int | None:
    """The machine's memory; None where it does not say."""
    return _meminfo("MemTotal")


def used_bytes(device: Any = "cpu") -> int:
    """What torch holds on a GPU; on the processor the process's resident memory."""
    kind, module = _of(device)
    if kind == "mps":
        return int(module.driver_allocated_memory())
    return int(resident_kib() * 1024) if module is None else int(module.memory_reserved(device))


def free_bytes(device: Any = "cpu") -> int | None:
    """What a GPU, or for the processor the machine, has free for this process; None where it does not say.

    What torch holds on a GPU without using it is free for it.
    """
    kind, module = _of(device)
    if kind == "mps":
        return int(module.recommended_max_memory()) - int(module.driver_allocated_memory())
    if module is None:
        return _meminfo("MemAvailable") if kind == "cpu" else None
    return int(module.mem_get_info(device)[0]) + int(module.memory_reserved(device) - module.memory_allocated(device))


def reset_peak(device: Any = "cpu") -> None:
    """Let the peak of a GPU's memory begin anew."""
    kind, module = _of(device)
    if module is not None and kind != "mps":
        module.reset_peak_memory_stats(device)


def peak_bytes(device: Any = "cpu") -> int:
    """The most that tensors took on a GPU; on the processor, and where a device keeps no record, the process's peak
    resident memory."""
    kind, module = _of(device)
    if module is not None and kind != "mps":
        return int(module.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 2**10)


def synchronize(device: Any) -> None:
    """Wait until a device has done what it was told."""
    _, module = _of(device)
    if module is not None:
        module.synchronize()


def trim() -> None:
    """Give freed memory back to the system: what heaps keep, of all threads, and torch's cache."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        return


def one_heap() -> None:
    """Let threads that begin from now on take memory from the heap that is there, not from one of their own each, which
    comes in pieces of 64 MiB and whose holes no other thread fills. It holds for the rest of the process, and is for
    threads of which one works at a time; GNU's C library only."""
    try:
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)
    except (AttributeError, OSError, TypeError):
        return


@functools.cache
def _thread_buffers() -> Any:
    """MKL's function, under the name that it has inside of torch's library."""
    import torch

    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).mkl_serv_thread_free_buffers
    except (AttributeError, OSError):
        return None


def free_thread_buffers() -> None:
    """Give back what MKL, where torch has it, keeps for the next product of the thread that calls."""
    if (free := _thread_buffers()) is not None:
        free()


def _of(device: Any) -> tuple[str, Any]:
    """The device's kind, and torch's module for it where it has one with a memory of its own."""
    import torch

    kind = torch.device(device).type
    return kind, {"cuda": torch.cuda, "xpu": getattr(torch, "xpu", None), "mps": torch.mps}.get(kind)


def _meminfo(entry: str) -> int | None:
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    return None
