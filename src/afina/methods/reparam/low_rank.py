"""What methods share whose update is a product of two thin matrices, however those are made."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...core.combine.low_rank_form import Factors, ThinUpdate
from ...core.hosts.adapter import DeltaWeight, Site
from ...core.hosts.view import View


class LowRankDelta(DeltaWeight, ThinUpdate):
    """ΔW = B A: give `factors`; the forward multiplies by one after the other where the layer allows it."""

    kinds = frozenset({"linear", "conv", "embedding", "attention", "parameter"})
    shared: Any
    """What the layers of one adapter share (see `Adapter.share`), if the method has it."""

    def __init__(self, site: Site, config: Any) -> None:
        super().__init__(site, config)
        base = site.base
        self.out_features, self.channels, self.kernel = base.out_features, base.in_features, base.shape[2:]
        self.in_features = math.prod(base.shape[1:])
        self.groups = base.groups
        self.factored = base.additive and base.groups == 1
        self.embedding = base.kind == "embedding"

    def factors(self) -> tuple[Tensor, Tensor]:
        """A: (r, in · kernel) and B: (out, r), all factors included."""
        raise NotImplementedError

    def thin_matrices(self) -> Factors | None:
        own = type(self)
        plain = own.delta is LowRankDelta.delta and own.merged is DeltaWeight.merged and self.groups == 1
        if not plain:
            return None
        A, B = self.factors()
        return A[None], B[None]

    def delta(self, weight: Tensor) -> Tensor:
        A, B = self.factors()
        return (B @ A).view(weight.shape)

    def forward(self, inner: View, x: Any) -> Any:
        if not self.factored:
            return super().forward(inner, x)
        A, B = self.factors()
        dropped = self.dropped(x)
        if self.kernel:
            A, B = A.reshape(len(A), self.channels, *self.kernel), B.reshape(*B.shape, *(1 for _ in self.kernel))
        return inner(x) + inner.base.low_rank(dropped, A, B)


def kaiming(generator: torch.Generator, *shape: int, gain: float = math.sqrt(2)) -> Tensor:
    """Uniform numbers of variance gain² / shape[1 :] from a generator, on the CPU so that a seed means one tensor."""
    bound = gain * math.sqrt(3 / math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
