"""Keys of files that were written before a model's architecture was built otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import nn

from ..hosts.host import hosts


def names_since(model: nn.Module, keys: Iterable[str]) -> dict[str, str]:
    """Of keys that no adapted layer has: the old one -> the one that an adapted layer has, as the model's library reads
    its own older files (`model.layers.0` of Qwen2-VL is `model.language_model.layers.0` now)."""
    layers = {path for path, _ in hosts(model)}
    unknown = [k for k in keys if not _is_of(k, layers)]
    if not unknown:
        return {}
    rename = _renaming(model)
    return {old: new for old in unknown if _is_of(new := rename(old), layers)}


def _is_of(key: str, layers: Collection[str]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:n]) in layers for n in range(1, len(parts)))


def _renaming(model: Any) -> Callable[[str], str]:
    patterns: Any = getattr(model, "_checkpoint_conversion_mapping", None)
    if isinstance(patterns, dict) and patterns:
        return lambda key: next((n for p, r in patterns.items() for n, c in [re.subn(p, r, key)] if c), key)
    if not hasattr(getattr(model, "config", None), "model_type"):
        return lambda key: key
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    if not isinstance(model, PreTrainedModel):
        return lambda key: key
    steps: Any = [c for c in get_model_conversion_mapping(model) if not isinstance(c, WeightConverter)]
    return lambda key: str(rename_source_key(key, steps, [])[0])
