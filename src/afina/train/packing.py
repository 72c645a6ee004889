"""Several rows in one sequence, without one seeing another (`training.packing`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def collator(tokenizer: PreTrainedTokenizerBase) -> Any:
    """What pads items, packed or not."""
    from transformers import DataCollatorForSeq2Seq

    return DataCollatorForSeq2Seq(tokenizer, padding=True)
