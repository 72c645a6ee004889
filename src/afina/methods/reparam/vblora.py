"""VB-LoRA: LoRA whose matrices are put together from short vectors of one bank that all layers share.

    ΔW = B A,   each piece of length v of A's rows and B's columns = Σ_k softmax(top-k of its logits)_k · bank[index_k]

Li et al. 2024, arXiv 2405.15179. With `save_only_topk_weights` a file holds only the chosen vectors' indices and
weights; what is loaded from it cannot train. Trainable: num_vectors · v once, and num_vectors · r · (in + out) / v a
layer. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d, MultiheadAttention, where v divides in · kernel and out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site
from ...core.layers.weights import BaseWeight
from ...errors import CheckpointError, ConfigError
from .adalora import EVERY_PROJECTION
from .low_rank import LowRankDelta

_NAMES = ("vblora_logits_A", "vblora_logits_B")


@dataclass(kw_only=True)
class VBLoRAConfig(LayerConfig):
    """Configuration of VB-LoRA; fields as in the reference.

    Attributes:
        num_vectors: vectors of the bank.
        vector_length: v, numbers of a vector.
        topk: vectors that are mixed for a piece.
        save_only_topk_weights: write a small file, from which no training can go on.
        vblora_dropout: dropout on the layer's input.
        init_vector_bank_bound: bound of the bank's uniform start.
        init_logits_std: standard deviation of the logits' start.
    """

    r: int = bounded(4, ge=1, le=2**20)
    num_vectors: int = bounded(256, ge=2, le=2**31 - 1)
    vector_length: int = bounded(256, ge=1)
    topk: int = bounded(2, ge=1)
    save_only_topk_weights: bool = False
    vblora_dropout: float = bounded(0.0, ge=0, lt=1)
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_vector_bank_bound: float = bounded(0.02, gt=0, le=1e6)
    init_logits_std: float = bounded(0.1, ge=0)

    default_learning_rate: ClassVar[float] = 1e-3
    default_targets: ClassVar[Mapping[str, list[str] | str]] = MappingProxyType(
        {k: v for k, v in EVERY_PROJECTION.items() if k != "roberta"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.topk > self.num_vectors:
            raise ConfigError("more than the bank has vectors", where="topk", got=self.topk,
                              expected=f"<= num_vectors = {self.num_vectors}")  # fmt: skip


class VectorBank(nn.Module):
    """(num_vectors, vector_length), trained."""

    def __init__(self, config: VBLoRAConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        bank = torch.empty(config.num_vectors, config.vector_length, dtype=dtype, device=device)
        bound = config.init_vector_bank_bound
        self.vblora_vector_bank = nn.Parameter(bank.uniform_(-bound, bound))


@register("VBLORA", VBLoRAConfig)
class VBLoRA(LowRankDelta):
    """Logits A: (r, in / v, num_vectors), B: (out / v, r, num_vectors)."""

    prefix = "vblora_"
    kinds = frozenset({"linear", "conv", "attention", "parameter"})

    def __init__(self, site: Site, config: VBLoRAConfig) -> None:
        super().__init__(site, config)
        self.share(site.shared)
        length, self.topk, self.vectors = config.vector_length, config.topk, config.num_vectors
        for size in (self.in_features, self.out_features):
            if size % length:
                raise ConfigError("must divide the layer's inputs and outputs", where=f"vector_length at {site.name}",
                                  got=length, expected=f"a divisor of {size}")  # fmt: skip
        std = config.init_logits_std
        self.vblora_logits_A = site.normal(std, config.r, self.in_features // length, self.vectors)
        self.vblora_logits_B = site.normal(std, self.out_features // length, config.r, self.vectors)
        self.saves_top, self.only_top = config.save_only_topk_weights, False
        self.drop(config.vblora_dropout)

    def _pieces(self, logits: Tensor) -> Tensor:
        """(a, b, num_vectors) -> (a, b, v)"""
        best, index = logits.topk(self.topk, dim=-1)
        bank: Tensor = self.shared.vblora_vector_bank.to(logits.device)
        return (best.softmax(dim=-1)[..., None] * bank[index]).sum(dim=-2)

    def factors(self) -> tuple[Tensor, Tensor]:
        if self.training and self.only_top:
            raise ConfigError("the file holds only the chosen vectors' weights, so this cannot train",
                              where="save_only_topk_weights", fix="train from a file with all logits")  # fmt: skip
        A, B = self._pieces(self.vblora_logits_A), self._pieces(self.vblora_logits_B)
        return A.flatten(1), B.transpose(1, 2).flatten(0, 1)

    @classmethod
    def build_shared(cls, config: VBLoRAConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> nn.Module:
        return VectorBank(config, dtype, next(iter(layers.values())).device)

    # -- on disk: all logits, or the best and their weights, the last of which is the rest to 1 ----------------------

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.saves_top:
            return dict(own)
        out: dict[str, Tensor] = {}
        for name in _NAMES:
            best, index = own[name].topk(self.topk, dim=-1)
            small = torch.uint8 if self.vectors < 2**8 else torch.int16 if self.vectors < 2**15 else torch.int32
            out[f"{name}_topk_indices"] = index.to(small)
            out[f"{name}_topk_weights"] = best.softmax(dim=-1)[..., :-1].contiguous()
        return out

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        if not self.saves_top:
            return self.assign(tensors)
        self.only_top = True
        for name in _NAMES:
            first = tensors[f"{name}_topk_weights"]
            weights = torch.cat([first, 1 - first.sum(-1, keepdim=True)], dim=-1)
            logits = torch.full((*weights.shape[:-1], self.vectors), -torch.inf, dtype=weights.dtype)
            index = tensors[f"{name}_topk_indices"].long()
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < self.vectors:
                raise CheckpointError("an index lies outside the bank", where=name, got=int(index.max()))
            self.assign({name: logits.scatter(-1, index, weights.log())})
