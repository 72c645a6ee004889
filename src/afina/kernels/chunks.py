"""How many rows of logits the loss works on at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices.memory_use import free_bytes

MEMORY = 64 * 2**20
"""Bytes that a chunk's logits may take in float32 on a processor."""
FEWEST, MOST = 1024, 2048
"""Rows of a chunk on a GPU: with fewer, reading the head's weight for every chunk takes longer than the products."""
_LOGIT, _SHARE = 8, 8
"""Bytes that a logit takes on a GPU in its own dtype, in float32 and as gradient, about; a chunk may take one part in
so many of the free memory."""


def chunk_rows(vocabulary: int, kind: str, free: int | None) -> int:
    """Rows of a chunk on a kind of device.

    On a processor as many as `MEMORY` holds. On a GPU between `FEWEST` and `MOST`, as the free memory allows; fewer
    only where `FEWEST` would take more than half of it.

    Args:
        kind: of the device: "cpu", "cuda", ...
        free: bytes that it has free; None where it does not say.
    """
    smallest = max(1, MEMORY // (4 * vocabulary))
    if kind == "cpu":
        return smallest
    if free is None:
        return max(smallest, FEWEST)
    row = _LOGIT * vocabulary
    rows = min(max(free // _SHARE // row, FEWEST), MOST)
    return max(smallest, min(rows, free // 2 // row))


def rows_at_a_time(needed: int, weight: Tensor, memory: int | None) -> int:
    """Rows of a chunk.

    Args:
        needed: rows in all.
        weight: the head's, (V, D), on whose device they are.
        memory: bytes for a chunk's logits in float32; by the device if None.
    """
    kind, smallest = weight.device.type, max(1, (MEMORY if memory is None else memory) // (4 * weight.shape[0]))
    if kind == "cpu" or memory is not None or needed <= smallest:
        return smallest
    # Another size of chunks rounds otherwise, and the free memory is not the same in every run.
    same = torch.compiler.is_compiling() or torch.are_deterministic_algorithms_enabled()
    return chunk_rows(weight.shape[0], kind, None if same else free_bytes(weight.device))
