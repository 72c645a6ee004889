"""Biases that merging gave to layers without one, which a model's class has to be told of to load them again."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import torch
from torch import nn

from ...errors import AfinaWarning


def settle_gained(model: nn.Module, gained: list[nn.Module]) -> None:
    """Let a saved model be loaded with the biases that merging gave it: by those of its config's switches for biases
    that make room for them, whose other layers get biases of zeros.

    Args:
        model: without hosts. One of transformers has a config; of others nothing is known, and nothing done.
        gained: the layers.

    Warns:
        AfinaWarning: its class has no such switch, so a saved model would lose them when it is loaded.
    """
    config: Any = getattr(model, "config", None)
    layers = {id(layer) for layer in gained}
    names = {f"{n}.bias" for n, m in model.named_modules() if id(m) in layers}
    if not names or not hasattr(config, "to_dict"):
        return
    own = {n for n, _ in model.named_parameters(remove_duplicate=False)} - names
    off = [key for key, value in config.to_dict().items() if "bias" in key and value is False]
    for count in range(1, len(off) + 1):
        for keys in itertools.combinations(off, count):
            told = copy.deepcopy(config)
            for key in keys:
                setattr(told, key, True)
            there = _names(type(model), told)
            if names <= there and own <= there and all(n.endswith(".bias") for n in there - own):
                _fill(model, there - own - names)
                model.config = told
                return
    warnings.warn(f"merging gave biases to {len(names)} layers that models of this class are built without "
                  f"({min(names)}): this model has them, one that is saved and loaded will not", AfinaWarning,
                  stacklevel=5)  # fmt: skip


def _names(kind: Any, config: Any) -> set[str]:
    """The parameters of a model of that class; none if it cannot be made so."""
    try:
        with torch.device("meta"):
            return {n for n, _ in kind(config).named_parameters(remove_duplicate=False)}
    # What constructors refuse a config with; then this is not the way.
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, AssertionError):
        return set()


def _fill(model: nn.Module, names: set[str]) -> None:
    """Biases of zeros."""
    for name in names:
        layer = model.get_submodule(name.removesuffix(".bias"))
        weight: Any = layer.weight
        # A bias is as long as the layer's outputs are many, which is its weight's first size.
        layer.bias = nn.Parameter(torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device), False)
