"""Weight updates of any method in low-rank form, and how much of them such a form keeps.

A layer's update is seen as a batch of matrices ΔW_BOI: one matrix, or one for each expert or group of a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import ConfigError, MergeError, NotMergeable
from ..config import LayerConfig, methods
from ..hosts.adapter import Adapter, DeltaWeight
from ..hosts.host import Host
from ..hosts.view import nothing_drawn
from ..layers.weights import BaseWeight

Factors = tuple[Tensor, Tensor]
"""A_BRI and B_BOR, whose product is the update."""


class ThinUpdate(Adapter):
    """What an adapter offers whose update is a product of two thin factors."""

    def thin_matrices(self) -> Factors | None:
        """The update as factors; None where a variant's update is more than that, or does not split into matrices."""
        return None


class LowRankForm(ThinUpdate):
    """What an adapter offers that can be given any low-rank update as its own."""

    holds_any_update: ClassVar[bool] = False
    """Whether it is the plain form, into which the updates of other methods are put."""

    def thin(self) -> tuple[Tensor, Tensor, float] | None:
        """(A, B, s) as they are stored, with ΔW = s · B A; None where the variant's update is more than that."""
        raise NotImplementedError

    def as_matrices(self, A: Tensor, B: Tensor) -> Factors:
        """The update that stored factors of the adapter's own shapes make at scaling 1."""
        raise NotImplementedError

    def take_thin(self, A: Tensor, B: Tensor) -> None:
        """Take factors in the stored form; the scaling is 1."""
        raise NotImplementedError

    def take(self, factors: Factors) -> None:
        """Take an update; the scaling is 1."""
        raise NotImplementedError

    @classmethod
    def config_of(cls, like: LayerConfig, ranks: Mapping[str, int], places: Mapping[str, Any]) -> LayerConfig:
        """A config with scaling 1 and these ranks (module path -> rank).

        Args:
            like: where the task, the base and what does not decide the mathematics come from.
            places: the fields that say which modules are adapted.
        """
        raise NotImplementedError


def plain_form() -> type[LowRankForm]:
    """The registered method into whose form any low-rank update can be put."""
    known = (m.implementation for m in methods().values())
    return next(i for i in known if isinstance(i, type) and issubclass(i, LowRankForm) and i.holds_any_update)


@dataclass(frozen=True)
class Kept:
    """One layer's update and what a low-rank form keeps of it.

    Attributes:
        rank: of the form.
        whole: ||ΔW||², the squared Frobenius norm.
        lost: ||ΔW - B A||².
    """

    rank: int
    whole: float
    lost: float

    @property
    def share(self) -> float:
        """The share of ||ΔW||² that is kept (the retained energy)."""
        return 1.0 if self.whole == 0 else 1 - self.lost / self.whole

    @property
    def error(self) -> float:
        """||ΔW - B A|| / ||ΔW||."""
        return 0.0 if self.whole == 0 else math.sqrt(self.lost / self.whole)


@dataclass(frozen=True)
class Retained:
    """Module path -> what was kept there."""

    layers: dict[str, Kept] = field(default_factory=dict)

    @property
    def total(self) -> Kept:
        """All layers as one; its rank is the largest."""
        every = self.layers.values()
        return Kept(max((k.rank for k in every), default=0), math.fsum(k.whole for k in every),
                    math.fsum(k.lost for k in every))  # fmt: skip

    def __str__(self) -> str:
        total = self.total
        return f"{total.share:.2%} of ||ΔW||² kept in {len(self.layers)} layers (relative error {total.error:.3g})"


@torch.no_grad()
def update_of(host: Host, name: str, path: str) -> Tensor:
    """ΔW of an adapter alone on the base, in the canonical layout, at least in float32.

    Raises:
        NotMergeable: its method is no change of the weights, or it changes biases too.
        MergeError: the layer is merged.
    """
    adapter = host.adapter(name)
    if host.merged:
        raise MergeError("adapters are merged into this layer", where=path, got=", ".join(host.merged),
                         fix="call unmerge_adapter() first")  # fmt: skip
    if adapter is None or name in host.biases:
        raise NotMergeable("a trained bias is no low-rank update", where=path, fix='train with bias="none"')
    weight, bias = host.base.read()
    dtype = torch.promote_types(torch.promote_types(weight.dtype, adapter.dtype), torch.float32)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    try:
        with nothing_drawn([adapter]):
            if type(adapter).merged is DeltaWeight.merged and isinstance(adapter, DeltaWeight):
                return adapter.delta(weight).to(dtype)
            after, bias_after = adapter.merged(weight, bias)
    except NotMergeable as error:
        error.where = f"{path}: {error.where}"
        raise
    if bias_after is not bias and not (bias is not None and bias_after is not None and bias_after.equal(bias)):
        raise NotMergeable("the adapter changes the bias too, which a low-rank update cannot hold", where=path,
                           got=type(adapter).__name__)  # fmt: skip
    return (after - weight).to(dtype)


def thin_matrices_of(host: Host, name: str) -> Factors | None:
    """An adapter's update as factors in at least float32, where it has that form."""
    adapter = host.adapter(name)
    if not isinstance(adapter, ThinUpdate) or host.merged or name in host.biases:
        return None
    found = adapter.thin_matrices()
    if found is None:
        return None
    A_BRI, B_BOR = (t.detach().to(torch.promote_types(t.dtype, torch.float32)) for t in found)
    return A_BRI, B_BOR


@torch.no_grad()
def nearest_factors(host: Host, name: str, path: str, rank: float) -> tuple[Factors, Kept]:
    """A layer's update as factors of lower rank: of `rank`, or with that share of its energy (`truncated`).

    Raises:
        NotMergeable, MergeError: as `update_of`.
    """
    # Each group of a convolution gets its part of the rank.
    each = max(1, rank // host.base.groups) if isinstance(rank, int) else rank
    known = thin_matrices_of(host, name)
    if known is not None:
        return recompressed(known, each)
    return truncated(blocks(update_of(host, name, path), host.base), each)


def check_rank_or_share(rank: float) -> None:
    """Refuse what is neither a rank nor a share of the energy.

    Raises:
        ConfigError: no int of at least 1 and no float in (0, 1].
    """
    whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    if not whole and not (isinstance(rank, float) and 0 < rank <= 1):
        raise ConfigError("neither a rank nor a share of the energy", where="rank", got=rank,
                          expected="an int of at least 1, or a float in (0, 1]")  # fmt: skip


def blocks(delta: Tensor, base: BaseWeight) -> Tensor:
    """A canonical update as matrices: ΔW_BOI."""
    if base.kind == "experts":
        return delta
    return delta.reshape(base.groups, delta.shape[0] // base.groups, -1)


def truncated(delta_BOI: Tensor, rank: float, driver: str | None = None) -> tuple[Factors, Kept]:
    """The best approximation of matrices by those of lower rank (Eckart and Young 1936): A = Vᵀ, B = U Σ.

    Args:
        rank: an int is the rank of each matrix (at most its smaller side); a float in (0, 1] is the share of
            ||ΔW||² to keep, by the smallest rank that does so in all matrices together.
        driver: of `torch.linalg.svd` on CUDA.
    """
    U_BOS, S_BS, V_BSI = torch.linalg.svd(delta_BOI, full_matrices=False, driver=driver)
    return _cut(U_BOS, S_BS, V_BSI, rank)


def recompressed(factors: Factors, rank: float) -> tuple[Factors, Kept]:
    """As `truncated` for an update that is given by thin factors, without forming the product."""
    A_BRI, B_BOR = factors
    if A_BRI.shape[1] >= min(A_BRI.shape[2], B_BOR.shape[1]):
        return truncated(B_BOR @ A_BRI, rank)
    left_BOR, left_BRR = torch.linalg.qr(B_BOR)
    right_BIR, right_BRR = torch.linalg.qr(A_BRI.mT)
    U_BRR, S_BR, V_BRR = torch.linalg.svd(left_BRR @ right_BRR.mT)
    return _cut(left_BOR @ U_BRR, S_BR, V_BRR @ right_BIR.mT, rank)


def product_of(factors: Factors) -> float:
    """||B A||², without forming the product."""
    A_BRI, B_BOR = (t.double() for t in factors)
    return float(((B_BOR.mT @ B_BOR) * (A_BRI @ A_BRI.mT)).sum().clamp_min(0))


def _cut(U_BOS: Tensor, S_BS: Tensor, V_BSI: Tensor, rank: float) -> tuple[Factors, Kept]:
    energy_S = S_BS.double().square().sum(0)
    if isinstance(rank, int):
        keep = min(rank, len(energy_S))
    else:
        reached = energy_S.cumsum(0) >= rank * energy_S.sum() * (1 - 1e-12)
        keep = int(reached.nonzero()[0]) + 1
    kept = Kept(keep, float(energy_S.sum()), float(energy_S[keep:].sum()))
    return (V_BSI[:, :keep], U_BOS[:, :, :keep] * S_BS[:, None, :keep]), kept
