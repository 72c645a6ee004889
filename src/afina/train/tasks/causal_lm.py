"""Supervised fine-tuning of a causal language model: the loss is taken on answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...kernels.cuda.flash import reads_lengths
from ...kernels.cuda.replay import records
from ..data.arranged.packing import PackedCollator, check_apart
from ..data.encode import Data, Encoded, encode_answers, rendered_answers
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..recipe.sections import Recipe
from ..report.events import Span
from .answering import Answering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class CausalLM(Answering):
    """Prompts and answers, or messages, in one sequence of tokens."""

    name: ClassVar[str] = "causal_lm"
    shares: ClassVar[str] = "exactly"
    loader: ClassVar[str] = "AutoModelForCausalLM"
    columns: ClassVar[str] = "prompt and completion, or messages"
    streams: ClassVar[bool] = True
    fast: ClassVar[bool] = True
    packs: ClassVar[bool] = True
    learns_prompts: ClassVar[bool] = True
    loss_over_step: ClassVar[bool] = True

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """`input_ids` and `labels` of one length; prompts are masked."""
        return encode_answers(rows, prompter, vocab_size)

    def rendered(
        self, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
    ) -> list[Span]:
        """The sequence, cut where the loss begins and ends."""
        return rendered_answers(item, tokenizer)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Pads labels with -100, by length and not by pad token."""
        return PackedCollator(tokenizer)

    def trainer(
        self, recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, data: Data, arguments: Any
    ) -> Any:
        """Packed rows must be kept apart by the model as it trains."""
        out = super().trainer(recipe, model, tokenizer, data, arguments)
        by_lengths = reads_lengths(model)
        out.data_collator = PackedCollator(tokenizer, by_lengths, recurring=records(model))
        if recipe.training.packing:
            check_apart(out.model, tokenizer, by_lengths=by_lengths)
        return out
