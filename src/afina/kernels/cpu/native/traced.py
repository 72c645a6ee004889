"""What a kernel that torch does not see tells whoever follows a step on tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from torch import Tensor

TRACED: ContextVar[Callable[[list[Tensor]], None] | None] = ContextVar("afina_traced", default=None)
"""Is called with the tensors that a kernel would read and write; nothing is computed then."""
