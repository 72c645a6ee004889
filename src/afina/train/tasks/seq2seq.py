"""Encoder-decoder models (the T5 and BART families): the encoder reads the prompt, the decoder writes the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..conversations.turns import Turn
from ..data.encode import Encoded, check_vocabulary, cut_prompt, encoder_ids
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
        """`input_ids` are the prompt's, `labels` the answer's with the token that ends it; one item for each answer."""
        out, limit = Encoded(rows=rows), prompter.data.max_length
        for index in range(len(rows)):
            prompter.refuse_unwanted(rows, index)
            kind = prompter.resolved_format(rows, index)
            for turn in prompter.turns(rows, index, kind)[-1 if prompter.data.turns == "last" else 0 :]:
                whole = encoder_ids(prompter, turn.prompt)
                ids, answer = cut_prompt(whole, limit), self._answer_ids(prompter, turn)
                check_vocabulary([*whole, *answer], rows.where(index), vocab_size)
                out.truncated += len(whole) > limit or len(answer) > limit
                out.items.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": answer[:limit]})
                out.source.append(index)
        out.check_masked(rows, prompter.data)
        return out

    @staticmethod
    def _answer_ids(prompter: Prompter, turn: Turn) -> list[int]:
        text, tokenizer = "".join(span.text for span in turn.answer), prompter.tokenizer
        if prompter.chats:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        end = tokenizer.eos_token_id
        ids = list(tokenizer(text_target=text.removesuffix(str(tokenizer.eos_token or "")))["input_ids"])
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
