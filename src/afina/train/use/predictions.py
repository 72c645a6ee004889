"""Predictions of a trained adapter for the rows of a file."""

from __future__ import annotations

from ..data.rows import Rows
from ..report.events import Reporter
from ..tasks.base import Predictions, Trained


def predict(
    trained: Trained, rows: Rows, reporter: Reporter, *, batch_size: int, max_new_tokens: int | None = None
) -> Predictions:
    """What the model says to every row, in columns that its task names.

    Raises:
        DataError: a row lacks a column that the task needs, or has a label out of range.
    """
    return trained.task.predict(trained, rows, reporter, batch_size, max_new_tokens)
