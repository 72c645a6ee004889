"""Extractive question answering: the answer is a span of the passage, as in SQuAD.

Long passages are read in windows that overlap; a window without the answer points at its first token, and so does an
answer that is not there. Exact match and F1 are SQuAD's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import DataError
from ..answers.evaluate import wilson
from ..answers.judge import item_span_losses, span_losses, span_scores
from ..data.encode import Encoded, check_vocabulary
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..data.spans.answer_spans import Question, Window, exact_match, question_of, token_f1, windows
from ..recipe.sections import Recipe
from ..report.events import Progress, Reporter, Span
from ..report.scores import Scores
from .arguments import training_arguments
from .base import Job, Predictions, Task, Trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TARGETS = ["start_positions", "end_positions"]
_LONGEST_ANSWER = 30
"""Tokens of an answer."""
_CANDIDATES = 20
"""Starts and ends of a window that are tried together."""


class ExtractiveQA(Task):
    """Questions, passages and spans of them."""

    name: ClassVar[str] = "extractive_qa"
    loader: ClassVar[str] = "AutoModelForQuestionAnswering"
    columns: ClassVar[str] = "question, context and answers, as SQuAD has them"

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """A window an item, with the first and the last token of the first answer; 0 where it is not there."""
        out = Encoded(rows=rows)
        for index in range(len(rows)):
            question = question_of(rows, index)
            for window in windows(prompter.tokenizer, question, prompter.data.max_length):
                check_vocabulary(window.ids, rows.where(index), vocab_size)
                held = window.positions(*question.answers[0]) if question.answers else None
                start, end = held or (0, 0)
                out.items.append({**_inputs(window), "start_positions": start, "end_positions": end})
                out.source.append(index)
        return out

    def rendered(
        self, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
    ) -> list[Span]:
        """The window, with the answer told apart."""
        ids, (start, end) = item["input_ids"], (item[key] for key in _TARGETS)
        cuts = ((ids[:start], False), (ids[start : end + 1], True), (ids[end + 1 :], False))
        return [Span(str(tokenizer.decode(part)), trained) for part, trained in cuts if part]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Pads the windows."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def arguments(self, recipe: Recipe, work: Path, learning_rate: float) -> Any:
        """The names of the targets are told, because the Trainer finds them by the model's class."""
        return training_arguments(recipe, work, learning_rate, prediction_loss_only=True, label_names=_TARGETS)

    def item_losses(self, job: Job, items: Sequence[dict[str, Any]]) -> list[float]:
        """The mean loss of start and end of every window."""
        collate = self.collator(job.prompter.tokenizer)
        return item_span_losses(job.trainer.model, collate, items, batch_size=job.recipe.evaluation.batch_size)

    def position_losses(self, given: Mapping[str, Any], output: Any) -> tuple[Any, Any, int]:
        """The mean loss of start and end of every window."""
        import torch

        losses = span_losses(output, [given[key] for key in _TARGETS], given["input_ids"].shape[1])
        return torch.arange(len(losses), device=losses.device), losses, len(losses)

    def score(self, job: Job) -> Scores:
        """Held-out loss over windows, exact match and F1 over questions."""
        loss = float(job.trainer.evaluate(job.data.held_out)["eval_loss"])
        return _scores(loss, *self._asked(job))

    def items_right(self, job: Job) -> list[float]:
        """The F1 of every question's answer."""
        questions, got = self._asked(job)
        return [token_f1(answer, _gold(question)) for question, answer in zip(questions, got, strict=True)]

    def items(self, job: Job) -> tuple[list[float], list[float]]:
        """A question's loss is the mean over its windows."""
        assert job.data.held_out is not None
        losses: dict[int, list[float]] = {}
        encoded = job.data.held_out
        for row, loss in zip(encoded.source, self.item_losses(job, encoded.items), strict=True):
            losses.setdefault(row, []).append(loss)
        return [sum(losses[row]) / len(losses[row]) for row in sorted(losses)], self.items_right(job)

    def _asked(self, job: Job) -> tuple[list[Question], list[str]]:
        rows = job.data.split.held_out
        assert rows is not None
        questions = [question_of(rows, i) for i in range(len(rows))]
        got = _answers(job.trainer.model, job.prompter, questions, job.recipe.evaluation.batch_size, job.reporter,
                       f"answering ({job.stage})")  # fmt: skip
        return questions, [answer for answer, _ in got]

    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """The answer to a question that is followed by its passage."""
        question, mark, context = text.partition("?")
        if not context.strip():
            raise DataError("a question is to be followed by the text that answers it", got=text[:80],
                            expected="Who wrote it? Ana wrote the book.")  # fmt: skip
        asked = [Question(question + mark, context.strip())]
        ((answer, _),) = _answers(trained.model, trained.prompter, asked, 1, Reporter(), "")
        return answer or "(no answer)"

    def check_rows(self, rows: Rows, prompter: Prompter) -> None:
        """Each has a question and a passage."""
        for index in range(len(rows)):
            question_of(rows, index, answered=False)

    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """Columns `prediction` (empty where the passage has no answer) and `prediction_start`."""
        questions = [question_of(rows, i, answered=False) for i in range(len(rows))]
        got = _answers(trained.model, trained.prompter, questions, batch_size, reporter, "predicting")
        out = [{**row, "prediction": answer, "prediction_start": start}
               for row, (answer, start) in zip(rows.values, got, strict=True)]  # fmt: skip
        if not all({"answers", "answer"} & set(row) for row in rows.values):
            return Predictions(out)
        return Predictions(out, _scores(None, questions, [answer for answer, _ in got]))


def _inputs(window: Window) -> dict[str, Any]:
    types = {} if window.types is None else {"token_type_ids": window.types}
    return {"input_ids": window.ids, "attention_mask": [1] * len(window.ids), **types}


def _answers(
    model: Any, prompter: Prompter, questions: Sequence[Question], batch_size: int, reporter: Reporter, stage: str
) -> list[tuple[str, int | None]]:
    """The likeliest span of every passage and its first character; empty where its windows say that there is none."""
    cut = [(i, window) for i, question in enumerate(questions)
           for window in windows(prompter.tokenizer, question, prompter.data.max_length)]  # fmt: skip
    scores = span_scores(
        model, prompter.tokenizer, [_inputs(window) for _, window in cut], batch_size=batch_size,
        progress=lambda done: reporter.progress(Progress(stage, done, len(cut))),
    )  # fmt: skip
    best: list[tuple[float, int, int]] = [(float("-inf"), 0, 0)] * len(questions)
    nothing = [float("inf")] * len(questions)
    for (i, window), (starts, ends) in zip(cut, scores, strict=True):
        nothing[i] = min(nothing[i], starts[0] + ends[0])
        best[i] = max(best[i], _likeliest(window, starts, ends), key=lambda found: found[0])
    return [("", None) if none >= score else (question.context[start:after], start)
            for question, none, (score, start, after) in zip(questions, nothing, best, strict=True)]  # fmt: skip


def _likeliest(window: Window, starts: Sequence[float], ends: Sequence[float]) -> tuple[float, int, int]:
    """Score, first character and the one after the last of the likeliest span."""
    places = [i for i, o in enumerate(window.offsets) if o is not None and o[0] < o[1]]
    firsts = sorted(places, key=lambda i: -starts[i])[:_CANDIDATES]
    lasts = sorted(places, key=lambda i: -ends[i])[:_CANDIDATES]
    best = (float("-inf"), 0, 0)
    for first in firsts:
        for last in lasts:
            score, begin, end = starts[first] + ends[last], window.offsets[first], window.offsets[last]
            if first <= last < first + _LONGEST_ANSWER and score > best[0] and begin and end:
                best = score, begin[0], end[1]
    return best


def _gold(question: Question) -> list[str]:
    return [text for _, text in question.answers]


def _scores(loss: float | None, questions: Sequence[Question], got: Sequence[str]) -> Scores:
    pairs = list(zip(got, map(_gold, questions), strict=True))
    right = sum(exact_match(*pair) for pair in pairs)
    low, high = wilson(right, len(pairs))
    f1 = sum(token_f1(*pair) for pair in pairs) / len(pairs)
    return Scores(loss, len(pairs), right / len(pairs), low, high, f1=f1, metric="exact match", f1_of="answer")
