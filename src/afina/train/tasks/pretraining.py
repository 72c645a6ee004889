"""Continued pretraining on raw text: every token of a document is predicted from those before it.

Documents longer than `data.max_length` become several pieces, so that no token is lost; with `training.packing` short
ones share a sequence without seeing each other. The held-out loss is the mean over tokens, whose exponential is the
perplexity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from ...errors import DataError
from ..answers.generate import continuation
from ..answers.judge import token_loss
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
        loss = self._loss(job.trainer.model, job.prompter, encoded.items, job.recipe.evaluation.batch_size,
                          job.reporter, f"held-out loss ({job.stage})")  # fmt: skip
        return Scores(loss, len(rows))

    def _loss(
        self, model: Any, prompter: Prompter, items: Sequence[dict[str, Any]], batch_size: int, reporter: Reporter,
        stage: str,
    ) -> float:  # fmt: skip
        return token_loss(
            model, self.collator(prompter.tokenizer), items, batch_size=batch_size,
            progress=lambda done: reporter.progress(Progress(stage, done, len(items))),
        )  # fmt: skip

    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """How the text goes on."""
        ids = trained.prompter.tokenizer(text, add_special_tokens=False)["input_ids"]
        start = document_ids(trained.prompter, "")[:-1]
        return continuation(trained.model, trained.prompter, [*start, *ids], max_new_tokens=max_new_tokens)

    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """A column `loss`: the mean over the document's tokens, null where it has none; and the loss over all."""
        prompter, out = trained.prompter, []
        encoded = self.encode(rows, prompter, None, len(prompter.tokenizer))
        of_row: dict[int, list[dict[str, Any]]] = {}
        for item, index in zip(encoded.items, encoded.source, strict=True):
            of_row.setdefault(index, []).append(item)
        total = count = 0.0
        for index, row in enumerate(rows.values):
            items, loss = of_row.get(index), None
            if items:
                loss = self._loss(trained.model, prompter, items, batch_size, Reporter(), "")
                tokens = sum(len(item["input_ids"]) - 1 for item in items)
                total, count = total + loss * tokens, count + tokens
            out.append({**row, "loss": loss})
            reporter.progress(Progress("predicting", index + 1, len(rows)))
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
