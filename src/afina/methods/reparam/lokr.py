"""LoKr: the weight update as a Kronecker product of two small matrices, each whole or low-rank.

    ΔW = (alpha / r) · w1 ⊗ w2,   w = w_a w_b where that is smaller (convolutions may use a Tucker core t2)

Edalati et al. 2022 (KronA), arXiv 2212.10650; Yeh et al. 2023 (LyCORIS), arXiv 2309.14859. out = o1 · o2, in = i1 · i2
are split into the factors nearest to equal (or by `decompose_factor`). The update starts at zero.
Trainable: o1 i1 + o2 i2 · kernel, or r (o + i) for a factor that is decomposed. Mergeable. Layers: Linear, Conv1D,
Conv1d/2d/3d (grouped too), Embedding, MultiheadAttention, 2-D parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...core.config import bounded, register
from ...core.hosts.adapter import Site
from ...errors import ConfigError
from .lycoris import Lycoris, LycorisConfig


@dataclass(kw_only=True)
class LoKrConfig(LycorisConfig):
    """Configuration of LoKr; fields as in the reference.

    Attributes:
        decompose_both: let w1 be low-rank too, where that is smaller.
        decompose_factor: one factor of in and out, where it divides them; -1 makes both as equal as possible.
        rank_dropout_scale: divide by the share of rows that `rank_dropout` leaves.
        init_weights: as elsewhere; "lycoris", W2 = 0, is the start that is made here anyway.
    """

    decompose_both: bool = False
    decompose_factor: int = bounded(-1, ge=-1)
    rank_dropout_scale: bool = False
    init_weights: bool | Literal["lycoris"] = True  # type: ignore[assignment]

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "rank_dropout_scale": ("rank_dropout", ...),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decompose_factor == 0:
            raise ConfigError("no factor", where="decompose_factor", got=0, expected="a factor, or -1")


def split(size: int, limit: int = -1) -> tuple[int, int]:
    """`size` as a product (small, large): by `limit` where it divides, else as equal as divisors up to it allow."""
    if limit > 0 and size % limit == 0:
        return min(limit, size // limit), max(limit, size // limit)
    top = math.isqrt(size) if limit < 0 else min(math.isqrt(size), limit)
    small = max(d for d in range(1, top + 1) if size % d == 0)
    return small, size // small


@register("LOKR", LoKrConfig)
class LoKr(Lycoris):
    """w1: (o1, i1); w2: (o2, i2, *kernel); factors a: (o, r), b: (r, i · kernel)."""

    steady: ClassVar[bool] = True
    prefix = "lokr_"

    @classmethod
    def idle(cls, config: LoKrConfig, adapters: Sequence[LoKr]) -> Iterable[str]:
        whole = config.decompose_both and all(a.lokr_w1 is not None for a in adapters)
        return ["decompose_both (no w1 is smaller as two factors)"] if whole else []

    def __init__(self, site: Site, config: LoKrConfig) -> None:
        super().__init__(site, config)
        out, width, *kernel = site.base.shape
        (o1, o2), (i1, i2) = split(out, config.decompose_factor), split(width, config.decompose_factor)
        self.lokr_w1: nn.Parameter | None = None
        self.lokr_w2: nn.Parameter | None = None
        self.lokr_t2: nn.Parameter | None = None
        if config.decompose_both and self.r < max(o1, i1) / 2:
            self.lokr_w1_a, self.lokr_w1_b = site.normal(1 / math.sqrt(self.r), o1, self.r), site.normal(1, self.r, i1)
        else:
            self.lokr_w1 = site.normal(1 / math.sqrt(i1), o1, i1)
        self.kernel = tuple(kernel)
        if self.r >= max(o2, i2) / 2:
            self.lokr_w2 = site.empty(o2, i2, *kernel)
        elif self.tucker:
            self.lokr_t2 = site.normal(0.1, self.r, self.r, *kernel)
            self.lokr_w2_a, self.lokr_w2_b = site.empty(self.r, o2), site.normal(0.1, self.r, i2)
        else:
            self.lokr_w2_a = site.empty(o2, self.r)
            self.lokr_w2_b = site.normal(1 / math.sqrt(i2), self.r, i2 * math.prod(kernel))
        last = self.lokr_w2 if self.lokr_w2 is not None else self.lokr_w2_a
        if config.init_weights:
            nn.init.zeros_(last)
        else:
            nn.init.normal_(last, std=0.1)

    def _second(self) -> Tensor:
        if self.lokr_w2 is not None:
            return self.lokr_w2
        a, b = self.lokr_w2_a, self.lokr_w2_b
        if self.lokr_t2 is None:
            return (a @ b).view(a.shape[0], -1, *self.kernel)
        spread = (a.T @ self.lokr_t2.flatten(1)).view(a.shape[1], *self.lokr_t2.shape[1:])
        return (b.T @ spread.flatten(2)).view(a.shape[1], b.shape[1], *self.kernel)

    def product(self) -> Tensor:
        first = self.lokr_w1 if self.lokr_w1 is not None else self.lokr_w1_a @ self.lokr_w1_b
        second = self._second()
        if len(self.kernel) != 1:
            first = first.view(*first.shape, *(1 for _ in self.kernel))
        # With a 1-D kernel the files of the reference mean the product over the last axes, in another arrangement.
        return torch.kron(first, second.contiguous())
