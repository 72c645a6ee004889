"""Rows of a batch with adapters of their own in one product: columns for each adapter, zeros elsewhere.

    y = x Wᵀ + (M ∘ (x [A_1; A_2; …]ᵀ)) [s_1 B_1 | s_2 B_2 | …]ᵀ,    with magnitudes (DoRA) n ∘ y

M is one where a row goes through the adapter of a column. Zeros times what is not finite would not be zero, so what a
row does not go through is put aside rather than multiplied away: an adapter that has diverged spoils no rows but its
own, and the gradient of an adapter is made of its own rows alone. n are the numbers that a row's adapter multiplies
the outputs by.

Shapes: B rows of the batch, G adapters, N tokens (as many a row), I inputs, O outputs, R rank (of all adapters of a
layer), S sum of the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Index = slice | Tensor


class RowColumns:
    """Which rows of a batch go through which columns of a layer's update.

    Attributes:
        mask_BR: true where a row goes through a column.
        groups: of each adapter its rows, and its rank, in the order of the columns.
        of_row_B: the number of a row's adapter in that order, or that after the last.
    """

    def __init__(self, count: int, groups: Sequence[tuple[Sequence[int], int]], device: torch.device) -> None:
        found: list[tuple[Index, int]] = []
        mask, begin = torch.zeros(count, sum(rank for _, rank in groups), dtype=torch.bool), 0
        of_row = torch.full((count,), len(groups))
        for numbers, rank in groups:
            of_row[torch.tensor(numbers)] = len(found)
            mask[torch.tensor(numbers), begin : begin + rank] = True
            begin += rank
            in_a_row = list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))
            index = slice(numbers[0], numbers[-1] + 1) if in_a_row else torch.tensor(numbers, device=device)
            found.append((index, rank))
        self.mask_BR, self.groups, self.of_row_B = mask.to(device), tuple(found), of_row.to(device)


def put_aside(t_NS: Tensor, rows: Sequence[RowColumns], ranks: Sequence[int]) -> Tensor:
    """Zero where a row does not go through a column.

    Args:
        ranks: columns of each layer, of which what is more than its adapters have is zero too.
    """
    masks = [filled(one.mask_BR, rank) for one, rank in zip(rows, ranks, strict=True)]
    mask_B1S = torch.cat(masks, 1)[:, None]
    return t_NS.view(len(mask_B1S), -1, t_NS.shape[1]).where(mask_B1S, 0).flatten(0, 1)


def magnified(y: Tensor, magnitudes: Sequence[Tensor | None], rows: RowColumns) -> Tensor:
    """The outputs times what each row's adapter multiplies them by, in their dtype.

    Args:
        y: (..., O), of the batch's rows one after the other.
        magnitudes: (O,) of each adapter; None for ones.
    """
    one = torch.ones(y.shape[-1], dtype=y.dtype, device=y.device)
    n_GO = torch.stack([one if n is None else n for n in (*magnitudes, None)])
    n_B1O = n_GO.index_select(0, rows.of_row_B)[:, None]
    return (y.reshape(len(n_B1O), -1, y.shape[-1]) * n_B1O).to(y.dtype).view(y.shape)


def filled(t: Tensor, columns: int) -> Tensor:
    """With zeros to so many columns."""
    more = columns - t.shape[1]
    return F.pad(t, (0, more)) if more else t


def finite(t: Tensor) -> Tensor:
    """Zero in place of what is not."""
    return t.nan_to_num(0.0, 0.0, 0.0)


def not_finite(b_OR: Sequence[Tensor]) -> Tensor:
    """What makes of x Aᵀ, to which it is added, nan where the b that it meets is not finite; else zeros, (S,)."""
    return torch.cat([(b * 0).sum(0) for b in b_OR])


def factor_gradients(
    x_NI: Tensor, g_NO: Sequence[Tensor], t_NS: Tensor, u_NS: Tensor, rows: Sequence[RowColumns], ranks: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """The gradients of a and b, (R, I) and (O, R), of each layer.

    Args:
        t_NS, u_NS: x aᵀ and g b, put aside. ranks: columns of each layer in them.
    """
    out, begin = [], 0
    inputs: dict[int, Tensor] = {}
    for g, one, held in zip(g_NO, rows, ranks, strict=True):
        of_a, of_b, at = [], [], begin
        for index, rank in one.groups:
            count = len(one.mask_BR)
            if id(index) not in inputs:
                inputs[id(index)] = _of(x_NI, index, count)
            columns = slice(at, at + rank)
            u, t = (_of(both[:, columns], index, count) for both in (u_NS, t_NS))
            of_a.append(u.mT @ inputs[id(index)])
            of_b.append(_of(g, index, count).mT @ t)
            at += rank
        out.append((torch.cat(of_a), torch.cat(of_b, 1)))
        begin += held
    return out


def _of(t: Tensor, index: Index, count: int) -> Tensor:
    """The tokens of some rows; where they lie in a row, where they are."""
    return t.reshape(count, -1, t.shape[1])[index].flatten(0, 1)
