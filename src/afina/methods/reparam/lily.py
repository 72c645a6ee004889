"""Lily: neighbouring layers share A, all layers share a set of experts B_k, and a router in each layer mixes those.

    y = W x + scaling · (Σ_k p_k B_k) A x,   p = mean over all tokens of softmax(R A x)

Zhong et al. 2024, arXiv 2407.09946. Layers share where the last part of their path and their shape are the same: A in
runs of `stride_A`, the experts throughout. As in the reference, the mean is over the whole batch, padding included, so
an output depends a little on the other rows; where rows choose their adapters (`adapter_names`), each is routed alone.
Its files hold the shared tensors once for every layer. Trainable: r · in
for each A, num_B · r · out for each set of experts, r · num_B a layer. Not mergeable. Layers: Linear, Conv1D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Activation, Site
from ...core.hosts.view import View
from ...core.layers.sharded import shared_like
from ...core.layers.weights import BaseWeight


@dataclass(kw_only=True)
class LilyConfig(LayerConfig):
    """Configuration of Lily; fields as in the reference.

    Attributes:
        stride_A: neighbouring layers that share one A.
        num_B: experts of a set.
        scaling: factor of the update.
    """

    r: int = bounded(32, ge=1, le=2**20)
    stride_A: int = bounded(1, ge=1)
    num_B: int = bounded(2, ge=1)
    scaling: float = 1.0
    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 1e-3


class Experts(nn.Module):
    """`A_i`: (r, in), `B_i`: (num_B · r, out), and which of them each layer uses."""

    on_disk = False

    def __init__(self, config: LilyConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> None:
        super().__init__()
        categories: dict[tuple[Any, ...], list[str]] = {}
        for name, base in layers.items():
            categories.setdefault((name.rpartition(".")[2], *base.shape), []).append(name)
        self.used: dict[str, tuple[str, str]] = {}
        for number, names in enumerate(categories.values()):
            base = layers[names[0]]
            out, width = base.shape
            B = nn.Parameter(torch.zeros(config.num_B * config.r, out, dtype=dtype, device=base.device))
            if not config.init_weights:
                nn.init.normal_(B, std=1 / config.r)
            self.register_parameter(f"B_{number}", B)
            for place, name in enumerate(names):
                key = f"A_{number}_{place // config.stride_A}"
                if key not in self._parameters:
                    A = torch.empty(config.r, width, dtype=dtype, device=base.device)
                    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
                    self.register_parameter(key, nn.Parameter(A))
                self.used[name] = key, f"B_{number}"


@register("LILY", LilyConfig)
class Lily(Activation):
    """`lily_router`: (num_B, r)."""

    prefix = "lily_"
    kinds = frozenset({"linear"})
    disk_names: ClassVar[Mapping[str, str]] = {"lily_router": "lily_router.weight"}
    shared: Any

    def __init__(self, site: Site, config: LilyConfig) -> None:
        super().__init__(site, config)
        self.share(site.shared)
        self.keys, self.scaling, self.count = self.shared.used[site.name], config.scaling, config.num_B
        self.initial_scaling = self.scaling
        self.lily_router = site.empty(config.num_B, config.r)
        nn.init.kaiming_uniform_(self.lily_router, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A: (r, in) and the experts below each other: (num_B · r, out); both belong to several layers."""
        return getattr(self.shared, self.keys[0]), getattr(self.shared, self.keys[1])  # under FSDP1 plain tensors

    def forward(self, inner: View, x: Any) -> Any:
        A, B = (p.to(x.device) for p in self.factors())
        hidden = F.linear(x, A)
        # The mean over the whole batch; where rows have adapters of their own, over each row alone.
        rows = hidden.reshape(inner.rows or 1, -1, hidden.shape[-1])
        share_NK = torch.softmax(F.linear(rows, self.lily_router), dim=-1).mean(1)
        mixed_NRO = torch.einsum("nk,kro->nro", share_NK, B.view(self.count, -1, B.shape[1]).to(share_NK.dtype))
        added = (rows @ mixed_NRO).reshape(*hidden.shape[:-1], -1)
        return inner(x) + self.scaling * added

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        A, B = (p.detach() for p in self.factors())
        return {**super().disk_state(own), "lily_A.weight": A, "lily_B.weight": B}

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for parameter, name in zip(self.factors(), ("lily_A.weight", "lily_B.weight"), strict=True):
                parameter.copy_(shared_like(parameter, tensors[name]))
        super().load_disk_state(tensors)

    @classmethod
    def build_shared(cls, config: LilyConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> nn.Module:
        return Experts(config, layers, dtype)
