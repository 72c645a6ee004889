"""The packages that some features need, and how to get those that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from .found import Device

_ALL, _GPU, _FLASH = "", "a GPU", "an Ampere GPU or newer"
_KNOWN = (
    ("triton", "the loss in one kernel", "pip install triton", _GPU),
    ("liger-kernel", "norms, gated products and rotary positions in one pass", "pip install 'afina[gpu]'", _GPU),
    ("flash-attn", "attention without padding", "pip install flash-attn", _FLASH),
    ("bitsandbytes", "model.quantize: nf4, fp4, int8", "pip install 'afina[quant]'", _ALL),
    ("torchao", "model.quantize: int8wo, int4wo", "pip install 'afina[quant]'", _ALL),
    ("trl", "tasks on preferences", "pip install 'afina[train]'", _ALL),
    ("soundfile", "tasks on sounds", "pip install 'afina[audio]'", _ALL),
    ("optuna", "compare --tune", "pip install 'afina[sweep]'", _ALL),
)


@dataclass(frozen=True)
class Package:
    """A package.

    Attributes:
        version: the installed one; None where it is missing.
        serves: what for.
        install: the command that brings it.
        needs: the device that it is for; empty where it serves on all.
        useful: whether such a device is there.
    """

    name: str
    version: str | None
    serves: str
    install: str
    needs: str
    useful: bool


def packages(there: Sequence[Device]) -> list[Package]:
    """What is installed and what could be, for these devices."""
    gpus = [d for d in there if d.kind == "cuda"]
    useful = {_ALL: True, _GPU: bool(gpus), _FLASH: any((d.capability or (0, 0)) >= (8, 0) for d in gpus)}
    return [Package(name, _version(name), serves, install, needs, useful[needs])
            for name, serves, install, needs in _KNOWN]  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
