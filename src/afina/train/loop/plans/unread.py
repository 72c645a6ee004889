"""Rows of an embedding that no row of the data names: on a processor they stay in the file that the weights are in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from .setting import Setting

_AROUND = 64 * 2**10
"""Bytes that Linux reads around one that is asked for."""


def unread_bytes(setting: Setting, base: Any) -> int:
    """Bytes of the frozen input embedding that no step touches; 0 where it is the output head too, is trained, or does
    not lie in the model's files as it is."""
    try:
        embedding = base.get_input_embeddings()
    except (NotImplementedError, AttributeError):  # models of images alone, and pipelines
        return 0
    weight = getattr(embedding, "weight", None)
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or weight.requires_grad:
        return 0
    if getattr(head, "weight", None) is weight or not _as_filed(setting, base):
        return 0
    row = weight.shape[1] * weight.element_size()
    places = {ids * row // _AROUND for ids in {*_ids(setting.data.train.items)}}
    size = weight.numel() * weight.element_size()
    return max(0, size - len(places) * _AROUND)


def _as_filed(setting: Setting, base: Any) -> bool:
    filed = getattr(base.config, "dtype", None)
    same = str(filed).removeprefix("torch.") == setting.recipe.model.dtype
    return same and setting.recipe.model.quantize == "none" and any(Path(setting.location).glob("*.safetensors"))


def _ids(items: Iterable[Mapping[str, Any]]) -> Iterable[int]:
    for item in items:
        for key, value in item.items():
            if key.endswith("ids") and isinstance(value, list):
                yield from (number for number in value if isinstance(number, int))
