"""LayerNorm tuning: train the normalisation layers, and nothing else.

    LN'(x) = γ' ∘ normalise(x) + β'

Zhao et al. 2023, arXiv 2312.11420. Without targets, the architecture's normalisations. Trainable: γ and β of each.
Mergeable. Layers: any module but attention of torch's own; a copy of it is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...core.config import LayerConfig, register
from ...core.hosts.replacement import Replacement
from ...core.inject.targets import normalisations


@dataclass(kw_only=True)
class LNTuningConfig(LayerConfig):
    """Configuration of LayerNorm tuning; `target_modules=None` means all normalisation layers."""

    default_learning_rate: ClassVar[float] = 1e-3
    rate_exponent: ClassVar[float] = 0.65

    def own_targets(self, model: Any) -> list[str]:
        return normalisations(model)


@register("LN_TUNING", LNTuningConfig)
class LNTuning(Replacement):
    """`copy`: the module itself, trained."""

    steady: ClassVar[bool] = True
    prefix = "ln_tuning_"
    kinds = Replacement.kinds - {"attention"}  # its output projection would not be merged

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n.replace("copy.", "ln_tuning_layers.", 1): t for n, t in own.items()}

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.assign({n.replace("ln_tuning_layers.", "copy.", 1): t for n, t in tensors.items()})
