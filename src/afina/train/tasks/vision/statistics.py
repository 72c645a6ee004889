"""Batch normalisation of a frozen base keeps the statistics that it came with.

In training mode it would take those of each batch and remember them in the base, which is never written to: an adapter
on the base as it came would say something else than what was trained.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def keep_statistics(model: nn.Module) -> int:
    """Let every batch normalisation of a model use its own statistics also while the model trains.

    Returns:
        how many there are.
    """
    found = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for module in found:
        module.register_forward_pre_hook(_as_in_use)
    return len(found)


def _as_in_use(module: nn.Module, args: Any) -> None:
    module.training = False
