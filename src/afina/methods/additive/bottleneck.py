"""Bottleneck adapters: a small two-layer network with a residual, after (or beside) the sublayers of every block.

    h' = h + s · W_up σ(W_down h) (sequential),   h' = h + s · W_up σ(W_down x) (parallel; x enters the sublayer)

Houlsby et al. 2019, arXiv 1902.00751 (after attention and feed-forward); Pfeiffer et al. 2020, arXiv 2005.00052 (after
feed-forward only); He et al. 2021, arXiv 2110.04366 (parallel, scaled). An adapter sits on any module whose output is
a tensor or starts with one. Trainable: 2 · dim · width + dim + width a place (+ 1 for a learned scaling, + dim + 1 for
a gate). Not mergeable. Layers: any module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.adapter import Activation, Site
from ...core.config import LayerConfig, bounded, register
from ...core.targets import sublayers
from ...core.view import View
from ...errors import TargetError

_NON_LINEARITIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "swish": F.silu, "silu": F.silu, "tanh": torch.tanh, "leakyrelu": F.leaky_relu,
    "linear": lambda x: x,
}  # fmt: skip


@dataclass(kw_only=True)
class BottleneckConfig(LayerConfig):
    """Configuration of bottleneck adapters.

    Attributes:
        placement: after which sublayers, when no targets are named: both ("houlsby"), feed-forward ("pfeiffer"), or
            beside the feed-forward ("parallel").
        reduction_factor: width = dim / reduction_factor, at least 1.
        scaling: s; "learned" makes it a trained number that starts at 1.
        use_gating: multiply the network's output with a trained gate, averaged over the sequence.
    """

    placement: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    reduction_factor: int | float = bounded(16, gt=0)
    non_linearity: Literal["relu", "gelu", "swish", "silu", "tanh", "leakyrelu", "linear"] = "relu"
    scaling: float | Literal["learned"] = 1.0
    use_gating: bool = False
    dropout: float = bounded(0.0, ge=0, lt=1)
    init_weights: Literal["bert", "mam_adapter", "houlsby"] = "mam_adapter"

    default_learning_rate: ClassVar[float] = 1e-3

    def own_targets(self, model: Any) -> list[str]:
        attention, feed_forward = sublayers(model)
        return attention + feed_forward if self.placement == "houlsby" else feed_forward


@register("BOTTLENECK", BottleneckConfig)
class Bottleneck(Activation):
    """`adapter_down`: dim -> width, `adapter_up`: width -> dim, with biases."""

    prefix = "adapter_"
    kinds = frozenset({"linear", "embedding", "module"})

    def __init__(self, site: Site, config: BottleneckConfig) -> None:
        super().__init__(site, config)
        dim = output_size(site, config.placement == "parallel")
        width = max(1, int(dim // config.reduction_factor))
        options = {"device": site.device, "dtype": site.dtype}
        self.adapter_down, self.adapter_up = nn.Linear(dim, width, **options), nn.Linear(width, dim, **options)  # type: ignore[arg-type]
        self.activation = _NON_LINEARITIES[config.non_linearity]
        learned = config.scaling == "learned"
        self.scaling = site.full(1.0, 1) if learned else None
        self.factor = 1.0 if isinstance(config.scaling, str) else config.scaling
        self.gate = nn.Linear(dim, 1, **options) if config.use_gating else None  # type: ignore[arg-type]
        self.dropout, self.parallel = nn.Dropout(config.dropout), config.placement == "parallel"
        self._start(config.init_weights)

    def _start(self, how: str) -> None:
        for layer in (self.adapter_down, self.adapter_up):
            nn.init.zeros_(layer.bias)
            if how == "houlsby":
                nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
            else:
                nn.init.normal_(layer.weight, std=0.02)
        if how == "mam_adapter":
            nn.init.kaiming_uniform_(self.adapter_down.weight, a=5**0.5)
            nn.init.zeros_(self.adapter_up.weight)

    def forward(self, inner: View, x: Any) -> Any:
        out = inner(x)
        first: Tensor = out[0] if isinstance(out, tuple) else out
        source = x if self.parallel else first
        source = source.to(self.dtype)
        up = self.adapter_up(self.activation(self.adapter_down(source)))
        up = self.dropout(up * (self.factor if self.scaling is None else self.scaling))
        if self.gate is not None:
            up = up * torch.sigmoid(self.gate(source)).mean(dim=1, keepdim=True)
        changed = first + up.to(first.dtype)
        return (changed, *out[1:]) if isinstance(out, tuple) else changed


def output_size(site: Site, of_input: bool = False) -> int:
    """The width of what a module gives (or takes), found from its layers.

    Raises:
        TargetError: it has no linear layer to tell.
    """
    base = site.base
    if base.kind != "module":
        return base.in_features if of_input else base.out_features
    linear = [m for m in base.module.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    if not linear:
        norm = getattr(base.module, "weight", None)
        if isinstance(norm, Tensor) and norm.dim() == 1:
            return norm.numel()
        raise TargetError("the module's width is not known", where=site.name, fix="adapt the layer inside it")
    chosen: Any = linear[0] if of_input else linear[-1]
    size = getattr(chosen, "in_features" if of_input else "out_features", None)
    return int(size if size is not None else (chosen.nx if of_input else chosen.nf))
