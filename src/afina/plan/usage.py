"""What memory this process uses, and what is free."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS, _MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")


def resident_kib(entry: str = "VmRSS") -> float:
    """Resident memory, or with "VmHWM" its peak; where there is no /proc, the peak of the process's life."""
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{entry}:"):
                return float(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**10 if sys.platform == "darwin" else float(peak)


def used_bytes() -> int:
    """What torch holds on the GPU; without one, the process's resident memory."""
    import torch

    return int(torch.cuda.memory_reserved() if torch.cuda.is_available() else resident_kib() * 1024)


def free_bytes() -> int | None:
    """What the GPU, or else the machine, has free; None where it does not say."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def told_bytes(count: float) -> str:
    """Bytes in words: 41 KiB, 312 MiB, 1.9 GiB."""
    mib = count / 2**20
    if mib < 1:
        return f"{count / 1024:.0f} KiB"
    return f"{mib / 1024:.1f} GiB" if mib >= 1000 else f"{mib:.0f} MiB"


def told_seconds(seconds: float) -> str:
    """A time in words: 9 s, 4 min, 1 h 05 min."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
