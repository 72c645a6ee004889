"""A frozen layer's product and its low-rank update in one Triton kernel.

    y = x W + t B + bias,    (N, O) of (N, I), (I, O), (N, R), (R, O), (O,)

A tile of y is summed over I in float32, then over R into the same accumulator, and written once: the update's own pass
over the output, and the copy of the input that a carried update takes, are both spared. Products of matrices by tiles
in the order that shares what the caches hold: Tillet et al. 2019 (MAPL) and Triton's tutorial on matrix products.

This module needs Triton to be installed; `wide` imports it only where a trial may choose it.

Shapes: N tokens, I inputs, O outputs, R rank; every matrix with any strides.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tile(NamedTuple):
    """How a product is cut: rows and columns of the output that one program makes, inputs that it reads at a time."""

    rows: int
    columns: int
    inputs: int
    warps: int
    stages: int


TILES = MappingProxyType({
    "tiles of 128 x 128": Tile(128, 128, 64, 8, 3),
    "tiles of 128 x 256": Tile(128, 256, 64, 8, 3),
    "tiles of 64 x 128": Tile(64, 128, 64, 4, 4),
})  # fmt: skip
"""What a trial chooses from, each the best of some sizes."""
LEAST = 16
"""Numbers that matrix units take at a time, at the least."""
GROUP = 8
"""Tiles of rows that are worked on side by side, so that they find the same weights in the cache."""


def product(
    x_NI: Tensor, w_IO: Tensor, t_NR: Tensor, b_RO: Tensor, bias: Tensor | None = None, tile: str = next(iter(TILES))
) -> Tensor:
    """x W + t B + bias, summed in float32; (N, O) in the dtype of x, which all have."""
    (rows, inputs), outputs, rank = x_NI.shape, w_IO.shape[1], t_NR.shape[1]
    y_NO = torch.empty(rows, outputs, dtype=x_NI.dtype, device=x_NI.device)
    if not y_NO.numel():
        return y_NO
    cut = _fitting(TILES[tile], x_NI.dtype)
    programs = triton.cdiv(rows, cut.rows) * triton.cdiv(outputs, cut.columns)
    gpu: Any = torch.cuda
    with gpu.device_of(x_NI):
        tile_of_sum[(programs,)](
            x_NI, w_IO, t_NR, b_RO, y_NO if bias is None else bias, y_NO, rows, outputs, inputs, rank,
            *x_NI.stride(), *w_IO.stride(), *t_NR.stride(), *b_RO.stride(),
            BIASED=bias is not None, ROWS=cut.rows, COLUMNS=cut.columns, INPUTS=cut.inputs, SIDE=GROUP,
            RANK=min(64, max(LEAST, triton.next_power_of_2(rank))), num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
    return y_NO


def _fitting(tile: Tile, dtype: torch.dtype) -> Tile:
    """Half as much at a time where numbers are twice as wide, so that it lies in the same memory."""
    return tile if dtype.itemsize == 2 else tile._replace(columns=min(tile.columns, 128), inputs=tile.inputs // 2)


@triton.jit
def tile_of_sum(
    x_ptr: tl.tensor, w_ptr: tl.tensor, t_ptr: tl.tensor, b_ptr: tl.tensor, bias_ptr: tl.tensor, y_ptr: tl.tensor,
    rows: tl.tensor, outputs: tl.tensor, inputs: tl.tensor, rank: tl.tensor,
    x_row: tl.tensor, x_column: tl.tensor, w_row: tl.tensor, w_column: tl.tensor,
    t_row: tl.tensor, t_column: tl.tensor, b_row: tl.tensor, b_column: tl.tensor,
    BIASED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr, SIDE: tl.constexpr,
    RANK: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of the output. Programs go down `SIDE` tiles of rows before they go on by one of columns."""
    program = tl.program_id(0)
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(outputs, COLUMNS)
    band = program // (SIDE * across)
    height = min(down - band * SIDE, SIDE)
    inside = program % (SIDE * across)
    # In 64 bits, because a model's largest matrices have more than 2^31 numbers.
    n = ((band * SIDE + inside % height) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    o = ((inside // height) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]

    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, inputs, INPUTS):
        i = (start + tl.arange(0, INPUTS)).to(tl.int64)
        x = tl.load(x_ptr + n * x_row + i[None, :] * x_column, mask=(n < rows) & (i[None, :] < inputs), other=0.0)
        w = tl.load(w_ptr + i[:, None] * w_row + o * w_column, mask=(i[:, None] < inputs) & (o < outputs), other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    for start in range(0, rank, RANK):
        r = start + tl.arange(0, RANK)
        t = tl.load(t_ptr + n * t_row + r[None, :] * t_column, mask=(n < rows) & (r[None, :] < rank), other=0.0)
        b = tl.load(b_ptr + r[:, None] * b_row + o * b_column, mask=(r[:, None] < rank) & (o < outputs), other=0.0)
        total = tl.dot(t, b, total, input_precision="ieee")
    if BIASED:
        total += tl.load(bias_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)
    tl.store(y_ptr + n * outputs + o, total.to(y_ptr.dtype.element_ty), mask=(n < rows) & (o < outputs))
