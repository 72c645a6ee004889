"""Predictions of a trained adapter for the rows of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .evaluate import wilson
from .events import Progress, Reporter
from .generate import answers, class_probabilities, longest_label
from .labels import is_right, label_of, majority_share, task_numbers
from .model import Trained
from .rows import Row, Rows

FREE_ANSWER_TOKENS = 256


@dataclass(frozen=True)
class Predictions:
    """Rows with a column `prediction`; the accuracy and its interval where the rows are labelled, else None."""

    rows: list[Row]
    accuracy: float | None
    interval: tuple[float, float] | None
    majority: float | None


def predict(
    trained: Trained, rows: Rows, reporter: Reporter, *, batch_size: int, max_new_tokens: int | None = None
) -> Predictions:
    """Answer every row, or classify it (a column `probability` is added then).

    Raises:
        DataError: a row lacks a column that the prompt needs, or has a label out of range.
    """
    data, labels = trained.recipe.data, trained.labels
    if trained.recipe.task == "sequence_classification":
        added = _classes(trained, rows, batch_size)
    else:
        added = _answers(trained, rows, reporter, batch_size, max_new_tokens)
    out = [{**row, **more} for row, more in zip(rows.values, added, strict=True)]
    if labels is None or not all(data.label_column in row for row in rows.values):
        return Predictions(out, None, None, None)
    expected = [label_of(rows, i, data.label_column, labels) for i in range(len(rows))]
    right = sum(is_right(row["prediction"], label, labels) for row, label in zip(out, expected, strict=True))
    return Predictions(out, right / len(rows), wilson(right, len(rows)), majority_share(expected))


def _classes(trained: Trained, rows: Rows, batch_size: int) -> list[dict[str, Any]]:
    texts = [rows.text(i, trained.recipe.data.text_column) for i in range(len(rows))]
    tasks = task_numbers(rows, trained.recipe.data.task_column)
    found = class_probabilities(trained.model, trained.prompter, texts, batch_size=batch_size, tasks=tasks)
    best, position = found.max(-1)
    names = trained.labels or []
    return [
        {"prediction": names[i], "probability": round(p, 6)}
        for i, p in zip(position.tolist(), best.tolist(), strict=True)
    ]


def _answers(
    trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
) -> list[dict[str, Any]]:
    prompter = trained.prompter
    kind = "chat" if "messages" in rows.values[0] and prompter.data.prompt is None else "prompt_completion"
    prompts = [prompter.prompt(rows, i, kind) for i in range(len(rows))]
    limit = max_new_tokens or trained.recipe.evaluation.max_new_tokens
    if limit is None:
        limit = longest_label(prompter, trained.labels) if trained.labels else FREE_ANSWER_TOKENS
    got = answers(
        trained.model,
        prompter,
        prompts,
        max_new_tokens=limit,
        batch_size=batch_size,
        tasks=task_numbers(rows, prompter.data.task_column),
        progress=lambda done: reporter.progress(Progress("predicting", done, len(prompts))),
    )
    return [{"prediction": text} for text in got]
