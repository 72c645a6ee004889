"""What tasks share whose model writes text: greedy answers, judged where the rows have a fixed set of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ..answers.evaluate import share_right
from ..answers.foretold import foretold
from ..answers.generate import answers, longest_label, prompt_ids
from ..answers.item_pass import Read
from ..conversations.processor import Seen
from ..data.labels import check_given, checked_labels, is_right, label_of, task_numbers
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..recipe.sections import DataSection
from ..report.events import Progress, Reporter
from ..report.scores import Scores
from .base import Job, Predictions, Task, Trained

FREE_ANSWER_TOKENS = 256


class Answering(Task):
    """A task whose model answers a prompt.

    Attributes:
        encoder: whether an encoder reads the prompt, so that the output holds the answer alone.
    """

    encoder: ClassVar[bool] = False
    writes: ClassVar[bool] = True

    def labels(self, data: DataSection, parts: Sequence[Rows]) -> list[str] | None:
        """Only those that the recipe names make answers right or wrong."""
        return None if data.labels is None else checked_labels(parts, data.label_column, data.labels)

    def prompt(self, prompter: Prompter, rows: Rows, index: int) -> str:
        """What the model reads before it answers."""
        return prompter.prompt(rows, index, prompter.question_format(rows, index))

    def seen(self, prompter: Prompter, rows: Rows) -> list[Seen] | None:
        """What the model sees before it answers each row; None where there are no images."""
        if prompter.images is None:
            return None
        out = []
        for index in range(len(rows)):
            talk = prompter.talk(rows, index, prompter.question_format(rows, index), answered=False)
            found = prompter.seen(self.prompt(prompter, rows, index), talk.asked if talk is not None else None)
            assert found is not None
            out.append(found)
        return out

    def score(self, job: Job) -> Scores:
        """Held-out loss; and accuracy of greedy answers where there are labels."""
        data = job.data
        assert data.held_out is not None
        loss = float(job.trainer.evaluate(data.held_out)["eval_loss"])
        if data.labels is None:
            return Scores(loss, len(data.held_out))
        prompts, expected, got = self._answered(job, data.labels)
        right = sum(is_right(g, e, data.labels) for g, e in zip(got, expected, strict=True))
        return share_right(loss, right, expected, tuple(zip(prompts[:3], expected[:3], got[:3], strict=True)))

    def items(self, job: Job) -> tuple[list[float], list[float] | None]:
        """The losses; and 1 where the greedy answer is the label, else 0 (None where there are no labels)."""
        assert job.data.held_out is not None
        read, labels = self.read(job, job.data.held_out.items), job.data.labels
        losses = [one.loss for one in read]
        if labels is None:
            return losses, None
        _, expected, got = self._answered(job, labels, read)
        return losses, [float(is_right(g, e, labels)) for g, e in zip(got, expected, strict=True)]

    def _answered(
        self, job: Job, labels: list[str], read: Sequence[Read] | None = None
    ) -> tuple[list[str], list[str], list[str]]:
        """The held-out rows' prompts, labels and greedy answers.

        Args:
            read: what the model said of each encoded row, which spares decoding what is known from it.
        """
        rows, recipe = job.data.split.held_out, job.recipe
        assert rows is not None
        assert job.data.held_out is not None
        column = recipe.data.label_column
        expected = [label_of(rows, i, column, labels) for i in range(len(rows))]
        prompts = [self.prompt(job.prompter, rows, i) for i in range(len(rows))]
        limit = recipe.evaluation.max_new_tokens or longest_label(job.prompter, labels)
        seen = self.seen(job.prompter, rows)
        ask = self._asking(job, prompts, seen, limit)
        got = self._foretold(job, prompts, seen, limit, read, ask) if read is not None else {}
        got |= ask([i for i in range(len(prompts)) if i not in got])
        return prompts, expected, [got[i] for i in range(len(prompts))]

    def _asking(
        self, job: Job, prompts: Sequence[str], seen: list[Seen] | None, limit: int
    ) -> Callable[[Sequence[int]], dict[int, str]]:
        """What decodes the answers to some of the prompts, by their numbers."""
        rows, recipe = job.data.split.held_out, job.recipe
        assert rows is not None
        tasks = task_numbers(rows, recipe.data.task_column)

        def ask(part: Sequence[int]) -> dict[int, str]:
            done = len(prompts) - len(part)
            said = answers(
                job.trainer.model, job.prompter, [prompts[i] for i in part], encoder=self.encoder, max_new_tokens=limit,
                batch_size=recipe.evaluation.batch_size, tasks=tasks and [tasks[i] for i in part],
                seen=seen and [seen[i] for i in part],
                progress=lambda n: job.reporter.progress(Progress(f"answering ({job.stage})", done + n, len(prompts))),
            )  # fmt: skip
            return dict(zip(part, said, strict=True))

        return ask

    def _foretold(
        self, job: Job, prompts: Sequence[str], seen: list[Seen] | None, limit: int, read: Sequence[Read],
        ask: Callable[[Sequence[int]], dict[int, str]],
    ) -> dict[int, str]:  # fmt: skip
        """The answers that are known without decoding, by their numbers, and a batch of them that was decoded."""
        encoded = job.data.held_out
        assert encoded is not None
        asked = [one.ids for one in seen] if seen else prompt_ids(job.prompter, prompts, self.encoder)
        known = foretold(job.trainer.model, job.prompter, encoded, read, asked, encoder=self.encoder,
                         max_new_tokens=limit)  # fmt: skip
        tried = ask(list(known)[: job.recipe.evaluation.batch_size])
        # A method may look further in a pass over all tokens than in decoding one by one.
        return known if all(known[i] == said for i, said in tried.items()) else tried

    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """The greedy answer."""
        prompter = trained.prompter
        prompt = prompter.wrap(prompter.asked(text))
        seen = prompter.seen(prompt, None)
        (answer,) = answers(trained.model, prompter, [prompt], encoder=self.encoder, max_new_tokens=max_new_tokens,
                            batch_size=1, tasks=trained.task_numbers(1), seen=[seen] if seen else None)  # fmt: skip
        return answer

    def probe(self, prompter: Prompter, text: str, device: Any) -> dict[str, Any]:
        """The text as a prompt."""
        return super().probe(prompter, prompter.wrap(prompter.asked(text)), device)

    def check_rows(self, rows: Rows, prompter: Prompter) -> None:
        """Prompts are made of all of them."""
        for index in range(len(rows)):
            self.prompt(prompter, rows, index)
        task_numbers(rows, prompter.data.task_column)
        check_given(rows, prompter.data.label_column, prompter.data.labels)

    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """A column `prediction` with the greedy answer."""
        prompter, labels = trained.prompter, trained.labels
        prompts = [self.prompt(prompter, rows, i) for i in range(len(rows))]
        limit = max_new_tokens or trained.recipe.evaluation.max_new_tokens
        if limit is None:
            limit = longest_label(prompter, labels) if labels else FREE_ANSWER_TOKENS
        got = answers(
            trained.model, prompter, prompts, encoder=self.encoder, max_new_tokens=limit, batch_size=batch_size,
            tasks=task_numbers(rows, prompter.data.task_column), seen=self.seen(prompter, rows),
            progress=lambda done: reporter.progress(Progress("predicting", done, len(prompts))),
        )  # fmt: skip
        out = [{**row, "prediction": text} for row, text in zip(rows.values, got, strict=True)]
        return Predictions(out, label_scores(rows, got, prompter.data.label_column, labels))


def label_scores(rows: Rows, got: Sequence[str], column: str, labels: list[str] | None) -> Scores | None:
    """How many answers are the row's label, where every row has one.

    Raises:
        DataError: a label is out of range.
    """
    if labels is None or not all(column in row for row in rows.values):
        return None
    expected = [label_of(rows, i, column, labels) for i in range(len(rows))]
    return share_right(None, sum(is_right(g, e, labels) for g, e in zip(got, expected, strict=True)), expected)
