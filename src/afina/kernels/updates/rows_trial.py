"""Whether rows of a batch with adapters of their own are faster in one product than one group after the other on a GPU:
by a trial of the layers' own sizes, once. The outcome is kept (`trial.kept`)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ..cuda.clock import milliseconds
from ..cuda.trial import FAULTS, kept
from ..lora_linear import add_low_rank
from .joint import Layer, lora_linears
from .row_columns import RowColumns
from .wide import Room, Way, make_room

Sizes = tuple[tuple[int, ...], int, tuple[int, ...]]
"""Outputs of each layer, inputs, ranks of all groups together."""
_YES, _NO = "together", "one after the other"


@functools.lru_cache(maxsize=256)
def gains(sizes: Sizes, tokens: int, groups: int, dtype: torch.dtype, device: torch.device, way: Way) -> bool:
    """Whether something is gained, also where nothing is learnt.

    Args:
        way: how updates reach the outputs.
    """
    question = {"operation": "rows with adapters of their own", "sizes": str(sizes), "tokens": str(tokens),
                "groups": str(groups), "dtype": str(dtype), "way": "; ".join(way)}  # fmt: skip
    try:
        return kept(question, device, lambda: tried(sizes, tokens, groups, dtype, device, way)) == _YES
    except FAULTS:
        return False


def tried(sizes: Sizes, tokens: int, groups: int, dtype: torch.dtype, device: torch.device, way: Way) -> str:
    """The trial itself: forward alone, and forward with backward."""
    for learns in (False, True):
        fast, slow = measured(sizes, tokens, groups, dtype, device, way, learns)
        if fast >= slow:
            return _NO
    return _YES


def measured(
    sizes: Sizes, tokens: int, groups: int, dtype: torch.dtype, device: torch.device, way: Way, learns: bool
) -> tuple[float, float]:
    """Milliseconds together, and one group after the other."""
    batch = Batch(sizes, tokens, groups, dtype, device, way)

    def run(outputs: list[Tensor]) -> None:
        if learns:
            torch.autograd.grad(outputs, [batch.x, *batch.factors], list(batch.g))

    with torch.set_grad_enabled(learns):
        fast, slow = milliseconds([lambda: run(batch.together()), lambda: run(batch.apart())], device)
    return fast, slow


class Batch:
    """Random layers, and rows that are divided evenly among adapters, in their order."""

    def __init__(
        self, sizes: Sizes, tokens: int, groups: int, dtype: torch.dtype, device: torch.device, way: Way
    ) -> None:  # fmt: skip
        outputs, inputs, self.ranks = sizes
        self.groups = groups
        self.each = max(1, tokens // groups)
        random = torch.Generator(device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, device=device).mul_(shape[-1] ** -0.5).to(dtype)

        self.weights = [nn.Parameter(draw(out, inputs), requires_grad=False) for out in outputs]
        self.x = draw(groups * self.each, inputs).requires_grad_()
        self.a = [draw(rank, inputs).requires_grad_() for rank in self.ranks]
        self.b = [draw(out, rank).requires_grad_() for out, rank in zip(outputs, self.ranks, strict=True)]
        self.g = [draw(groups * self.each, out) for out in outputs]
        self.factors = [*self.a, *self.b]
        self.rows = [RowColumns(groups, [([i], share) for i, share in enumerate(self._shares(rank))], device)
                     for rank in self.ranks]  # fmt: skip
        self.room: Room = make_room(self.weights, self.ranks, way)

    def _shares(self, rank: int) -> list[int]:
        return [rank * (i + 1) // self.groups - rank * i // self.groups for i in range(self.groups)]

    def together(self) -> list[Tensor]:
        """The outputs, (N, O) each, in one product."""
        parts = zip(self.weights, self.a, self.b, self.rows, strict=True)
        layers = [Layer(w, None, a, b, 1.0, rows=rows) for w, a, b, rows in parts]
        return list(lora_linears(self.x, layers, self.room))

    def apart(self) -> list[Tensor]:
        """The same as `core.hosts.batch_rows` makes them."""
        out = []
        for w, a, b, rank in zip(self.weights, self.a, self.b, self.ranks, strict=True):
            shares, done = self._shares(rank), []
            y, parts = self.x @ w.mT, zip(torch.split(a, shares), torch.split(b, shares, 1), strict=True)
            for i, (a_RI, b_OR) in enumerate(parts):
                own = slice(i * self.each, (i + 1) * self.each)
                done.append(add_low_rank(y[own], self.x[own], a_RI, b_OR, 1.0))
            out.append(torch.cat(done))
        return out
