"""The combination of adapters: what can be asked for, and what a method offers for it; `combine.py` does the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...errors import ConfigError
from ..config import LayerConfig, PeftConfig
from ..hosts.adapter import Adapter
from . import task_vectors

if TYPE_CHECKING:
    from .low_rank_form import Retained

TYPES = ("linear", "cat", "svd", *(k for p in task_vectors.PRUNING for k in (p, f"{p}_svd")))


class Vectors(Adapter):
    """What an adapter offers whose parameters themselves combine linearly, such as factors of activations."""

    @classmethod
    def combined_config(cls, configs: Sequence[Any]) -> LayerConfig:
        """The config of a combination; its targets are those of all."""
        raise NotImplementedError


@dataclass(frozen=True)
class Combination:
    """What is done with the updates: the arguments of `add_weighted_adapter`, checked."""

    kind: str
    density: float | None
    majority: str
    rank: int | None
    clamp: float | None
    driver: str | None

    def __post_init__(self) -> None:
        if self.kind not in TYPES:
            raise ConfigError("no such combination", where="combination_type", got=self.kind, expected=", ".join(TYPES))
        task_vectors.check_density(self.plain, self.density, self.majority)
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise ConfigError("not a rank", where="svd_rank", got=self.rank, expected="an int of at least 1")
        if self.clamp is not None and not 0 <= self.clamp <= 1:
            raise ConfigError("not a quantile", where="svd_clamp", got=self.clamp, expected="0 to 1")

    @property
    def by_svd(self) -> bool:
        """Whether the updates are combined, not their factors."""
        return self.kind.endswith("svd")

    @property
    def plain(self) -> str:
        """The arithmetic behind it."""
        return self.kind.removesuffix("svd").removesuffix("_") or "linear"

    def of(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """One tensor from several."""
        return task_vectors.combine(tensors, weights, self.plain, self.density, self.majority)


class Combining(nn.Module):
    """A model whose adapters can be combined."""

    if TYPE_CHECKING:
        model: nn.Module
        peft_config: dict[str, PeftConfig]

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: str = "total",
    ) -> Retained:
        """Combine adapters into a new one, neither active nor trainable.

        Args:
            adapters: names of loaded adapters.
            weights: a finite number for each.
            adapter_name: the new one's name.
            combination_type: `cat` puts the factors side by side and `svd` cuts the weighted sum of the updates ΔW to
                `svd_rank`: both mean that sum. `linear`, `ties`, `dare_linear`, `dare_ties` and `magnitude_prune`
                combine A and B each by themselves, which does not; with `_svd` they combine the updates. The `svd`
                kinds take adapters of any method with a ΔW. IA³'s factors are always combined linearly.
            svd_rank: the largest rank of the adapters if None.
            svd_clamp: clamp the factors to this quantile of theirs.
            svd_full_matrices: accepted for the reference's sake; the result is the same.
            svd_driver: for `torch.linalg.svd`, on GPUs.
            density: the share of elements that `ties`, `dare` and `magnitude_prune` keep.
            majority_sign_method: of `ties`: "total" or "frequency".

        Returns:
            For each layer, how much of ||ΔW||² the new adapter keeps: for the `svd` kinds of what was combined, for the
            others of the weighted sum.

        Raises:
            NameTakenError, ConfigError, NotMergeable, MergeError: nothing was changed.
        """
        what = Combination(combination_type, density, majority_sign_method, svd_rank, svd_clamp, svd_driver)
        from .weighted import add_weighted_adapter

        return add_weighted_adapter(self, self.model, self.peft_config, adapters, weights, adapter_name, what)
