"""What is likely to be wrong with the size of a run, said before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.config import PeftConfig
from ...methods.reparam.adalora import AdaLoraConfig
from ...methods.reparam.lora_config import LoraConfig
from ..data.encode import IGNORED
from ..recipe.sections import Recipe

LARGEST_BATCH = 32
"""Sequences in a step. With larger batches LoRA falls behind full fine-tuning (Schulman et al., LoRA without regret,
2025); where that begins depends on the data, so this is a rule of thumb."""
_FAMILY = (LoraConfig, AdaLoraConfig)


def supervised_tokens(items: Sequence[dict[str, Any]], rows: int) -> int:
    """Tokens that the loss is taken on, in as many of the items as a run of `rows` rows sees; each counts once, however
    often it is seen. 0 for tasks whose items have a label, or none, instead of one for every token."""
    of_tokens = [item["labels"] for item in items if isinstance(item.get("labels"), list)]
    count = sum(1 for labels in of_tokens for label in labels if label != IGNORED)
    share = min(1.0, rows / len(items)) if items else 0.0
    return round(share * count)


def cautions(
    recipe: Recipe, config: PeftConfig, items: Sequence[dict[str, Any]], trainable: int, steps: int
) -> list[str]:
    """One line for each thing to think of: too few parameters for the data, batches too large for LoRA."""
    rows = recipe.training.batch_size * recipe.training.gradient_accumulation
    tokens, out = supervised_tokens(items, rows * steps), []
    if trainable < tokens:
        out.append(f"fewer trained parameters ({trainable:,}) than supervised tokens ({tokens:,}): the adapter may be "
                   "too small to learn them all; raise its rank or size, adapt more layers, or take another "
                   "method")  # fmt: skip
    if rows > LARGEST_BATCH and isinstance(config, _FAMILY):
        out.append(f"batches of {rows} sequences: above {LARGEST_BATCH} LoRA tends to learn less than full "
                   "fine-tuning; lower training.batch_size or training.gradient_accumulation")  # fmt: skip
    return out
