"""How LoRA's factors start and how they are written: the frozen start pair, and the layouts of the reference.

A start that the paper subtracts from W is kept as a frozen pair (A0, B0) and written as ranks r..2r of plain LoRA.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.hosts.adapter import DeltaWeight, Site
from ...core.hosts.replacement import Tied
from .. import starts
from .lora_config import LoraConfig


class LoraFiles(DeltaWeight):
    """LoRA's factors without their mathematics."""

    r: int
    scaling: float
    embedding: bool
    experts: bool
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    pair: tuple[str, str] | None
    late_start: Callable[[], Any] | None
    start_name: bool | str
    untrained: frozenset[str]
    times: int
    counted_once: bool

    @property
    def rank_dims(self) -> Mapping[str, int]:  # type: ignore[override]
        """Stacked experts and groups have their ranks interleaved with something else."""
        plain = self.lora_A.shape[0] == self.lora_B.shape[1]
        return {"lora_A": 0, "lora_B": 1} if plain and self.pair is None and not self.experts else {}

    def _start(self, site: Site, config: LoraConfig) -> None:
        if self.lora_A.is_meta:
            if starts.subtracts(config.init_lora_weights) and not self.embedding:
                self._hold_pair(torch.empty_like(self.lora_A), torch.empty_like(self.lora_B))
                self.late_start = lambda: starts.start(config, site, self.r, self.scaling)
            return
        A, B = self.lora_A, self.lora_B
        if self.embedding and config.init_lora_weights is not False:
            nn.init.zeros_(A)
            nn.init.normal_(B)
            return
        start = starts.start(config, site, self.r, self.scaling)
        if start is not None:
            values = start.A_RI.to(A.dtype), start.B_OR.to(B.dtype)
            self.lora_A, self.lora_B = (nn.Parameter(v.clone().contiguous().to(site.base.device)) for v in values)
            if start.subtract:
                self._hold_pair(self.lora_A.detach().clone(), self.lora_B.detach().clone())
            return
        if config.init_lora_weights == "gaussian":
            nn.init.normal_(A, std=1 / self.r)
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        if config.init_lora_weights is False:
            nn.init.normal_(B, std=1 / self.r)
        else:
            nn.init.zeros_(B)

    def _hold_pair(self, A0: Tensor, B0: Tensor) -> None:
        self.lora_A0, self.lora_B0 = nn.Parameter(A0, requires_grad=False), nn.Parameter(B0, requires_grad=False)
        self.pair = ("lora_A0", "lora_B0")

    @property
    def disk_names(self) -> Mapping[str, str]:  # type: ignore[override]
        """Embeddings have names of their own; a start pair is written as ranks r..2r of A and B."""
        if self.embedding:
            return {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B", "lora_bias": "lora_embedding_B.bias"}
        return {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "lora_bias": "lora_B.bias"}

    def frozen(self) -> frozenset[str]:
        return frozenset(self.pair or ()) | self.untrained

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.rank_dims and own["lora_A"].shape[0] > self.r:
            # Padded for hot-swapping.
            own = {**own, "lora_A": own["lora_A"][: self.r], "lora_B": own["lora_B"][:, : self.r]}
        if self.pair is None:
            return super().disk_state(own)
        rest = {n: t for n, t in own.items() if n not in ("lora_A0", "lora_B0")}
        rest["lora_A"] = torch.cat([own["lora_A"], own["lora_A0"]])
        rest["lora_B"] = torch.cat([own["lora_B"], -own["lora_B0"]], dim=1)
        return super().disk_state(rest)

    def disk_shapes(self, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        shapes = super().disk_shapes(found)
        if self.pair is not None and found.get("lora_A.weight", ())[:1] == (self.r,):
            # A file of the reference without the start, which is computed again from the base.
            starts.refuse_without_start(self.start_name, "init_lora_weights")
            shapes |= {"lora_A.weight": tuple(self.lora_A.shape), "lora_B.weight": tuple(self.lora_B.shape)}
        return shapes

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        if self.times == 2 and self.counted_once and "lora_B.weight" in tensors:
            tensors = {**tensors, "lora_B.weight": tensors["lora_B.weight"] / 2}
        A, B = tensors.get("lora_A.weight"), tensors.get("lora_B.weight")
        late, self.late_start = self.late_start, None
        if self.pair is None or A is None or B is None or A.shape[0] == self.r:
            if late is not None:
                start = late()
                self.assign({"lora_A0": start.A_RI, "lora_B0": start.B_OR})
            own = {o: d for o, d in self.disk_names.items() if d in tensors}
            known = {n: n for n in self.state_dict() if n not in self.disk_names and n in tensors}
            return self.assign({o: tensors[d] for o, d in (own | known).items()})
        rest = {n: t for n, t in tensors.items() if n not in ("lora_A.weight", "lora_B.weight")}
        own_names = {d: o for o, d in self.disk_names.items()}
        self.assign({own_names.get(n, n): t for n, t in rest.items()})
        self.assign(
            {"lora_A": A[: self.r], "lora_A0": A[self.r :], "lora_B": B[:, : self.r], "lora_B0": -B[:, self.r :]}
        )

    def made_by(self, config: Any) -> Any:
        """The config with the start whose pair is held. Scripts write `init_lora_weights = True` into the config of a
        model before they save its start, as the reference asks them to."""
        if self.pair is None or starts.subtracts(config.init_lora_weights):
            return config
        config = copy.copy(config)
        config.init_lora_weights = self.start_name
        return config

    @classmethod
    def disk_config(cls, config: Any) -> dict[str, Any]:
        """A start that was subtracted is written as plain LoRA of twice the rank, which every reader understands."""
        values: dict[str, Any] = config.to_dict()
        if starts.subtracts(config.init_lora_weights):
            grow = math.sqrt(2) if config.use_rslora else 2
            values |= {
                "init_lora_weights": True, "r": 2 * config.r, "lora_alpha": grow * config.lora_alpha,
                "rank_pattern": {k: 2 * v for k, v in config.rank_pattern.items()},
                "alpha_pattern": {k: grow * v for k, v in config.alpha_pattern.items()},
            }  # fmt: skip
        return values


class TiedLora(Tied):
    """The embedding's update on what shares its weight; stored once more, of a head as its own A = Bᵀ and B = Aᵀ."""

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        source = self.sources[0]
        A, B = source.get_parameter("lora_A"), source.get_parameter("lora_B")
        if self.on_embedding:
            return {"lora_embedding_A": A, "lora_embedding_B": B}
        return {"lora_A.weight": B.T, "lora_B.weight": A.T}

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The embedding's adapter has them."""
