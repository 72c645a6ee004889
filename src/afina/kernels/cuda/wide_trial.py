"""Whether frozen layers' products carry their low-rank updates on a GPU: by a trial of the layers' own sizes, once.

Forward and backward are asked apart: a copy of the narrow side is less than a pass over the wide one, and which side is
the wide one is not the same for both. The outcome is kept (`trial.kept`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .clock import milliseconds
from .trial import FAULTS, kept, no_further
from .wide import ADDED, Room, Way, input_gradient, layer_outputs, make_room

Sizes = tuple[tuple[int, ...], int, tuple[int, ...]]
"""Outputs of each layer, inputs, ranks."""


def way(weights: Sequence[Tensor], ranks: Sequence[int], tokens: int) -> Way:
    """How the updates of layers reach their outputs and their input's gradient: the faster of the two.

    Args:
        weights: (O, I). tokens: rows of the input, about.
    """
    first = weights[0]
    if first.device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return ADDED
    sizes = tuple(w.shape[0] for w in weights), first.shape[1], tuple(ranks)
    return _known(sizes, 1 << (tokens - 1).bit_length(), first.dtype, first.device)


@functools.lru_cache(maxsize=256)
def _known(sizes: Sizes, tokens: int, dtype: torch.dtype, device: torch.device) -> Way:
    question = {"operation": "updates in products", "sizes": str(sizes), "tokens": str(tokens), "dtype": str(dtype)}
    try:
        found = kept(question, device, lambda: tried(sizes, tokens, dtype, device))
    except FAULTS:
        return ADDED
    return Way("forward" in found, "backward" in found)


@torch.no_grad()
def tried(sizes: Sizes, tokens: int, dtype: torch.dtype, device: torch.device) -> str:
    """The trial itself: of "forward" and "backward" those that products are right and faster to carry."""
    found = []
    for name, carried in (("forward", Way(True, False)), ("backward", Way(False, True))):
        few = _Layers(sizes, 17, dtype, device, carried)
        at = 0 if name == "forward" else 1
        right = all(map(no_further, few.run(few.room)[at], few.run(None)[at], few.exact()[at]))
        layers = _Layers(sizes, tokens, dtype, device, carried)
        runs = layers.outputs if name == "forward" else layers.gradient
        fast, slow = milliseconds([lambda r=runs, at=layers: r(at.room), lambda r=runs: r(None)], device)  # type: ignore[misc]
        if right and fast < slow:
            found.append(name)
    return " ".join(found)


class _Layers:
    """Random layers of some sizes, in a buffer with room."""

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

    def outputs(self, room: Room | None) -> list[Tensor]:
        return layer_outputs(self.x, self.weights, [None] * len(self.b), self.a, self.b, room)[0]

    def gradient(self, room: Room | None) -> list[Tensor]:
        return [input_gradient(self.g, self.u, self.weights, self.a, room)]

    def run(self, room: Room | None) -> tuple[list[Tensor], list[Tensor]]:
        return self.outputs(room), self.gradient(room)

    def exact(self) -> tuple[list[Tensor], list[Tensor]]:
        a, x, ranks = self.a.double(), self.x.double(), [b.shape[1] for b in self.b]
        merged = [w.double() + b.double() @ part
                  for w, b, part in zip(self.weights, self.b, torch.split(a, ranks), strict=True)]  # fmt: skip
        gradient = sum((g.double() @ w for g, w in zip(self.g, merged, strict=True)), torch.zeros_like(x))
        return [x @ w.mT for w in merged], [gradient]
