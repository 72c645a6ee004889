"""Where numbers stopped being finite: the first module that gave such, and the rows of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_ROWS_TOLD = 8


@torch.no_grad()
def first_not_finite(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The first parameter of `model` that is not finite, or else the first module whose output is not when the batch
    goes through once more; None if this time all is finite (dropout draws anew)."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            return f"the parameter {name}"
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
            if any(not torch.isfinite(t).all() for t in tensors):
                found.append(name)

        return hook

    handles = [m.register_forward_hook(look(name)) for name, m in model.named_modules() if name]
    try:
        model.forward(*args, **kwargs)  # not by calling the model, whose own hooks look at the loss
    except (RuntimeError, ValueError):
        return f"the output of {found[0]}" if found else None
    finally:
        for handle in handles:
            handle.remove()
    return f"the output of {found[0]}" if found else None


def told_rows(batch: Mapping[str, Any], dataset: Any) -> str | None:
    """The rows that a batch was made of, found again by their tokens; None where the data set does not know them."""
    items, where, ids = getattr(dataset, "items", None), getattr(dataset, "where", None), batch.get("input_ids")
    if items is None or where is None or not isinstance(ids, Tensor):
        return None
    wanted = [tuple(row) for row in _without_padding(ids, batch.get("attention_mask"))]
    places = {tuple(item["input_ids"]): where(i) for i, item in enumerate(items) if tuple(item["input_ids"]) in wanted}
    found = [places[row] for row in wanted if row in places]
    more = f" and {len(found) - _ROWS_TOLD} more" if len(found) > _ROWS_TOLD else ""
    return ", ".join(found[:_ROWS_TOLD]) + more if found else None


def _without_padding(ids: Tensor, mask: Any) -> Sequence[list[int]]:
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        return [list(map(int, row)) for row in ids.tolist()]
    return [[int(i) for i, keep in zip(row, kept, strict=True) if keep]
            for row, kept in zip(ids.tolist(), mask.tolist(), strict=True)]  # fmt: skip
