"""Conversations with images: the loss is taken on answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..conversations.processor import Images
from ..data.encode import Encoded, encode_answers, rendered_answers
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..recipe.sections import DataSection
from ..report.events import Span
from .answering import Answering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPEATED = 3
"""From so many times on a token of images is told once, with its number."""


class ImageTextToText(Answering):
    """Messages with images (or prompts and answers, with columns `image` or `images`) for a model that sees them."""

    name: ClassVar[str] = "image_text_to_text"
    shares: ClassVar[str] = "exactly"
    loader: ClassVar[str] = "AutoModelForImageTextToText"
    columns: ClassVar[str] = "messages with images, or prompt and completion with image or images"
    streams: ClassVar[bool] = True
    loss_over_step: ClassVar[bool] = True

    def prompter(self, data: DataSection, tokenizer: PreTrainedTokenizerBase) -> Prompter:
        """One that reads images."""
        return Prompter(data, tokenizer, Images.of(tokenizer))

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """`input_ids` and `labels` of one length, and what is seen; prompts are masked."""
        return encode_answers(rows, prompter, vocab_size)

    def rendered(
        self, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
    ) -> list[Span]:
        """The sequence, cut where the loss begins and ends; the many tokens of an image are told once."""
        repeated = re.compile(rf"(<[^<>]+>|\[[^\[\]]+\])\1{{{_REPEATED - 1},}}")

        def once(found: re.Match[str]) -> str:
            return f"{found[1]} x{len(found[0]) // len(found[1])}"

        return [Span(repeated.sub(once, span.text), span.trained) for span in rendered_answers(item, tokenizer)]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Pads texts, and reads their images."""
        return ImageCollator(Images.of(tokenizer))


@dataclass(frozen=True)
class ImageCollator:
    """Pads rows, and adds what the model takes of their images."""

    images: Images

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        """A batch of tensors."""
        from transformers import DataCollatorForSeq2Seq

        tokenizer = self.images.processor.tokenizer
        texts = [{key: item[key] for key in ("input_ids", "attention_mask", "labels")} for item in features]
        out = DataCollatorForSeq2Seq(tokenizer, padding=True)(texts)
        seen, left = [item["seen"] for item in features], tokenizer.padding_side == "left"
        out.update(self.images.inputs(seen, out["input_ids"].shape[1], left=left))
        return out
