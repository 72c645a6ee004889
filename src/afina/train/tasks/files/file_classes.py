"""One label for a file: a fresh head on a model of images or of sounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ....core.config import PeftConfig
from ....core.model.peft_model import add_heads
from ....errors import DataError, RecipeError
from ...answers.evaluate import share_right
from ...answers.judge import check_loss, class_logits
from ...answers.row_losses import TellsRows
from ...conversations.image_files import found_at
from ...data.encode import Encoded
from ...data.labels import check_given, checked_labels, found_labels, label_of, task_numbers
from ...data.prompts import Prompter
from ...data.readers.media_rows import Medium
from ...data.rows import Rows
from ...recipe.sections import DataSection, Recipe
from ...report.events import Progress, Reporter, Span
from ...report.scores import Scores
from ..answering import label_scores
from ..base import Job, Predictions, Task, Trained
from ..sequence_classification import head_options
from .file_items import file_item

_SHOWN, _WRONG = 6, 24
"""Held-out rows that are shown whatever is said of them, and wrong ones."""


class FileClassification(Task, TellsRows):
    """Files and labels.

    Attributes:
        of: what the files are.
        heads: what the model's heads may be called.
    """

    classes: ClassVar[bool] = True
    groups: ClassVar[bool] = False
    of: ClassVar[Medium]
    heads: ClassVar[tuple[str, ...]]

    @property
    def fresh_heads(self) -> tuple[str, ...]:
        """As other classifiers have it; a head for other labels is replaced."""
        return self.heads

    @abstractmethod
    def file_items(self, rows: Rows, prompter: Prompter, *, checked: bool) -> Encoded:
        """The items of rows without their labels.

        Args:
            checked: every file is read, to know that it can be.

        Raises:
            DataError: a file is not there, or cannot be read.
        """

    @abstractmethod
    def shown(self, item: dict[str, Any]) -> str:
        """An item in reports."""

    def headed(self, config: PeftConfig, base: Any) -> PeftConfig:
        """The config with the head among the `modules_to_save`.

        Raises:
            RecipeError: the model has no head of a known name.
        """
        if not {name for name, _ in base.named_children()} & {*self.heads}:
            raise RecipeError("no head is recognised in this model", where="model.path", got=type(base).__name__,
                              expected=f"one of {', '.join(self.heads)}")  # fmt: skip
        add_heads(config, base, self.heads)
        return config

    def labels(self, data: DataSection, parts: Sequence[Rows]) -> list[str]:
        """Those that the recipe names, else those found in the training rows."""
        if data.label_column not in (first := parts[0].values[0]):
            raise DataError(f"{self.of.word}s without labels", where=parts[0].where(0),
                            got=f"columns {', '.join(first)}",
                            fix="put them into a folder for each label, or name data.label_column")  # fmt: skip
        labels = data.labels if data.labels is not None else found_labels(parts[0], data.label_column)
        return checked_labels(parts, data.label_column, labels)

    def load_options(self, labels: list[str] | None) -> dict[str, Any]:
        """The labels' names; a head for others is replaced by a fresh one."""
        return {**head_options(labels), "ignore_mismatched_sizes": True}

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """Where each file is, and its label's position; every file is read once, to know that it can be."""
        out = self.file_items(rows, prompter, checked=True)
        for index, item in zip(out.source, out.items, strict=True):
            item["labels"] = (labels or []).index(label_of(rows, index, prompter.data.label_column, labels or []))
        return out

    def rendered(self, item: dict[str, Any], tokenizer: Any, labels: list[str] | None) -> list[Span]:
        """The file and its label."""
        label = labels[item["labels"]] if labels else str(item["labels"])
        return [Span(item["where"], False), Span(f" -> {label}", True)]

    def arguments(self, recipe: Recipe, work: Path, learning_rate: float) -> Any:
        """The trainer's settings; it has no tokens to count."""
        out = super().arguments(recipe, work, learning_rate)
        out.include_num_input_tokens_seen = "no"
        return out

    def row_losses(self, trainer: Any, batch: Mapping[str, Any], outputs: Sequence[Any]) -> Any:
        """The cross-entropy of each file's label."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs[0].logits.float(), batch["labels"], reduction="none")

    def score(self, job: Job) -> Scores:
        """Held-out loss and accuracy, which labels are taken for which, and wrong rows."""
        from torch import tensor
        from torch.nn.functional import cross_entropy

        held_out, names = job.data.held_out, job.data.labels or []
        assert held_out is not None
        logits = self._logits(job)
        loss = float(cross_entropy(logits, tensor([item["labels"] for item in held_out.items])))
        check_loss(loss)
        got = [names[i] for i in logits.argmax(1).tolist()]
        expected = [names[item["labels"]] for item in held_out.items]
        right = sum(map(str.__eq__, got, expected))
        triples = list(zip(held_out.items, expected, got, strict=True))
        wrong = [triple for triple in triples if triple[1] != triple[2]]
        return replace(share_right(loss, right, expected, self._all_shown(triples[:_SHOWN])),
                       confusion=confusion_of(expected, got), wrong=self._all_shown(wrong[:_WRONG]))  # fmt: skip

    def _all_shown(self, triples: Sequence[tuple[dict[str, Any], str, str]]) -> tuple[tuple[str, str, str], ...]:
        return tuple((self.shown(item), label, answer) for item, label, answer in triples)

    def items_right(self, job: Job) -> list[float]:
        """1 where the likeliest label is the row's, else 0."""
        assert job.data.held_out is not None
        found = self._logits(job).argmax(1).tolist()
        return [float(k == item["labels"]) for k, item in zip(found, job.data.held_out.items, strict=True)]

    def _logits(self, job: Job) -> Any:
        assert job.data.held_out is not None
        items = job.data.held_out.items
        return class_logits(
            job.trainer.model, self.collator(job.prompter.tokenizer), items,
            batch_size=job.recipe.evaluation.batch_size,
            progress=lambda done: job.reporter.progress(Progress(f"measuring ({job.stage})", done, len(items))),
        )  # fmt: skip

    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """The likeliest labels of a file, with their probabilities."""
        source = found_at(text.strip(), Path(), "the message", self.of.word)
        item = {self.of.column: source, "where": text.strip()}
        numbers = trained.task_numbers(1)
        (row,) = self._probabilities(trained, [{**item, "task_ids": numbers[0]} if numbers else item], 1)
        ranked = sorted(zip(row.tolist(), trained.labels or [], strict=True), reverse=True)[:5]
        return "  ".join(f"{label} {share:.3f}" for share, label in ranked)

    def check_rows(self, rows: Rows, prompter: Prompter) -> None:
        """Each names a file that is there."""
        for index in range(len(rows)):
            file_item(rows, index, self.of)
        task_numbers(rows, prompter.data.task_column)
        check_given(rows, prompter.data.label_column, prompter.data.labels)

    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """Columns `prediction` and `probability`."""
        data, names = trained.recipe.data, trained.labels or []
        items = self.file_items(rows, trained.prompter, checked=False).items
        for item, number in zip(items, task_numbers(rows, data.task_column) or (), strict=False):
            item["task_ids"] = number
        found = self._probabilities(
            trained, items, batch_size, lambda done: reporter.progress(Progress("predicting", done, len(items)))
        )
        best, position = found.max(-1)
        got = [names[i] for i in position.tolist()]
        out = [{**row, "prediction": name, "probability": round(p, 6)}
               for row, name, p in zip(rows.values, got, best.tolist(), strict=True)]  # fmt: skip
        scores = label_scores(rows, got, data.label_column, names)
        if scores is not None:
            expected = [label_of(rows, i, data.label_column, names) for i in range(len(rows))]
            scores = replace(scores, confusion=confusion_of(expected, got))
        return Predictions(out, scores)

    def _probabilities(
        self, trained: Trained, items: list[dict[str, Any]], batch_size: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Any:  # fmt: skip
        collate = self.collator(trained.tokenizer)
        return class_logits(trained.model, collate, items, batch_size=batch_size, progress=progress).softmax(1)


def confusion_of(expected: Sequence[str], got: Sequence[str]) -> dict[str, dict[str, int]]:
    """Label -> answer -> how many rows."""
    out: dict[str, dict[str, int]] = {}
    for label, answer in zip(expected, got, strict=True):
        row = out.setdefault(label, {})
        row[answer] = row.get(answer, 0) + 1
    return {label: dict(sorted(row.items())) for label, row in sorted(out.items())}
