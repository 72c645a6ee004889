"""Whether rows of a batch with adapters of their own are faster in one product than one group after the other on a GPU:
by a trial of the layers' own sizes, once. The outcome is kept (`trial.kept`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..cuda.clock import milliseconds
from ..cuda.few_bits import Buffer, Kind, in_few_bits, product
from ..cuda.trial import FAULTS, kept
from ..lora_linear import add_low_rank
from .joint import Layer, lora_linears
from .row_columns import RowColumns, magnified
from .wide import ADDED, Room, Way, Weight, make_room

Sizes = tuple[tuple[int, ...], int, tuple[int, ...]]
"""Outputs of each layer, inputs, ranks (of all groups together)."""
_YES, _NO = "together", "one after the other"


class Case(NamedTuple):
    """What is tried.

    Attributes:
        tokens, groups: of all rows, and among how many adapters they are divided evenly.
        way: how updates reach the outputs.
        kind: how the weights are stored, if in few bits.
        magnified: whether every adapter multiplies the outputs by magnitudes (DoRA).
    """

    sizes: Sizes
    tokens: int
    groups: int
    dtype: torch.dtype
    device: torch.device
    way: Way = ADDED
    kind: Kind | None = None
    magnified: bool = False

    @property
    def question(self) -> dict[str, str]:
        """What its outcome is kept by, the device apart."""
        told = {name: str(value) for name, value in self._asdict().items() if name not in ("device", "way")}
        return {"operation": "rows with adapters of their own", **told, "way": "; ".join(self.way)}


@functools.lru_cache(maxsize=256)
def gains(case: Case) -> bool:
    """Whether something is gained, also where nothing is learnt."""
    try:
        return kept(case.question, case.device, lambda: tried(case)) == _YES
    except FAULTS:
        return False


def tried(case: Case) -> str:
    """The trial itself: forward alone, and forward with backward."""
    for learns in (False, True):
        fast, slow = measured(case, learns)
        if fast >= slow:
            return _NO
    return _YES


def measured(case: Case, learns: bool) -> tuple[float, float]:
    """Milliseconds together, and one group after the other."""
    batch = Batch(case)

    def run(outputs: list[Tensor]) -> None:
        if learns:
            torch.autograd.grad(outputs, [batch.x, *batch.factors], list(batch.g))

    with torch.set_grad_enabled(learns):
        fast, slow = milliseconds([lambda: run(batch.together()), lambda: run(batch.apart())], case.device)
    return fast, slow


class Batch:
    """Random layers, and rows that are divided evenly among adapters, in their order. Norms of magnified layers, which
    both ways take, are left out."""

    def __init__(self, case: Case) -> None:
        outputs, inputs, self.ranks = case.sizes
        self.groups, self.each = case.groups, max(1, case.tokens // case.groups)
        random = torch.Generator(case.device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            out = torch.randn(shape, generator=random, device=case.device)
            return out.mul_(shape[-1] ** -0.5).to(case.dtype)

        self.weights, self.room = _weights(case, draw)
        self.x = draw(self.groups * self.each, inputs).requires_grad_()
        self.a = [draw(rank, inputs).requires_grad_() for rank in self.ranks]
        self.b = [draw(out, rank).requires_grad_() for out, rank in zip(outputs, self.ranks, strict=True)]
        self.n = [[draw(out).add_(1).requires_grad_() for _ in range(self.groups)] if case.magnified else []
                  for out in outputs]  # fmt: skip
        self.g = [draw(self.groups * self.each, out) for out in outputs]
        self.factors = [*self.a, *self.b, *(n for of_layer in self.n for n in of_layer)]
        self.rows = [RowColumns(self.groups, [([i], share) for i, share in enumerate(self._shares(rank))], case.device)
                     for rank in self.ranks]  # fmt: skip

    def _shares(self, rank: int) -> list[int]:
        return [rank * (i + 1) // self.groups - rank * i // self.groups for i in range(self.groups)]

    def together(self) -> list[Tensor]:
        """The outputs, (N, O) each, in one product."""
        parts = zip(self.weights, self.a, self.b, self.rows, strict=True)
        layers = [Layer(w, None, a, b, 1.0, rows=rows) for w, a, b, rows in parts]
        made = zip(lora_linears(self.x, layers, self.room), self.n, self.rows, strict=True)
        return [magnified(y, n, rows) if n else y for y, n, rows in made]

    def apart(self) -> list[Tensor]:
        """The same as `core.hosts.batch_rows` makes them; magnified layers are run on each group."""
        out = []
        for w, a, b, n, rank in zip(self.weights, self.a, self.b, self.n, self.ranks, strict=True):
            shares, done = self._shares(rank), []
            whole, parts = None if n else _product(self.x, w), zip(torch.split(a, shares), torch.split(b, shares, 1),
                                                                   strict=True)  # fmt: skip
            for i, (a_RI, b_OR) in enumerate(parts):
                own = slice(i * self.each, (i + 1) * self.each)
                x = self.x[own]
                y = add_low_rank(_product(x, w) if whole is None else whole[own], x, a_RI, b_OR, 1.0)
                done.append(y * n[i] if n else y)
            out.append(torch.cat(done))
        return out


def _weights(case: Case, draw: Callable[..., Tensor]) -> tuple[list[Weight], Room | None]:
    outputs, inputs, ranks = case.sizes
    if case.kind is not None:
        buffer = Buffer()
        return [in_few_bits(draw(out, inputs), case.kind, buffer) for out in outputs], None
    dense = [nn.Parameter(draw(out, inputs), requires_grad=False) for out in outputs]
    return [*dense], make_room(dense, ranks, case.way)


def _product(x: Tensor, weight: Weight) -> Tensor:
    return x @ weight.mT if isinstance(weight, Tensor) else product(x, weight, None)
