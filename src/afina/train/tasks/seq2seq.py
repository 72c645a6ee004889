"""Encoder-decoder models (the T5 and BART families): the encoder reads the prompt, the decoder writes the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..data.encode import Encoded, check_vocabulary
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..report.events import Span
from .answering import Answering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Seq2Seq(Answering):
    """Prompts for the encoder, answers for the decoder."""

    name: ClassVar[str] = "seq2seq"
    loader: ClassVar[str] = "AutoModelForSeq2SeqLM"
    columns: ClassVar[str] = "prompt and completion, or messages"
    encoder: ClassVar[bool] = True

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """`input_ids` are the prompt's, `labels` the answer's with the token that ends it."""
        out, limit = Encoded(rows=rows), prompter.data.max_length
        kind = prompter.resolved_format(rows)
        for index in range(len(rows)):
            ids = list(prompter.tokenizer(prompter.prompt(rows, index, kind))["input_ids"])
            answer = self._answer_ids(prompter, prompter.answer(rows, index, kind))
            check_vocabulary([*ids, *answer], rows.where(index), vocab_size)
            out.truncated += len(ids) > limit or len(answer) > limit
            ids = ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:]  # keeps the token that ends the prompt
            out.items.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": answer[:limit]})
            out.source.append(index)
        return out

    @staticmethod
    def _answer_ids(prompter: Prompter, text: str) -> list[int]:
        ids, end = list(prompter.tokenizer(text_target=text)["input_ids"]), prompter.tokenizer.eos_token_id
        return ids if end is None or (ids and ids[-1] == end) else [*ids, end]

    def rendered(
        self, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
    ) -> list[Span]:
        """What the encoder reads, and what the decoder is to write."""
        return [
            Span(str(tokenizer.decode(item["input_ids"])), False),
            Span(str(tokenizer.decode(item["labels"])), True),
        ]

    def probe(self, prompter: Prompter, text: str, device: Any) -> dict[str, Any]:
        """The prompt, and its first tokens as what the decoder reads."""
        inputs = super().probe(prompter, text, device)
        return {**inputs, "decoder_input_ids": inputs["input_ids"][:, :8]}

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Pads labels with -100; the model shifts them for its decoder by itself."""
        from transformers import DataCollatorForSeq2Seq

        return DataCollatorForSeq2Seq(tokenizer, padding=True)
