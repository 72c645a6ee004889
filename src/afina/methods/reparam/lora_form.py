"""LoRA as the form that other low-rank updates are put into: factors out, factors in, and the config for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.combine.low_rank_form import Factors, LowRankForm
from ...core.config import LayerConfig
from ...core.hosts.view import View
from ...core.layers.sharded import is_sharded
from .lora_config import LoraConfig
from .lora_files import LoraFiles
from .updated_experts import updated


class LoraForm(LoraFiles, LowRankForm):
    """Conversions between LoRA's stored factors and plain matrices."""

    holds_any_update = True
    scaling: float
    times: int
    groups: int
    lora_bias: nn.Parameter | None

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) as they are stored."""
        raise NotImplementedError

    @property
    def is_product(self) -> bool:
        """Whether ΔW = s · B A is all that the adapter does; not so for the variants with mathematics of their own."""
        raise NotImplementedError

    def thin(self) -> tuple[Tensor, Tensor, float] | None:
        return (*self.factors(), float(self.scaling)) if self.is_product and self.lora_bias is None else None

    def thin_matrices(self) -> Factors | None:
        thin = self.thin()
        if thin is None or self.groups > 1:
            return None
        A, B, scaling = thin
        return self.as_matrices(A, scaling * B)

    def as_matrices(self, A: Tensor, B: Tensor) -> Factors:
        if not self.experts:
            return A.flatten(1)[None], self.times * B.flatten(1)[None]
        count = A.shape[0] // self.r
        # Experts lie one below the other in A; in B they are the fastest axis, as the reference stores them.
        return A.view(count, self.r, -1), B.view(B.shape[0], self.r, count).permute(2, 0, 1)

    def among_experts(self, inner: View, x: Any) -> Any:
        """The experts' output with their updates, which are not formed."""
        weight, bias = inner.params()
        A_ERI, B_EOR = self.as_matrices(*self.factors())
        if is_sharded(weight) or len(A_ERI) != len(weight):
            return inner.apply(x, *self.merged(weight, bias))
        return inner.apply(x, updated(weight, float(self.scaling) * B_EOR, A_ERI), bias)

    def take_thin(self, A: Tensor, B: Tensor) -> None:
        self.assign({"lora_A": A, "lora_B": B})

    def take(self, factors: Factors) -> None:
        A_BRI, B_BOR = factors
        # Ranks of zeros, where another parameter of the same module has more.
        missing = self.r // self.groups - A_BRI.shape[1]
        A_BRI, B_BOR = F.pad(A_BRI, (0, 0, 0, missing)), F.pad(B_BOR, (0, missing))
        if self.experts:
            A, B = A_BRI.flatten(0, 1), B_BOR.permute(1, 2, 0).flatten(1)
        elif self.groups > 1:
            # A sees every input channel: each group's factor among zeros. B is grouped, so it just follows.
            A = torch.cat([self._among_zeros(A_RI, g) for g, A_RI in enumerate(A_BRI)])
            B = B_BOR.flatten(0, 1)
        else:
            A, B = A_BRI[0], B_BOR[0]
        self.take_thin(A.reshape(self.lora_A.shape), B.reshape(self.lora_B.shape) / self.times)

    def _among_zeros(self, A_RI: Tensor, group: int) -> Tensor:
        out = A_RI.new_zeros(len(A_RI), self.groups, A_RI.shape[1])
        out[:, group] = A_RI
        return out.flatten(1)

    @classmethod
    def config_of(cls, like: LayerConfig, ranks: Mapping[str, int], places: Mapping[str, Any]) -> LoraConfig:
        rank = max(ranks.values())
        # Longer names first: a key also matches every module whose path ends so.
        own = {n for n, r in ranks.items() if r != rank}
        own |= {n for n in ranks for k in own if n.endswith(f".{k}")}
        other = {n: ranks[n] for n in sorted(own, key=lambda n: (-len(n), n))}
        same = {k: getattr(like, k) for k in ("task_type", "base_model_name_or_path", "revision", "auto_mapping")}
        if isinstance(like, LoraConfig):
            same |= {"lora_dropout": like.lora_dropout, "fan_in_fan_out": like.fan_in_fan_out}
        return LoraConfig(r=rank, lora_alpha=rank, rank_pattern=other, alpha_pattern=dict(other),
                          modules_to_save=like.modules_to_save, **same, **places)  # fmt: skip
