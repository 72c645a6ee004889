"""What users ask X-LoRA's router and tell it, under the reference's names; `xlora.py` has the method.

Shapes: B batch, T tokens, L adapted layers, E experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...core.hosts.routing import Router
from ...errors import ConfigError

if TYPE_CHECKING:
    from .xlora import XLoraConfig


class XLoraControls(Router):
    """The settings that can be changed at any time, and the log of what the classifier said."""

    offers = frozenset({
        "internal_xlora_classifier", "set_topk_lora", "get_global_scaling_weight", "set_global_scaling_weight",
        "set_scaling_pass_value", "get_latest_scalings", "get_scalings_log", "enable_scalings_logging",
        "disable_scalings_logging", "clear_scalings_log", "get_bucketed_scalings_log",
    })  # fmt: skip

    def __init__(self, config: XLoraConfig) -> None:
        super().__init__()
        self.config = config
        self.routes = tuple(config.adapters or ())
        self.scalings: Tensor | None = None
        self.logging = False
        self.log: list[Tensor] = []

    def __getstate__(self) -> dict[str, Any]:
        # The last decision belongs to a graph, which cannot be copied.
        return {**self.__dict__, "scalings": None, "log": []}

    def set_topk_lora(self, value: int | None) -> None:
        """Let only the `value` largest experts count at each token; None for all."""
        if value is not None and not 1 <= value <= len(self.routes):
            raise ConfigError("out of range", where="top_k_lora", got=value, expected=f"1 to {len(self.routes)}")
        self.config.top_k_lora = value

    def get_global_scaling_weight(self) -> float:
        """The factor of every expert."""
        return self.config.global_scaling_weight

    def set_global_scaling_weight(self, weight: float) -> None:
        """Set the factor of every expert."""
        self.config.global_scaling_weight = weight

    def set_scaling_pass_value(self, value: float | None) -> None:
        """Set how much every expert counts in the first pass; None for 1 / experts."""
        self.config.scaling_pass_value = 1 / len(self.routes) if value is None else value

    def get_latest_scalings(self) -> Tensor | None:
        """What the classifier said last, in whatever call: (B, T, L, E), or None."""
        return self.scalings

    def enable_scalings_logging(self) -> None:
        """Keep what the classifier says from now on."""
        self.logging = True

    def disable_scalings_logging(self) -> None:
        """Keep no more; what was kept stays."""
        self.logging = False

    def get_scalings_log(self) -> list[Tensor]:
        """What was kept, in order, each (B, T, L, E)."""
        return list(self.log)

    def clear_scalings_log(self) -> None:
        """Forget what was kept."""
        self.log.clear()

    def get_bucketed_scalings_log(self) -> dict[int, tuple[list[int], list[Tensor]]]:
        """What was kept by number of tokens: positions in the log, and the scalings there."""
        out: dict[int, tuple[list[int], list[Tensor]]] = {}
        for i, scalings in enumerate(self.log):
            positions, found = out.setdefault(scalings.shape[1], ([], []))
            positions.append(i)
            found.append(scalings)
        return out
