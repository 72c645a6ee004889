"""Principal directions of rows that arrive in batches, without keeping the rows.

Ross, Lim, Lin, Yang 2008, "Incremental learning for robust visual tracking" (IJCV 77): the singular value
decomposition of the centred rows seen so far is that of [S V; X - mean(X); √(nm/(n+m)) (mean(X) - mean)], truncated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class IncrementalPca:
    """Principal directions of all rows given to `update`.

    Attributes:
        directions_KI: orthonormal rows, the largest variance first; in each the entry of largest magnitude is positive.
        sizes_K: singular values of the centred rows.
        count: rows seen.
    """

    def __init__(self, components: int, in_features: int, device: torch.device | None = None) -> None:
        self.components = components
        self.directions_KI = torch.zeros(0, in_features, device=device)
        self.sizes_K = torch.zeros(0, device=device)
        self.mean_I = torch.zeros(in_features, device=device)
        self.scatter = 0.0
        self.count = 0
        self.similarity = 0.0
        """The smallest |cosine| between a direction before and after the last update."""

    @property
    def explained(self) -> Tensor:
        """Share of the rows' total variance along each direction."""
        return self.sizes_K**2 / max(self.scatter, torch.finfo(torch.float32).tiny)

    @property
    def deviations(self) -> Tensor:
        """Standard deviation of the rows along each direction."""
        return self.sizes_K / math.sqrt(max(self.count - 1, 1))

    def update(self, rows_NI: Tensor) -> None:
        """Take in a batch, a part at a time: the cost grows with the square of a part's rows."""
        before = self.directions_KI
        for part_NI in torch.split(rows_NI, max(512, 8 * self.components)):
            self._merge(part_NI)
        grown = len(before) != len(self.directions_KI)
        self.similarity = 0.0 if grown else float((before * self.directions_KI).sum(1).abs().min())

    def _merge(self, rows_NI: Tensor) -> None:
        old, new = self.count, len(rows_NI)
        mean_I = rows_NI.mean(0)
        centred_NI = rows_NI - mean_I
        shift_I = (old * new / (old + new)) ** 0.5 * (self.mean_I - mean_I)
        stacked = torch.cat([self.sizes_K[:, None] * self.directions_KI, centred_NI, shift_I[None]])
        _, S, Vh = torch.linalg.svd(stacked, full_matrices=False)
        keep = min(self.components, old + new)
        largest = Vh.gather(1, Vh.abs().argmax(1, keepdim=True))
        self.directions_KI, self.sizes_K = (Vh * largest.sign())[:keep], S[:keep]
        self.scatter += float(centred_NI.square().sum() + shift_I.square().sum())
        self.mean_I = (old * self.mean_I + new * mean_I) / (old + new)
        self.count = old + new
