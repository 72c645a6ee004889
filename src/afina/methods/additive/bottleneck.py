"""Bottleneck adapters: a small two-layer network with a residual, after (or beside) the sublayers of every block.

    h' = h + u(h) (Houlsby),   h' = h + u(LN(h + r)) (Pfeiffer),   h' = h + u(r) (parallel), u(x) = s · W_up σ(W_down x)

Houlsby et al. 2019, arXiv 1902.00751 (after attention and feed-forward); Pfeiffer et al. 2020, arXiv 2005.00052 (after
feed-forward only); He et al. 2021, arXiv 2110.04366 (parallel, scaled). h is the sublayer's output, r the residual
stream that h' is added to, LN the model's own normalisation of the sum, nothing in pre-norm models. The places are
AdapterHub's; in training the sublayer's dropout comes after the adapter, not before. On targets that
`core.architectures.SUBLAYERS` does not list, h is the module's output and r its input. Trainable: 2 · dim · width + dim
+ width a place (+ 1 for a learned scaling or dim for one a channel, + dim + 1 for a gate). Not mergeable. Layers: any
module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.config import register
from ...core.hosts.adapter import Activation, Site
from ...core.hosts.view import View
from ...core.inject.targets import layer_number, select
from .bottleneck_config import BottleneckConfig
from .bottleneck_files import open_hub
from .bottleneck_places import ResidualStream, find_places, output_size, take

_NON_LINEARITIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "swish": F.silu, "silu": F.silu, "tanh": torch.tanh, "leakyrelu": F.leaky_relu,
    "linear": lambda x: x, "gelu_new": partial(F.gelu, approximate="tanh"), "sigmoid": torch.sigmoid, "relu6": F.relu6,
    "mish": F.mish, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}  # fmt: skip


@register("BOTTLENECK", BottleneckConfig)
class Bottleneck(Activation):
    """`adapter_down`: dim -> width, `adapter_up`: width -> dim, with biases."""

    prefix = "adapter_"
    kinds = frozenset({"linear", "embedding", "module"})
    open_foreign = staticmethod(open_hub)

    @classmethod
    def check_model(cls, model: nn.Module, config: BottleneckConfig) -> None:
        if not config.is_stream:
            known = find_places(model, config)
            config.places, config.streams = {n: known[n] for n in select(model, config) if n in known}, {}

    def __init__(self, site: Site, config: BottleneckConfig) -> None:
        super().__init__(site, config)
        self.place, self.streams = config.places.get(site.name), config.streams
        self.parallel, self.after = config.placement == "parallel", config.rule("original_ln_after")
        self.joined = self.place is not None and config.rule("original_ln_before") and not self.parallel
        self.residual, self.depth = config.residual_before_ln, config.stochastic_depth
        dim = output_size(site, self.parallel) if self.place is None else self.place.dim
        number = layer_number(f"{site.name}.") if self.place is None else self.place.layer
        width = max(1, int(dim // config.factor(number)))
        options = {"device": site.device, "dtype": site.dtype}
        self.adapter_down, self.adapter_up = nn.Linear(dim, width, **options), nn.Linear(width, dim, **options)  # type: ignore[arg-type]
        self.activation = _NON_LINEARITIES[config.non_linearity]
        self.factor = 1.0 if isinstance(config.scaling, str) else config.scaling
        learned = {"learned": 1, "channel": dim}.get(str(config.scaling))
        self.scaling = None if learned is None else site.full(1.0, learned)
        self.gate = nn.Linear(dim, 1, **options) if config.use_gating else None  # type: ignore[arg-type]
        self.dropout = nn.Dropout(config.dropout)
        self._start(config.init_weights)

    def _start(self, how: str) -> None:
        std = 0.01 if how == "houlsby" else 0.02
        for layer in (self.adapter_down, self.adapter_up, *([] if self.gate is None else [self.gate])):
            nn.init.zeros_(layer.bias)
            if how == "houlsby":
                nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            else:
                nn.init.normal_(layer.weight, std=std)
        if how == "mam_adapter":
            nn.init.kaiming_uniform_(self.adapter_down.weight, a=5**0.5)
            nn.init.zeros_(self.adapter_up.weight)

    def forward(self, inner: View, x: Any) -> Any:
        if self.place is not None and self.place.at_norm:
            return self._at_norm(inner, x)
        out = inner(x)
        h: Tensor = out[0] if isinstance(out, tuple) else out
        source = kept = h
        if self.parallel:
            source = self._stream(x, h)
        elif self.joined:
            source = h + self._stream(x, h)
            # The model adds the stream once by itself.
            kept = h if self.residual is True or not self.after else source
        changed = kept + self._network(source).to(h.dtype)
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    def _at_norm(self, inner: View, total: Tensor) -> Tensor:
        """On LN, whose input is h + r; an adapter whose output is final takes its place."""
        normed: Tensor = inner(total)
        changed = (normed if self.residual is False else total) + self._network(normed).to(normed.dtype)
        if not self.after:
            return changed
        again: Tensor = inner(changed if self.residual is True else changed + self._stream(total, changed))
        return again

    def _stream(self, x: Tensor, like: Tensor) -> Tensor:
        found = x if self.place is None else take(self.streams, self.place.stream)
        return found.to(like.dtype)

    def _network(self, source: Tensor) -> Tensor:
        """s · W_up σ(W_down x), gated; (batch, ..., dim), in the adapter's dtype."""
        x = source.to(self.dtype)
        up = self.adapter_up(self.activation(self.adapter_down(x)))
        if self.training and self.depth:
            rows = torch.full((x.shape[0], *[1] * (x.dim() - 1)), 1 - self.depth, dtype=x.dtype, device=x.device)
            up = up * torch.bernoulli(rows) / (1 - self.depth)
        up = self.dropout(up * (self.factor if self.scaling is None else self.scaling))
        if self.gate is not None:
            up = up * torch.sigmoid(self.gate(x)).mean(dim=1, keepdim=True)
        out: Tensor = up
        return out


@Bottleneck.variant(lambda config: config.is_stream)
class _Stream(ResidualStream):
    """The companion, under the same adapter name."""
