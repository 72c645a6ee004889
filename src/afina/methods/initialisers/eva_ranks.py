"""EVA's ranks: where directions explain most, and the LoRA config that follows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...core.inject import targets
from ...errors import ConfigError
from . import gather
from .start import settings

PUBLIC = ("EvaConfig",)


@dataclass
class EvaConfig:
    """Settings of EVA; fields as in the reference.

    Attributes:
        rho: a layer may get up to rho · r directions; 1 leaves all ranks as they are.
        tau: |cosine| between a direction before and after a batch at which it counts as found.
        use_label_mask: use only positions whose label is not `label_mask_value` (where the batch has labels).
        label_mask_value: label of positions that do not count.
        whiten: divide each direction by the standard deviation along it.
        adjust_scaling_factors: change alpha with the rank, so that a layer's scale stays.

    Raises:
        ConfigError: a value is out of range.
    """

    rho: float = 2.0
    tau: float = 0.99
    use_label_mask: bool = True
    label_mask_value: int = -100
    whiten: bool = False
    adjust_scaling_factors: bool = True

    def __post_init__(self) -> None:
        if not self.rho >= 1:
            raise ConfigError("out of range", where="eva_config.rho", got=self.rho, expected=">= 1")
        if not 0 <= self.tau <= 1:
            raise ConfigError("out of range", where="eva_config.tau", got=self.tau, expected="0 to 1")


def redistribute(explained: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """The rank of each layer when `budget` directions with the largest shares are kept over all layers."""
    every = [(-share, order, name) for name, shares in explained.items() for order, share in enumerate(shares.tolist())]
    kept = Counter(name for _, _, name in sorted(every)[:budget])
    return {name: kept[name] for name in explained}


def adopt(model: nn.Module, config: Any, directions: Mapping[str, Tensor]) -> None:
    """Write gathered directions and the ranks that follow from them into a LoRA config, for the plain `model`.

    Sets `statistics`, `rank_pattern`, `alpha_pattern` (if `adjust_scaling_factors`), and `target_modules` if layers go
    empty.

    Raises:
        ConfigError: the directions are of other layers than the config's targets.
    """
    found = {n.removeprefix("base_model.model."): d for n, d in directions.items()}
    linear = gather.linear_targets(model, config)
    unknown = sorted(set(found) - set(linear))
    if unknown or not found:
        raise ConfigError("the directions are of other layers than the targets", where="eva_state_dict",
                          got=", ".join(unknown[:3]) or "none", expected=", ".join(list(linear)[:3]))  # fmt: skip
    ranks = {n: len(d) for n, d in found.items() if len(d) != config.rank_at(n)}
    if settings(EvaConfig, config.eva_config).adjust_scaling_factors:
        size = math.sqrt if config.use_rslora else float
        alphas = {n: config.scaling_at(n) * size(r) for n, r in ranks.items()}
        config.alpha_pattern = alphas | {k: v for k, v in config.alpha_pattern.items() if k not in alphas}
    if len(found) < len(linear):
        config.target_modules = [n for n in targets.select(model, config) if n in found or n not in linear]
        config.layers_to_transform = config.layers_pattern = None
    config.rank_pattern = ranks | {k: v for k, v in config.rank_pattern.items() if k not in ranks}
    config.statistics = found
