"""Full fine-tuning: train every parameter of the model.

    W' = W + ΔW,   ΔW without any restriction

The baseline of every comparison; no adapter, so no `PeftModel`: `afina train` trains the model itself and writes a
model folder. Trainable: all parameters. Mergeable: nothing to merge. Layers: all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...core.config import PeftConfig, register


@dataclass(kw_only=True)
class FullConfig(PeftConfig):
    """Configuration of full fine-tuning; there is nothing to choose but the training itself."""

    default_learning_rate: ClassVar[float] = 5e-5
    rate_exponent: ClassVar[float] = 0.65


@register("FULL", FullConfig)
class Full:
    """The model itself."""

    goes_into: ClassVar[str] = "whole model"

    @staticmethod
    def prepare(model: nn.Module) -> nn.Module:
        """The same model with every floating-point parameter trainable."""
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return model
