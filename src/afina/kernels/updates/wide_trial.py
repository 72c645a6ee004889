"""How low-rank updates of frozen layers reach their outputs and their input's gradient on a GPU: added, carried by the
layers' products, or made in one kernel with them; by a trial of the layers' own sizes, once.

Forward and backward are asked apart: a copy of the narrow side is less than a pass over the wide one, and which side is
the wide one is not the same for both. The outcome is kept (`trial.kept`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..cuda.clock import milliseconds
from ..cuda.trial import FAULTS, kept, no_further
from ..loss import has_triton
from .joint import Layer
from .rows_trial import Case, Sizes, gains
from .wide import ADD, ADDED, CARRY, Room, Way, input_gradient, layer_outputs, make_room

Pass = Literal["forward", "backward"]


def way(layers: Sequence[Layer], x: Tensor) -> Way | None:
    """How the updates of layers reach their outputs and their input's gradient: the fastest of all. None where rows
    with adapters of their own are faster one group after the other.

    Args:
        layers: which read x: (..., I).
    """
    groups = max((len(layer.rows.groups) for layer in layers if layer.rows is not None), default=0)
    kinds = {None if isinstance(layer.weight, Tensor) else layer.weight.kind for layer in layers}
    unknown = x.device.type != "cuda" or torch.are_deterministic_algorithms_enabled()
    if unknown or len(kinds) > 1:
        return None if groups else ADDED
    sizes = tuple(len(layer.b) for layer in layers), x.shape[-1], tuple(len(layer.a) for layer in layers)
    about, kind = 1 << (x.numel() // x.shape[-1] - 1).bit_length(), kinds.pop()
    found = _known(sizes, about, x.dtype, x.device) if kind is None else ADDED
    case = Case(sizes, about, groups, x.dtype, x.device, found, kind, any(layer.magnified for layer in layers))
    return found if not groups or gains(case) else None


@functools.lru_cache(maxsize=256)
def _known(sizes: Sizes, tokens: int, dtype: torch.dtype, device: torch.device) -> Way:
    there = ", ".join(candidates())
    question = {"operation": "updates in products", "sizes": str(sizes), "tokens": str(tokens), "dtype": str(dtype),
                "ways": there}  # fmt: skip
    try:
        return Way(*kept(question, device, lambda: tried(sizes, tokens, dtype, device)).split("; "))
    except FAULTS:
        return ADDED


def candidates() -> Mapping[str, tuple[type[Exception], ...]]:
    """The ways there are here, the plain one first, and what each may raise where it does not run."""
    plain: dict[str, tuple[type[Exception], ...]] = {ADD: (), CARRY: ()}
    if not has_triton():
        return plain
    from ..cuda.loss import FAULTS as TRITONS
    from .epilogue import TILES

    return {**plain, **dict.fromkeys(TILES, TRITONS)}


@torch.no_grad()
def tried(sizes: Sizes, tokens: int, dtype: torch.dtype, device: torch.device) -> str:
    """The trial itself: the fastest of the ways that are right, forward and backward."""
    found = []
    passes: tuple[Pass, ...] = ("forward", "backward")
    for name in passes:
        times = measured(name, sizes, tokens, dtype, device)
        found.append(min(times, key=lambda how: times[how]))
    return "; ".join(found)


@torch.no_grad()
def measured(name: Pass, sizes: Sizes, tokens: int, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Milliseconds of every way that is right."""
    layers = {}
    for how, faults in candidates().items():
        passes = Way(forward=how) if name == "forward" else Way(backward=how)
        try:
            few = _Layers(sizes, 17, dtype, device, passes)
            right = all(map(no_further, few.run(name, few.room), few.run(name, None), few.exact(name)))
        except faults:
            continue
        if right:
            layers[how] = _Layers(sizes, tokens, dtype, device, passes)
    runs = [lambda at=at: at.run(name, at.room) for at in layers.values()]
    return dict(zip(layers, milliseconds(runs, device), strict=True))


class _Layers:
    """Random layers of some sizes, in a buffer with room where it takes one."""

    def __init__(self, sizes: Sizes, tokens: int, dtype: torch.dtype, device: torch.device, way: Way) -> None:
        outputs, inputs, ranks = sizes
        random = torch.Generator(device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, device=device).mul_(shape[-1] ** -0.5).to(dtype)

        self.weights = [nn.Parameter(draw(out, inputs), requires_grad=False) for out in outputs]
        self.x, self.a = draw(tokens, inputs), draw(sum(ranks), inputs)
        self.b = [draw(out, rank) for out, rank in zip(outputs, ranks, strict=True)]
        self.g = [draw(tokens, out) for out in outputs]
        self.u = torch.cat([g @ b for g, b in zip(self.g, self.b, strict=True)], 1)
        self.room = make_room(self.weights, ranks, way)

    def run(self, name: Pass, room: Room | None) -> list[Tensor]:
        """The outputs, or the input's gradient."""
        if name == "forward":
            none = [None] * len(self.b)
            return layer_outputs(self.x, self.weights, none, self.x @ self.a.mT, self.b, room)
        return [input_gradient(self.g, self.u, self.weights, self.a, room)]

    def exact(self, name: Pass) -> list[Tensor]:
        """The same in float64."""
        a, x, ranks = self.a.double(), self.x.double(), [b.shape[1] for b in self.b]
        merged = [w.double() + b.double() @ part
                  for w, b, part in zip(self.weights, self.b, torch.split(a, ranks), strict=True)]  # fmt: skip
        if name == "forward":
            return [x @ w.mT for w in merged]
        return [sum((g.double() @ w for g, w in zip(self.g, merged, strict=True)), torch.zeros_like(x))]
