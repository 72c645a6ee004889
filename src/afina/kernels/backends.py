"""Passes over rows, by whatever serves a tensor: C++ on processors, liger-kernel on GPUs; one interface for both.

`norm`, `gated` and `rotary` call these and know neither. Shapes: D width, B batch, H heads, T tokens.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from .cpu.native import rowwise as cpu
from .cuda import rowwise as cuda

Operation = Literal["norms", "feed-forward", "rotary positions"]
OPERATIONS: tuple[Operation, ...] = ("norms", "feed-forward", "rotary positions")


class Rows(Protocol):
    """What a backend has."""

    OVERWRITES: bool
    """Whether `gated_backward` puts the gradients in the place of its inputs."""

    def fits(self, *tensors: Tensor) -> bool:
        """Whether it is there and made for such tensors."""

    def is_plain(self, x: Tensor) -> bool:
        """Whether a tensor lies on its device and is no subclass."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(weight · x / rms(x), what the backward pass needs). x: (..., D). weight: (D,)."""

    def rms_norm_backward(
        self, g: Tensor, x: Tensor, weight: Tensor, kept: Tensor, wants_weight: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of x and, if it is wanted, of the weight."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) · up."""

    def gated_backward(self, g: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of gate and up."""

    def turn(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> tuple[Tensor, Tensor]:
        """Rotary positions, or the gradients of q and k. q: (B, H, T, D). k: (B, K, T, D). cos, sin: (B or 1, T, D)."""


def on(device: torch.device) -> Rows:
    """What serves a device; whether it serves a tensor there is what `fits` says."""
    return cuda if device.type == "cuda" else cpu


def fits(operation: Operation, *tensors: Tensor) -> bool:
    """Whether an operation has a kernel for such tensors that was found right and fast."""
    first = tensors[0]
    return on(first.device).fits(*tensors) and not why_not(operation, first.device, first.dtype)


def reads_all_angles(device: torch.device) -> bool:
    """Whether rotary positions are right for angles whose second half is not the first; liger-kernel reads that."""
    return device.type != "cuda"


def can_turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether rotary positions have one for these heads and angles."""
    backend = on(q.device)
    return (
        q.dim() == k.dim() == 4
        and cos.dim() == 3
        and backend.fits(cos, sin)
        and all(x.dtype == cos.dtype and backend.is_plain(x) for x in (q, k))
        and q.shape[::2] == k.shape[::2]
        and q.shape[-1] == k.shape[-1] == cos.shape[-1]
        and q.shape[-1] % 2 == 0
        and cos.shape == sin.shape
        and cos.shape[0] in (1, q.shape[0])
        and cos.shape[1] == q.shape[2]
        and not why_not("rotary positions", q.device, q.dtype)
    )


def why_not(operation: Operation, device: torch.device, dtype: torch.dtype) -> str:
    """Why an operation has no kernel on a GPU; empty where it has one, or on other devices."""
    if device.type != "cuda":
        return ""
    from .cuda import trial

    return trial.why_not(operation, device, dtype)
