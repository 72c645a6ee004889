"""What is done with all layers of a model at once, however they are stored: copied, unpacked, counted."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ...errors import AfinaWarning
from .cut import uncut
from .partitioned import is_partitioned
from .sharded import apart, gathered, is_sharded, whole
from .storages import quantised_weight


def dense_copy(module: nn.Module) -> nn.Module:
    """A deep copy that can train: quantised layers in it are dense. Configs stay the model's, so that what it is told
    later (another attention, say) reaches its copied layers too. Sharded weights are whole in it.
    """
    return uncut(gathered(_dense_copy(module)))


def _dense_copy(module: nn.Module) -> nn.Module:
    """The copy, with weights as sharded as they are."""
    own = quantised_weight(module)
    if own is not None:
        return own.dense()
    in_parts = any(is_partitioned(p) or is_sharded(p) for p in module.parameters())
    if not in_parts and not any(quantised_weight(m) for m in module.modules()):
        configs = (m.__dict__.get("config") for m in module.modules())
        return copy.deepcopy(module, {id(config): config for config in configs if config is not None})
    out = apart(module)
    for slot in ("_parameters", "_buffers"):
        setattr(out, slot, {n: _copied(t) for n, t in getattr(module, slot).items()})
    out._modules = {n: None if child is None else _dense_copy(child) for n, child in module._modules.items()}
    return out


def _copied(tensor: Any) -> Any:
    if is_partitioned(tensor):
        return nn.Parameter(whole(tensor).detach().clone(), tensor.requires_grad)
    # torch cannot make deep copies of what is in parts.
    return nn.Parameter(tensor.detach().clone(), tensor.requires_grad) if is_sharded(tensor) else copy.deepcopy(tensor)


def unpack(model: nn.Module) -> None:
    """Give all weights the layout in which they have gradients and can be saved."""
    for module in model.modules():
        found = quantised_weight(module)
        if found is not None:
            found.unpack()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) numbers of parameters; of quantised weights, the number that they stand for."""
    trainable = total = 0
    stored: set[int] = set()
    for module in model.modules():
        found = quantised_weight(module)
        if found is not None and found.quantised and id(found.weight) not in stored:
            stored.add(id(found.weight))
            total += found.out_features * found.in_features
            if found.bias is not None and module._parameters.get(found.bias_name) is None:  # kept as a buffer
                total += found.bias.numel()
    for parameter in model.parameters():
        if id(parameter) not in stored:
            count = parameter.numel() or int(getattr(parameter, "ds_numel", 0))
            if type(parameter).__name__ == "Params4bit":  # an embedding's: two numbers in a byte
                count *= 2 * getattr(getattr(parameter, "quant_storage", torch.uint8), "itemsize", 1)
            total += count
            trainable += count if parameter.requires_grad else 0
    return trainable, total


def report_lost(bases: Iterable[Any]) -> None:
    """After merging: say what requantising lost."""
    lost = [base.lost for base in bases if base.quantised]
    if lost:
        warnings.warn(
            f"{len(lost)} weights were requantised; the merged updates lost {min(lost):.0%} to {max(lost):.0%} of "
            f"themselves (mean {sum(lost) / len(lost):.0%}); unmerging gives the original bits back",
            AfinaWarning, stacklevel=4,
        )  # fmt: skip
