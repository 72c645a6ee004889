"""Who wants to hear the loss of every position, which a fused loss otherwise adds up and forgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

Heard = Callable[[Tensor, Tensor, int], None]
"""Supervised positions among all of a batch, one row after the other, (N,); their losses, (N,); how many positions
there are in all."""
_LISTENER: ContextVar[Heard | None] = ContextVar("afina_losses", default=None)


@contextmanager
def heard_by(listener: Heard) -> Iterator[None]:
    """Tell `listener` of every loss that is taken within."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def tell(rows: Tensor, losses: Tensor, positions: int) -> None:
    """Say what was found to whoever listens."""
    if torch.compiler.is_compiling():
        return
    listener = _LISTENER.get()
    if listener is not None:
        listener(rows, losses.detach(), positions)


def is_heard() -> bool:
    """Whether anybody listens."""
    return _LISTENER.get() is not None
