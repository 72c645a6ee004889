"""BitFit: train the bias terms, and nothing else.

    y = W x + b',   b' a trained copy of b

Ben Zaken, Goldberg, Ravfogel 2021, arXiv 2106.10199. Without targets, every module that has a bias. Trainable: the
biases' sizes. Mergeable. Layers: any with a bias (Linear, Conv1D, Conv1d/2d/3d, attention, normalisations).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.config import LayerConfig, register
from ...core.hosts.adapter import Adapter, Site
from ...core.inject.targets import biased
from ...core.layers.sharded import whole
from ...errors import TargetError


@dataclass(kw_only=True)
class BitFitConfig(LayerConfig):
    """Configuration of BitFit; `target_modules=None` means all modules that have a bias."""

    default_learning_rate: ClassVar[float] = 1e-3
    rate_exponent: ClassVar[float] = 0.65

    def own_targets(self, model: Any) -> list[str]:
        found = biased(model)
        if not found:
            raise TargetError("no layer of the model has a bias to train", where=type(model).__name__,
                              fix="choose another method, e.g. LayerNorm tuning")  # fmt: skip
        return found


@register("BITFIT", BitFitConfig)
class BitFit(Adapter):
    """`bias`: (out,)."""

    steady: ClassVar[bool] = True
    kinds = frozenset({"linear", "conv", "attention", "module"})

    def __init__(self, site: Site, config: BitFitConfig) -> None:
        super().__init__(site, config)
        base = site.base.bias
        if base is None:
            raise TargetError("the layer has no bias to train", where=site.name, fix="leave target_modules out")
        # The start is the base's bias, also when a file is about to replace it: its shape and values are cheap.
        self.bias = nn.Parameter(whole(base).detach().to(site.dtype, copy=True).to(site.device))

    def cut_dims(self) -> Mapping[str, tuple[int | None, int | None]]:
        return {"bias": (0, None)}

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight, self.bias
