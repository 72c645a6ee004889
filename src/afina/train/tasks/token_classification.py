"""A tag for every word (named entities, parts of speech): rows with the lists `tokens` and `tags`.

A word's first sub-token carries its tag, the others have no loss, as in transformers' own example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import DataError
from ..answers.judge import token_classes
from ..data.encode import IGNORED, Encoded, check_vocabulary
from ..data.labels import found_tags, majority_share, tags_of, words_of
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..data.spans.entities import entity_f1, is_bio
from ..recipe.sections import DataSection
from ..report.events import Progress, Reporter, Span
from ..report.scores import Scores
from .base import Job, Predictions, Task, Trained
from .sequence_classification import head_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TAGS = "tags"


def sub_tokens(
    tokenizer: PreTrainedTokenizerBase, words: list[str], max_length: int
) -> tuple[list[int], list[int | None]]:
    """Token ids of a list of words, and the position of each word's first one: None where it has none, or was cut."""
    found = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
    first: list[int | None] = [None] * len(words)
    for position, word in reversed(list(enumerate(found.word_ids()))):
        if word is not None:
            first[word] = position
    return list(found["input_ids"]), first


class TokenClassification(Task):
    """Words and their tags."""

    name: ClassVar[str] = "token_classification"
    loader: ClassVar[str] = "AutoModelForTokenClassification"
    columns: ClassVar[str] = "tokens and tags, two lists of one length"
    classes: ClassVar[bool] = True

    def labels(self, data: DataSection, parts: Sequence[Rows]) -> list[str]:
        """The tags that the recipe names, else those found in the training rows."""
        labels = data.labels if data.labels is not None else found_tags(parts[0], TAGS)
        for rows in parts:
            for index in range(len(rows)):
                tags_of(rows, index, TAGS, labels)
        return labels

    def load_options(self, labels: list[str] | None) -> dict[str, Any]:
        """The tags' names."""
        return head_options(labels)

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """`labels` hold a tag's position at first sub-tokens, else -100."""
        out, limit = Encoded(rows=rows), prompter.data.max_length
        for index in range(len(rows)):
            words, tags = words_of(rows, index), tags_of(rows, index, TAGS, labels or [])
            ids, first = sub_tokens(prompter.tokenizer, words, limit)
            check_vocabulary(ids, rows.where(index), vocab_size)
            targets = [IGNORED] * len(ids)
            for tag, position in zip(tags, first, strict=True):
                if position is not None:
                    targets[position] = (labels or []).index(tag)
            out.truncated += len(ids) >= limit and first[-1] is None
            if all(target == IGNORED for target in targets):
                out.masked += 1
                continue
            out.items.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": targets})
            out.source.append(index)
        if not out.items:
            raise DataError("no row has a word with a token", where=rows.path)
        return out

    def rendered(
        self, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
    ) -> list[Span]:
        """The tokens, a tag behind each that has one."""
        spans = []
        for token, target in zip(item["input_ids"], item["labels"], strict=True):
            spans.append(Span(str(tokenizer.decode([token])) + ("" if target != IGNORED else " "), False))
            if target != IGNORED:
                spans.append(Span(f"/{labels[target] if labels else target} ", True))
        return spans

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Pads tags with -100."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(tokenizer)

    def score(self, job: Job) -> Scores:
        """Held-out loss, accuracy over words, and micro F1 over entities where the tags are BIO."""
        loss = float(job.trainer.evaluate(job.data.held_out)["eval_loss"])
        return _scores(loss, *self._expected_and_got(job), job.data.labels or [])

    def items_right(self, job: Job) -> list[float]:
        """The share of a row's words that have the right tag."""
        return [sum(gold == found for gold, found in zip(*row, strict=True)) / len(row[0])
                for row in zip(*self._expected_and_got(job), strict=True)]  # fmt: skip

    def _expected_and_got(self, job: Job) -> tuple[list[list[str]], list[list[str | None]]]:
        rows, labels = job.data.split.held_out, job.data.labels
        assert rows is not None
        assert labels is not None
        words = [words_of(rows, i) for i in range(len(rows))]
        got = _tagged(job.trainer.model, job.prompter, words, labels, job.recipe.evaluation.batch_size,
                      job.reporter, f"tagging ({job.stage})")  # fmt: skip
        return [tags_of(rows, i, TAGS, labels) for i in range(len(rows))], got

    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """The words of the text, each with its tag."""
        words = text.split()
        (tags,) = _tagged(trained.model, trained.prompter, [words], trained.labels or [], 1, Reporter(), "")
        return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))

    def check_rows(self, rows: Rows, prompter: Prompter) -> None:
        """Each has words."""
        labels, tagged = prompter.data.labels, all(TAGS in row for row in rows.values)
        for index in range(len(rows)):
            words_of(rows, index)
            if tagged and labels is not None:
                tags_of(rows, index, TAGS, labels)

    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """A column `prediction` with a tag for every word; null for words beyond `max_length`."""
        labels = trained.labels or []
        words = [words_of(rows, i) for i in range(len(rows))]
        got = _tagged(trained.model, trained.prompter, words, labels, batch_size, reporter, "predicting")
        out = [{**row, "prediction": tags} for row, tags in zip(rows.values, got, strict=True)]
        if not all(TAGS in row for row in rows.values):
            return Predictions(out)
        return Predictions(out, _scores(None, [tags_of(rows, i, TAGS, labels) for i in range(len(rows))], got, labels))


def _tagged(
    model: Any, prompter: Prompter, words: list[list[str]], labels: list[str], batch_size: int, reporter: Reporter,
    stage: str,
) -> list[list[str | None]]:  # fmt: skip
    cut = [sub_tokens(prompter.tokenizer, row, prompter.data.max_length) for row in words]
    classes = token_classes(
        model, prompter, [ids for ids, _ in cut], batch_size=batch_size,
        progress=lambda done: reporter.progress(Progress(stage, done, len(cut))),
    )  # fmt: skip
    return [[None if position is None else labels[found[position]] for position in first]
            for found, (_, first) in zip(classes, cut, strict=True)]  # fmt: skip


def _scores(loss: float | None, expected: list[list[str]], got: list[list[str | None]], labels: list[str]) -> Scores:
    """A word that the model did not see counts as wrong."""
    pairs = [pair for gold, found in zip(expected, got, strict=True) for pair in zip(gold, found, strict=True)]
    accuracy = sum(gold == found for gold, found in pairs) / len(pairs)
    f1 = entity_f1(expected, got) if is_bio(labels) else None
    # No interval: the words of a sentence are not independent of each other.
    return Scores(loss, len(expected), accuracy, majority=majority_share([gold for gold, _ in pairs]), f1=f1,
                  metric="word accuracy")  # fmt: skip
