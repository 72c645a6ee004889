"""The configuration of bottleneck adapters: `bottleneck.py` has the mathematics."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ...core.config import LayerConfig, bounded, extension
from ...errors import ConfigError
from .bottleneck_places import default_targets, idle_options

_PLACEMENTS: Mapping[str, frozenset[str]] = {
    "houlsby": frozenset({"mh_adapter", "output_adapter", "original_ln_after"}),
    "pfeiffer": frozenset({"output_adapter", "original_ln_before", "original_ln_after"}),
    "parallel": frozenset({"output_adapter", "original_ln_after"}),
}


@dataclass(kw_only=True)
class BottleneckConfig(LayerConfig):
    """Configuration of bottleneck adapters; the fields after `leave_out` override what the placement says of them.

    Attributes:
        placement: after which sublayers, when no targets are named: both ("houlsby"), feed-forward ("pfeiffer"), or
            beside the feed-forward ("parallel").
        reduction_factor: width = dim / reduction_factor, at least 1; or one for each layer's number, and "default".
        non_linearity: σ between the two layers of the network.
        scaling: s; "learned" makes it a trained number that starts at 1, "channel" one for each element.
        use_gating: multiply the network's output with a trained gate, averaged over the sequence.
        dropout: dropout on what the network gives.
        init_weights: "mam_adapter" starts without changing the outputs; "bert" (N(0, 0.02²)) and "houlsby" (N(0,
            0.01²), cut off at two deviations) nearly so.
        stochastic_depth: probability of leaving a row's adapter out in training.
        leave_out: numbers of layers without adapters, counted through encoder and decoder.
        mh_adapter, output_adapter, cross_adapter: adapt attention, feed-forward, cross-attention.
        original_ln_before: u takes LN(h + r) instead of h.
        original_ln_after: what the adapter gives is added to r and normalised; otherwise it is final.
        residual_before_ln: what u is added to after LN: h (True), h + r ("post_add"), LN(h + r) (False).
    """

    placement: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    reduction_factor: int | float | dict[str, float] = bounded(16, gt=0)
    non_linearity: Literal["relu", "gelu", "gelu_new", "quick_gelu", "swish", "silu", "mish", "tanh", "sigmoid",
                           "relu6", "leakyrelu", "linear"] = "relu"  # fmt: skip
    scaling: float | Literal["learned", "channel"] = 1.0
    use_gating: bool = False
    dropout: float = bounded(0.0, ge=0, lt=1)
    init_weights: Literal["bert", "mam_adapter", "houlsby"] = "mam_adapter"
    stochastic_depth: float = extension(0.0)
    leave_out: list[int] | None = extension()
    mh_adapter: bool | None = extension()
    output_adapter: bool | None = extension()
    cross_adapter: bool | None = extension()
    original_ln_before: bool | None = extension()
    original_ln_after: bool | None = extension()
    residual_before_ln: bool | Literal["post_add"] = extension(True)
    # Found in the model: site -> place; the streams by the modules that they enter; whether this is the companion.
    places: dict[str, Any] = field(default_factory=dict, repr=False, metadata={"runtime": True})
    streams: dict[str, Any] = field(default_factory=dict, repr=False, metadata={"runtime": True})
    is_stream: bool = field(default=False, init=False, repr=False, metadata={"runtime": True})

    default_learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.stochastic_depth < 1:
            raise ConfigError("out of range", where="stochastic_depth", got=self.stochastic_depth,
                              expected=">= 0 and < 1")  # fmt: skip
        kept = self.placement != "parallel" and self.rule("original_ln_before") and self.residual_before_ln is not True
        if not self.rule("original_ln_after") and not kept:
            raise ConfigError(
                "the residual stream would be lost", where="original_ln_after", got=False,
                fix='set original_ln_before=True and residual_before_ln=False or "post_add"',
            )  # fmt: skip

    def rule(self, key: str) -> bool:
        """The overriding field `key`, or what the placement says of it."""
        own = getattr(self, key)
        return key in _PLACEMENTS[self.placement] if own is None else bool(own)

    def factor(self, layer: int | None) -> float:
        """The reduction factor of the layer with the number `layer`.

        Raises:
            ConfigError: the mapping has neither the layer nor "default".
        """
        if not isinstance(self.reduction_factor, dict):
            return self.reduction_factor
        found = self.reduction_factor.get(str(layer), self.reduction_factor.get("default"))
        if found is None:
            raise ConfigError("no factor for this layer", where="reduction_factor", got=layer,
                              expected='its number or "default"')  # fmt: skip
        return found

    def own_targets(self, model: Any) -> list[str]:
        return default_targets(model, self)

    def idle(self, model: Any, paths: Sequence[str]) -> Iterable[str]:
        return () if self.is_stream else idle_options(model, self, paths)

    def companions(self) -> list[LayerConfig]:
        streams = {p.stream for p in self.places.values() if p.stream is not None}
        if self.is_stream or not streams:
            return []
        other = copy.copy(self)
        other.is_stream, other.target_modules, other.modules_to_save = True, sorted(streams), None
        other.exclude_modules = other.layers_to_transform = other.layers_pattern = None
        return [other]
