"""The combination of adapters: what can be asked for, and what a method offers for it; `weighted.py` does the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...errors import ConfigError
from ..config import LayerConfig
from ..hosts.adapter import Adapter
from . import task_vectors

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
