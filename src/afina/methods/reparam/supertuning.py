"""SuperTuning: train a difference at the largest (or smallest) weights, if wanted with LoRA for the rest.

    W' = W + Δ + (alpha / r) · B A,   Δ zero outside the (1 - sparsity) · out · in weights of largest |W|

2026, arXiv 2607.09287. Trainable: (1 - sparsity) · out · in, + r (out + in). Mergeable. Layers: Linear, Conv1D,
attention, 2-D parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import DeltaWeight, Site


@dataclass(kw_only=True)
class SupertuningConfig(LayerConfig):
    """Configuration of SuperTuning; fields as in the reference.

    Attributes:
        sparsity: share of a layer's weights that have no difference of their own.
        select_top: train at the largest weights; False at the smallest.
        r: rank of the LoRA for the rest; None for none.
        lora_alpha: alpha of that; 2 r if None.
        lora_dropout: dropout on the layer's input.
        save_precomputed_indices: store the places; otherwise they are found in the base again.
    """

    sparsity: float = bounded(0.99, ge=0, lt=1)
    select_top: bool = True
    r: int | None = bounded(None, ge=1)
    lora_alpha: float | None = bounded(None, gt=0)
    lora_dropout: float = bounded(0.0, ge=0, lt=1)
    init_weights: bool = True
    save_precomputed_indices: bool = True

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "lora_alpha": ("r", ...),
    }
    default_learning_rate: ClassVar[float] = 3e-4


@register("SUPERTUNING", SupertuningConfig)
class Supertuning(DeltaWeight):
    """`supertuning_values`: (n,); `supertuning_indices`: (n,) positions in the flattened weight, int32."""

    steady: ClassVar[bool] = True
    prefix = "supertuning_"
    kinds = frozenset({"linear", "attention", "parameter"})
    disk_names: ClassVar[Mapping[str, str]] = {
        "supertuning_lora_A": "supertuning_lora_A.weight", "supertuning_lora_B": "supertuning_lora_B.weight",
    }  # fmt: skip

    def __init__(self, site: Site, config: SupertuningConfig) -> None:
        super().__init__(site, config)
        out, width = site.base.shape
        count = max(1, int((1 - config.sparsity) * out * width))
        self.supertuning_values = site.zeros(count) if config.init_weights else site.normal(0.02, count)
        saved = config.save_precomputed_indices
        if site.device.type == "meta" and saved:
            indices = torch.empty(count, dtype=torch.int32, device="meta")
        else:
            scores = site.base.read()[0].detach().abs().flatten()
            indices = scores.topk(count, largest=config.select_top).indices.to(torch.int32)
        self.register_buffer("supertuning_indices", indices, persistent=saved)
        self.supertuning_lora_A: nn.Parameter | None = None
        self.supertuning_lora_B: nn.Parameter | None = None
        if config.r is not None:
            # Without an alpha the reference takes 2 r.
            self.scaling = (config.lora_alpha or 2 * config.r) / config.r
            self.supertuning_lora_A, self.supertuning_lora_B = site.empty(config.r, width), site.zeros(out, config.r)
            nn.init.kaiming_uniform_(self.supertuning_lora_A, a=math.sqrt(5))
        self.drop(config.lora_dropout)

    def delta(self, weight: Tensor) -> Tensor:
        places = self.get_buffer("supertuning_indices").long()
        out = weight.new_zeros(weight.numel()).index_copy(0, places, self.supertuning_values).view(weight.shape)
        if self.supertuning_lora_A is None or self.supertuning_lora_B is None:
            return out
        return out + self.scaling * (self.supertuning_lora_B @ self.supertuning_lora_A)
