"""Peak memory of a phase: the process's resident memory, or what torch's allocator held on the GPU."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from ..devices.memory_use import peak_bytes, reset_peak, resident_kib

_RESET = Path("/proc/self/clear_refs")
_LIBRARIES = ("transformers.trainer", "datasets", "torch.utils.tensorboard")
"""What a trainer loads (100 MiB), which is no method's."""


class Peak:
    """The peak above the loaded base, from `start` on."""

    def __init__(self, base: Any) -> None:
        # Weights come into memory where they are first read; unread ones would count as the training's own.
        for name in _LIBRARIES:
            with suppress(ImportError):
                import_module(name)
        self.device = next(base.parameters()).device
        self.base_bytes = sum(p.numel() * p.element_size() for p in base.parameters())
        for parameter in base.parameters():
            parameter.detach().sum()
        self.resident = resident_kib()

    def start(self) -> None:
        """Forget the peak so far (loading has one of its own)."""
        reset_peak(self.device)
        if _RESET.exists():
            _RESET.write_text("5", encoding="ascii")

    def above_base_mb(self) -> float:
        """MiB that the phase took at its peak, over and above the base's weights."""
        if self.device.type != "cpu":
            return float(round((peak_bytes(self.device) - self.base_bytes) / 2**20, 1))
        return float(round(max(0.0, resident_kib("VmHWM") - self.resident) / 2**10, 1))
