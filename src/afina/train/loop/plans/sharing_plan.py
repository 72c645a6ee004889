"""What a run takes of each device, and sends in a step, where several processes share it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ....errors import RecipeError
from ....plan.engines import ENGINES, Cost, Part, cost, spreadable
from ....plan.usage import told_bytes
from ...recipe.sections import Recipe
from ...tasks import named

if TYPE_CHECKING:
    from torch import nn

    from .rehearsal import Rehearsal


def shared_lines(recipe: Recipe, found: Rehearsal, working: int, processes: int) -> Iterator[str]:
    """A line for the recipe's engine, or for each where the recipe leaves it open.

    Args:
        found: a step with all rows on one device.
        working: bytes that it takes beside the base's weights.
    """
    rows, tokens = found.sizes[:2]
    looked, training = spreadable(found.base), recipe.training
    beside = 0 if looked.full else found.trained - looked.all.trained  # shared by all layers, or virtual tokens
    looked = replace(looked, outside=looked.outside + Part(trained=beside))
    activations = max(0, working - (3 if looked.full else 4) * found.trained)
    for engine in (e for e in ENGINES if recipe.distributed in ("auto", e) and _takes(recipe, e)):
        made = cost(engine, looked, processes, activations=activations, tokens=rows * tokens,
                    passes=training.gradient_accumulation, again=training.gradient_checkpointing,
                    logits=_logits(found.base, found.batch))  # fmt: skip
        yield f"{engine} on {processes} devices: {_told(made)}"


def _takes(recipe: Recipe, engine: str) -> bool:
    try:
        named(recipe.task).check(recipe.model_copy(update={"distributed": engine}))
    except RecipeError:
        return False
    return True


def _logits(base: nn.Module, batch: Mapping[str, Any]) -> int:
    """Bytes of the logits of supervised positions, in the base's dtype and twice in float32; 0 where there are none."""
    head: Any = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None  # type: ignore[operator]
    if head is None or "labels" not in batch or not hasattr(head, "out_features"):
        return 0
    supervised = int((batch["labels"] != -100).sum())
    return supervised * int(head.out_features) * (int(head.weight.element_size()) + 2 * 4)


def _told(cost: Cost | None) -> str:
    if cost is None:
        return "transformers has no plan that cuts this model's heads over so many"
    parts = {"base": cost.base, "gathered for the moment": cost.gathered, "adapter and optimizer": cost.adapter,
             "activations": cost.activations}  # fmt: skip
    of = ", ".join(f"{name} {told_bytes(size)}" for name, size in parts.items() if size)
    rest = f"; {told_bytes(cost.host)} of main memory" if cost.host else ""
    copied = f", {told_bytes(cost.copied)} copied to and from main memory" if cost.copied else ""
    return f"{told_bytes(cost.memory)} each ({of}){rest}; a step brings each {told_bytes(cost.traffic)}{copied}"
