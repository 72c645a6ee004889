"""Continued pretraining on raw text: every token of a document is predicted from those before it.

Documents longer than `data.max_length` become several pieces, so that no token is lost; with `training.packing` short
ones share a sequence without seeing each other. The held-out loss is the mean over tokens, whose exponential is the
perplexity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from ...errors import DataError
from ..answers.batches import in_batches
from ..answers.generate import continuation
from ..answers.judge import check_loss, summed_loss, token_loss
from ..data.encode import IGNORED, Encoded, check_vocabulary
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..recipe.sections import DataSection
from ..report.events import Progress, Reporter
from ..report.scores import Scores
from .base import Job, Predictions, Trained
from .causal_lm import CausalLM


class Pretraining(CausalLM):
    """Documents."""

    name: ClassVar[str] = "pretraining"
    columns: ClassVar[str] = "text"
    streams: ClassVar[bool] = False
    judges: ClassVar[bool] = True

    def labels(self, data: DataSection, parts: Sequence[Rows]) -> None:
        """Text has no labels."""

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """The pieces of every document; the first token of each is predicted by nothing."""
        out = Encoded(rows=rows)
        for index in range(len(rows)):
            ids = document_ids(prompter, rows.text(index, prompter.data.text_column))
            check_vocabulary(ids, rows.where(index), vocab_size)
            found = list(pieces(ids, prompter.data.max_length))
            out.masked += not found
            for piece in found:
                targets = [IGNORED, *piece[1:]]
                out.items.append({"input_ids": piece, "attention_mask": [1] * len(piece), "labels": targets})
                out.source.append(index)
        if not out.items:
            raise DataError("no document has a token to predict", where=rows.path)
        return out

    def score(self, job: Job) -> Scores:
        """Held-out loss, the mean over tokens."""
        rows, encoded = job.data.split.held_out, job.data.held_out
        assert rows is not None
        assert encoded is not None
        stage, items = f"held-out loss ({job.stage})", encoded.items
        loss = token_loss(
            job.trainer.model, self.collator(job.prompter.tokenizer), items,
            batch_size=job.recipe.evaluation.batch_size,
            progress=lambda done: job.reporter.progress(Progress(stage, done, len(items))),
        )  # fmt: skip
        return Scores(loss, len(rows))

    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """How the text goes on."""
        ids = trained.prompter.tokenizer(text, add_special_tokens=False)["input_ids"]
        start = document_ids(trained.prompter, "")[:-1]
        return continuation(trained.model, trained.prompter, [*start, *ids], max_new_tokens=max_new_tokens)

    def check_rows(self, rows: Rows, prompter: Prompter) -> None:
        """Each has a text."""
        for index in range(len(rows)):
            rows.text(index, prompter.data.text_column)

    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """A column `loss`: the mean over the document's tokens, null where it has none; and the loss over all."""
        prompter = trained.prompter
        encoded, collate = self.encode(rows, prompter, None, len(prompter.tokenizer)), self.collator(prompter.tokenizer)
        of_row: list[list[dict[str, Any]]] = [[] for _ in rows.values]
        for item, index in zip(encoded.items, encoded.source, strict=True):
            of_row[index].append(item)

        def judge(part: list[list[dict[str, Any]]]) -> tuple[float, int]:
            ((*items,),) = part
            batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
            found = [summed_loss(trained.model, collate, batch) for batch in batches]
            return sum(loss for loss, _ in found), sum(tokens for _, tokens in found)

        found = in_batches(of_row, 1, judge, lambda done: reporter.progress(Progress("predicting", done, len(rows))))
        total, count = sum(loss for loss, _ in found), sum(tokens for _, tokens in found)
        check_loss(total)
        out = [{**row, "loss": loss / tokens if tokens else None}
               for row, (loss, tokens) in zip(rows.values, found, strict=True)]  # fmt: skip
        return Predictions(out, Scores(total / count, len(rows)))


def document_ids(prompter: Prompter, text: str) -> list[int]:
    """Tokens of a document, with the tokenizer's own start token where it has one, and what ends a text."""
    tokenizer = prompter.tokenizer
    ids = list(tokenizer(text)["input_ids"])
    end = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def pieces(ids: list[int], room: int) -> Iterator[list[int]]:
    """The tokens in pieces of at most `room`; each begins with the last token of the one before, so that every token
    but the first is predicted once."""
    for start in range(0, len(ids) - 1, room - 1):
        yield ids[start : start + room]
