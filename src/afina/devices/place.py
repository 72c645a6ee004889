"""On which device a model runs, in what and with whose attention: decided here for all commands."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Sequence

from ..errors import RecipeError
from .found import SCALING, Device, found, processor
from .ranks import spread

NAMES = r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$"
FLASH, TORCH, VARLEN = "flash_attention_2", "sdpa", "afina_varlen"
"""transformers' names of the attention of the package flash-attn, of torch's own, and of ours by rows' lengths."""
_FLASH_FROM = (8, 0)


def place(wanted: str = "auto", *, needs: int | None = None, there: Sequence[Device] | None = None) -> Device:
    """The device for `wanted`: auto, cpu, cuda, cuda:N, mps, xpu or xpu:N.

    Args:
        needs: bytes that have to be free where the choice is open; the processor is taken where no other device has
            them.
        there: the devices to choose from; this machine's if None.

    Raises:
        RecipeError: there is no such device here; names those that there are.
    """
    if not re.match(NAMES, wanted):
        raise RecipeError("no such device", where="device", got=wanted, expected="auto, cpu, cuda, cuda:N, mps or xpu")
    if there is None:
        there = (processor(),) if wanted == "cpu" else found()
    if wanted == "auto":
        fit = [d for d in there if needs is None or d.free is None or d.free >= needs]
        return _own_share([d for d in fit if d.kind != "cpu"]) or there[-1]
    of_kind = [d for d in there if wanted in (d.kind, d.name)]
    if chosen := _own_share(of_kind):
        return chosen
    listed = ", ".join(f"{d.name} ({d.title})" for d in there)
    raise RecipeError("this device is not there", where="device", got=wanted, expected=listed, fix=_fix(wanted))


def apart(wanted: str, count: int, where: str) -> list[str]:
    """A device for each of so many processes: one of their own, or the processor for all.

    Args:
        where: what asks for them, for the error.

    Raises:
        RecipeError: there are fewer.
    """
    kind = place(wanted).kind
    there = [d.name for d in found() if d.kind == kind and wanted in ("auto", d.kind, d.name)]
    if kind == "cpu":
        return ["cpu"] * count
    if len(there) < count:
        raise RecipeError("more processes than devices", where=where, got=count,
                          expected=f"at most {len(there)}: {', '.join(there)}",
                          fix="--device cpu runs any number")  # fmt: skip
    return there[:count]


def _own_share(devices: list[Device]) -> Device | None:
    """The first one; of several processes started together each takes its own."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return devices[rank if rank < len(devices) else 0] if devices else None


def _fix(wanted: str) -> str:
    import torch

    if wanted.startswith("cuda") and torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return "this torch is built without CUDA; install one with it (pytorch.org), or use device=auto"
    return "use device=auto, or one of these"


def is_sharded() -> bool:
    """Whether the model is to be spread over several devices by FSDP or DeepSpeed, which then place it."""
    return spread() or any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))


def scales_loss(device: Device, dtype: str) -> bool:
    """Whether a model of that dtype trains with a scaled loss: in float16 small gradients become zero."""
    return dtype == "float16" and device.kind in SCALING


def attention(device: Device, dtype: str, has: Callable[[str], bool] | None = None) -> str:
    """Whose attention suits a device and a dtype, in transformers' words.

    Args:
        has: whether a package is installed.
    """
    return FLASH if _flashes(device, dtype) and (has or _has)("flash_attn") else TORCH


def packed_attention(device: Device, dtype: str, has: Callable[[str], bool] | None = None) -> str:
    """Whose attention suits rows that lie end to end: flash-attn's, torch's by lengths, or that of the package kernels,
    which transformers takes from the hub in flash-attn's place.

    Args:
        has: whether a package or module is installed.
    """
    has = has or _has
    if not _flashes(device, dtype):
        return TORCH
    if not has("flash_attn") and has("torch.nn.attention.varlen"):
        return VARLEN
    return FLASH if has("flash_attn") or has("kernels") else TORCH


def _flashes(device: Device, dtype: str) -> bool:
    able = device.kind == "cuda" and device.capability is not None and device.capability >= _FLASH_FROM
    return able and dtype in ("float16", "bfloat16")


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def told(device: Device, there: Sequence[Device] = ()) -> str:
    """The device in words.

    Args:
        there: all devices; others of the same kind are told to stand idle.
    """
    gib = [f"{n / 2**30:.1f} GiB {word}" for n, word in ((device.free, "free"), (device.total, "in all")) if n]
    idle = sum(d.kind == device.kind for d in there) - 1
    more = f"; {idle} more of its kind {'is' if idle == 1 else 'are'} not used" if idle > 0 else ""
    return f"{device.name} ({', '.join([device.title, *gib])}){more}"
