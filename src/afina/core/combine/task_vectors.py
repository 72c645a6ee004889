"""Weighted combinations of tensors of one shape, one tensor from each adapter.

    linear            Σ wᵢ Tᵢ                                     Ilharco et al. 2022, arXiv 2212.04089
    magnitude_prune   Σ wᵢ top(Tᵢ)
    ties              Σ' wᵢ top(Tᵢ) / n                           Yadav et al. 2023, arXiv 2306.01708
    dare_linear       Σ wᵢ drop(Tᵢ)                               Yu et al. 2023, arXiv 2311.03099
    dare_ties         Σ' wᵢ drop(Tᵢ) / n

`top` keeps the share `density` of elements that is largest in size; `drop` keeps each element with that probability and
divides it by it. Σ' runs, element by element, over the n tensors whose sign is the elected one: that of the sum of the
pruned tensors, not yet weighted (by `frequency`: that of the most of them); plus where they are even.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import ConfigError

PRUNING = ("ties", "dare_ties", "dare_linear", "magnitude_prune")
KINDS = ("linear", *PRUNING)


def check_density(kind: str, density: float | None, majority_sign_method: str) -> None:
    """Refuse a share that the kind cannot work with.

    Raises:
        ConfigError: it is missing or out of range, or the majority is counted in an unknown way.
    """
    if majority_sign_method not in ("total", "frequency"):
        raise ConfigError("not an option", where="majority_sign_method", got=majority_sign_method,
                          expected="total or frequency")  # fmt: skip
    if kind in PRUNING and (density is None or not 0 < density <= 1):
        raise ConfigError("this combination keeps a share of the elements", where=f"density of {kind}", got=density,
                          expected="a number above 0, at most 1")  # fmt: skip


def combine(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    kind: str = "linear",
    density: float | None = None,
    majority_sign_method: str = "total",
) -> Tensor:
    """One tensor from several of the same shape; `dare` draws its masks with `torch.bernoulli`, in the tensors' order.

    Args:
        kind: one of `KINDS`.
        density: the share of elements that is kept; not used by `linear`.
        majority_sign_method: "total" or "frequency".
    """
    share = 1.0 if density is None else density
    if kind.startswith("dare"):
        tensors = [dropped(t, share) for t in tensors]
    elif kind != "linear":
        tensors = [largest(t, share) for t in tensors]
    stacked_N = torch.stack(list(tensors))
    weights_N = torch.tensor(weights, dtype=stacked_N.dtype, device=stacked_N.device)
    weighted_N = stacked_N * weights_N.view(-1, *(1 for _ in stacked_N.shape[1:]))
    if not kind.endswith("ties"):
        return weighted_N.sum(0)
    agree_N = agreeing(stacked_N, majority_sign_method)
    return (weighted_N * agree_N).sum(0) / agree_N.sum(0).clamp_min(1)


def largest(tensor: Tensor, share: float) -> Tensor:
    """The share of elements that is largest in size; zeros elsewhere."""
    if share >= 1:
        return tensor
    flat = tensor.reshape(-1)
    kept = flat.abs().topk(int(share * flat.numel())).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view(tensor.shape)


def dropped(tensor: Tensor, share: float) -> Tensor:
    """Each element with probability `share`, divided by it, so that the expectation stays."""
    return tensor if share >= 1 else tensor * torch.bernoulli(torch.full_like(tensor, share)) / share


def agreeing(stacked_N: Tensor, majority_sign_method: str) -> Tensor:
    """Where each of the stacked tensors has the elected sign; zeros never have it."""
    sign_N = stacked_N.sign()
    votes = (stacked_N if majority_sign_method == "total" else sign_N).sum(0)
    return sign_N == torch.where(votes >= 0, 1.0, -1.0).to(sign_N.dtype)
