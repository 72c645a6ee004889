"""QA-LoRA: one column of A for each group of inputs, so that the update fits a group-wise quantised weight.

    ΔW = s · B (A ⊗ 1ᵀ) · (in / g) / g,   A: (r, in / g), 1: g ones;   that is, A sees the mean of each group · (in / g)

Xu et al. 2023, arXiv 2309.14717; the factor in / g is the reference's (the paper sums over a group, a factor g²/in
larger), because its files mean that. The reference has it for GPTQ layers alone and trains plain LoRA elsewhere without
a word; here it is what was asked for on every Linear. Trainable: r · (in / g + out) a layer. Mergeable. Layers: Linear,
Conv1D, MultiheadAttention, 2-D parameters.
"""

from __future__ import annotations

from torch import Tensor

from ...core.hosts.adapter import Site
from ...errors import ConfigError
from .lora import Lora
from .lora_config import LoraConfig


@Lora.variant(lambda config: config.use_qalora)
class QaLora(Lora):
    """A: (r, in / g)."""

    kinds = frozenset({"linear", "attention", "parameter"})

    def _shapes(self, site: Site, config: LoraConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        self.group = config.qalora_group_size
        out, width = site.base.shape
        if width % self.group:
            raise ConfigError("must divide the inputs", where=f"qalora_group_size at {site.name}", got=self.group,
                              expected=f"a divisor of {width}")  # fmt: skip
        return (self.r, width // self.group), (out, self.r)

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = self.lora_A, self.lora_B
        return A.repeat_interleave(self.group, dim=1) * (A.shape[1] / self.group), B
