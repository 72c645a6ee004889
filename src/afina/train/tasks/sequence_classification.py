"""One label for a text: a fresh head on an encoder or a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..answers.evaluate import share_right
from ..answers.generate import class_probabilities
from ..data.encode import Data, Encoded, encode_classes
from ..data.labels import check_given, checked_labels, found_labels, label_of, task_numbers
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..recipe.sections import DataSection, Recipe
from ..report.events import Reporter, Span
from ..report.scores import Scores
from .answering import label_scores
from .base import Job, Predictions, Task, Trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def head_options(labels: list[str] | None) -> dict[str, Any]:
    """Names for the outputs of a fresh head."""
    if not labels:
        return {}
    return {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}


def pad_with(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """A language model's head reads the last token that is no padding, so the model must know what pads."""
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


class SequenceClassification(Task):
    """Texts and labels."""

    name: ClassVar[str] = "sequence_classification"
    shares: ClassVar[str] = "exactly"
    loader: ClassVar[str] = "AutoModelForSequenceClassification"
    columns: ClassVar[str] = "text and label"
    classes: ClassVar[bool] = True
    loss_only: ClassVar[bool] = False

    def labels(self, data: DataSection, parts: Sequence[Rows]) -> list[str]:
        """Those that the recipe names, else those found in the training rows."""
        labels = data.labels if data.labels is not None else found_labels(parts[0], data.label_column)
        return checked_labels(parts, data.label_column, labels)

    def load_options(self, labels: list[str] | None) -> dict[str, Any]:
        """The labels' names."""
        return head_options(labels)

    def loaded(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Tell the model what pads."""
        pad_with(model, tokenizer)

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """Tokens of the text, and the label's position."""
        return encode_classes(rows, prompter.tokenizer, prompter.data, labels or [])

    def rendered(
        self, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
    ) -> list[Span]:
        """The text and its label."""
        label = labels[item["labels"]] if labels else str(item["labels"])
        return [Span(str(tokenizer.decode(item["input_ids"])), False), Span(f" -> {label}", True)]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Pads the texts."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def trainer(
        self, recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, data: Data, arguments: Any
    ) -> Any:
        """Its evaluation gives the accuracy too."""
        out = super().trainer(recipe, model, tokenizer, data, arguments)
        out.compute_metrics = _accuracy
        return out

    def score(self, job: Job) -> Scores:
        """Held-out loss and accuracy."""
        data = job.data
        assert data.split.held_out is not None
        measured, rows = job.trainer.evaluate(data.held_out), data.split.held_out
        expected = [label_of(rows, i, job.recipe.data.label_column, data.labels or []) for i in range(len(rows))]
        right = round(float(measured["eval_accuracy"]) * len(rows))
        return share_right(float(measured["eval_loss"]), right, expected)

    def items_right(self, job: Job) -> list[float]:
        """1 where the likeliest label is the row's, else 0."""
        rows, labels, data = job.data.split.held_out, job.data.labels or [], job.recipe.data
        assert rows is not None
        texts = [rows.text(i, data.text_column) for i in range(len(rows))]
        found = class_probabilities(job.trainer.model, job.prompter, texts,
                                    batch_size=job.recipe.evaluation.batch_size,
                                    tasks=task_numbers(rows, data.task_column)).argmax(-1).tolist()  # fmt: skip
        return [float(labels[k] == label_of(rows, i, data.label_column, labels)) for i, k in enumerate(found)]

    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """The likeliest labels with their probabilities."""
        (row,) = class_probabilities(trained.model, trained.prompter, [text], batch_size=1,
                                     tasks=trained.task_numbers(1)).tolist()  # fmt: skip
        ranked = sorted(zip(row, trained.labels or [], strict=True), reverse=True)[:5]
        return "  ".join(f"{label} {share:.3f}" for share, label in ranked)

    def check_rows(self, rows: Rows, prompter: Prompter) -> None:
        """Each has a text."""
        for index in range(len(rows)):
            rows.text(index, prompter.data.text_column)
        task_numbers(rows, prompter.data.task_column)
        check_given(rows, prompter.data.label_column, prompter.data.labels)

    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """Columns `prediction` and `probability`."""
        data, names = trained.recipe.data, trained.labels or []
        texts = [rows.text(i, data.text_column) for i in range(len(rows))]
        tasks = task_numbers(rows, data.task_column)
        found = class_probabilities(trained.model, trained.prompter, texts, batch_size=batch_size, tasks=tasks)
        best, position = found.max(-1)
        got = [names[i] for i in position.tolist()]
        out = [{**row, "prediction": name, "probability": round(p, 6)}
               for row, name, p in zip(rows.values, got, best.tolist(), strict=True)]  # fmt: skip
        return Predictions(out, label_scores(rows, got, data.label_column, names))


def _accuracy(predicted: Any) -> dict[str, float]:
    logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    return {"accuracy": float((logits.argmax(-1) == predicted.label_ids).mean())}
