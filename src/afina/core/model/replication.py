"""A deeper model out of a trained one: ranges of its layers once more, sharing the weights (`layer_replication`)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import ConfigError

_COUNT, _TYPES = "num_hidden_layers", "layer_types"


@dataclass
class Replicated:
    """The layers that a model had, to give them back."""

    parent: nn.Module
    attribute: str
    layers: nn.ModuleList
    layer_map: list[list[int]]
    config: Any
    types: list[str] | None

    def undo(self) -> None:
        """Give the model its own layers back."""
        setattr(self.parent, self.attribute, self.layers)
        setattr(self.config, _COUNT, len(self.layers))
        if self.types is not None:
            setattr(self.config, _TYPES, self.types)


def replicate(model: nn.Module, layer_map: Sequence[Sequence[int]]) -> Replicated:
    """Put the ranges of layers [from, to) behind one another in the place of the model's layers.

    Raises:
        ConfigError: ranges that the model does not have, or no stack of layers is found; nothing was changed.
    """
    config = getattr(model, "config", None)
    count = getattr(config, _COUNT, None)
    found = ((p, n, m) for p in model.modules() for n, m in p._modules.items() if isinstance(m, nn.ModuleList))
    parent, attribute, layers = next((f for f in found if len(f[2]) == count), (None, "", None))
    if parent is None or layers is None:
        raise ConfigError("the model's stack of layers is not found", where="layer_replication",
                          expected=f"a ModuleList of config.{_COUNT} layers")  # fmt: skip
    wanted = [[int(i) for i in pair] for pair in layer_map]
    if not wanted or any(len(p) != 2 or not 0 <= p[0] < p[1] <= len(layers) for p in wanted):
        raise ConfigError("not ranges of the model's layers", where="layer_replication", got=layer_map,
                          expected=f"[[from, to], ...] within 0 and {len(layers)}")  # fmt: skip
    order = [i for first, last in wanted for i in range(first, last)]
    types = getattr(config, _TYPES, None)
    out = Replicated(parent, attribute, layers, wanted, config, types)
    new = nn.ModuleList(_shared_copy(layers[i]) for i in order).train(layers.training)
    for number, layer in enumerate(new):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                vars(module)["layer_idx"] = number
    setattr(parent, attribute, new)
    setattr(config, _COUNT, len(new))
    if types is not None:
        setattr(config, _TYPES, [types[i] for i in order])
    return out


def _shared_copy(layer: nn.Module) -> nn.Module:
    """A copy of the modules with the same parameters, buffers and config; the model's attention is set in that."""
    configs = [vars(module)["config"] for module in layer.modules() if "config" in vars(module)]
    memo: dict[int, Any] = {id(one): one for one in (*layer.parameters(), *layer.buffers(), *configs)}
    return copy.deepcopy(layer, memo)
