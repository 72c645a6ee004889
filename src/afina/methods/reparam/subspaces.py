"""Clusters of a matrix's rows, as AdaMSS needs them: by Lloyd's algorithm on its leading left singular vectors.

Lloyd 1982, Least Squares Quantization in PCM. The first centres are rows drawn with numpy's seeded generator, the rest
is deterministic: a file holds the clusters' sizes but not their members, and both sides must come to the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

SEED = 123456789


@torch.no_grad()
def leading_vectors(weight: Tensor, bias: Tensor | None, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Left (out, r) and right (r, in [+ 1]) singular vectors of [W, b], by a seeded random projection."""
    matrix = weight.flatten(1) if bias is None else torch.cat([weight.flatten(1), bias[:, None]], dim=1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        U, _, V = torch.svd_lowrank(matrix.float(), q=min(rank, *matrix.shape), niter=2)
    return U, V.T


@torch.no_grad()
def leading_rows(rows: Tensor, rank: int, threshold: float | None) -> Tensor:
    """The leading right singular vectors (<= rank, r) of some rows (n, r): all, or those whose squared singular value
    is above `threshold` times the largest."""
    _, S, Vh = torch.linalg.svd(rows, full_matrices=False)
    large = len(S) if threshold is None else int((S.square() > threshold * S[0].square()).sum())
    out: Tensor = Vh[: max(1, min(large, rank))]
    return out


def k_means(rows_ND: Tensor, clusters: int, iterations: int, seed: int = SEED) -> list[Tensor]:
    """The members of every cluster, in ascending order; at most `iterations` moves of the centres."""
    import numpy as np

    rows = rows_ND.detach().float().cpu()
    count, clusters = len(rows), min(clusters, len(rows_ND))
    chosen = np.random.RandomState(seed).choice(count, clusters, replace=False, p=np.full(count, 1 / count))
    enough = 1e-4 * rows.var(dim=0, correction=0).mean()
    rows = rows - rows.mean(dim=0)
    centres = rows[torch.from_numpy(chosen)]
    labels = torch.full((count,), -1)
    for _ in range(iterations):
        former, labels = labels, _nearest(rows, centres)
        moved = _means(rows, labels, centres)
        shift, centres = (moved - centres).square().sum(), moved
        if torch.equal(labels, former):
            break
        if shift <= enough:
            labels = _nearest(rows, centres)
            break
    else:
        labels = _nearest(rows, centres)
    return [torch.nonzero(labels == k).flatten() for k in range(clusters)]


def _nearest(rows: Tensor, centres: Tensor) -> Tensor:
    return (centres.square().sum(1) - 2 * rows @ centres.T).argmin(dim=1)


def _means(rows: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """The clusters' means; a cluster without members gets the row that is farthest from its own centre."""
    sums = torch.zeros_like(centres).index_add(0, labels, rows)
    sizes = torch.bincount(labels, minlength=len(centres))
    empty = torch.nonzero(sizes == 0).flatten()
    distances = (rows - centres[labels]).square().sum(1)
    for k, row in zip(empty, distances.argsort(descending=True)[: len(empty)], strict=True):
        if distances[row] > 0:
            sums[labels[row]] -= rows[row]
            sizes[labels[row]] -= 1
            sums[k], sizes[k] = rows[row], 1
    return torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), centres)
