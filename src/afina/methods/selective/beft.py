"""BEFT: add a trained bias to the outputs of chosen layers (the value projections), and nothing else.

    y = W x + b + b'

2025, arXiv 2509.15974. Trainable: out a layer. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from ...core.config import LayerConfig, register
from ...core.hosts.adapter import Adapter, Site
from ...core.hosts.view import View

_LLAMAS = ("llama", "llama4", "mistral", "mixtral", "phi", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3")
_VALUE = {
    "v_proj": ("opt", "gptj", "gpt_neo", "bart", *_LLAMAS),
    "v": ("t5", "mt5"),
    "value": ("bert", "roberta"),
    "value_proj": ("deberta-v2",),
}


@dataclass(kw_only=True)
class BeftConfig(LayerConfig):
    """Configuration of BEFT; fields as in the reference."""

    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 1e-2
    default_targets: ClassVar[Mapping[str, list[str] | str]] = MappingProxyType(
        {model: [name] for name, models in _VALUE.items() for model in models}
    )


@register("BEFT", BeftConfig)
class Beft(Adapter):
    """`beft_bias`: (1, out)."""

    steady: ClassVar[bool] = True
    prefix = "beft_"
    kinds = frozenset({"linear", "conv"})

    def __init__(self, site: Site, config: BeftConfig) -> None:
        super().__init__(site, config)
        out = site.base.out_features
        self.beft_bias = site.zeros(1, out) if config.init_weights else site.normal(0.02, 1, out)
        self.spread = (-1, *(1 for _ in site.base.shape[2:]))

    def forward(self, inner: View, x: Any) -> Any:
        return inner(x) + self.beft_bias.view(self.spread)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        own = self.beft_bias.flatten()
        return weight, own if bias is None else bias + own
