"""The proof of a run in numbers: what its task measures, and the loss of each data set by itself."""

from __future__ import annotations

from dataclasses import replace

from ..data.joined import Joined
from ..report.scores import Scores
from ..tasks import named
from ..tasks.base import Job


def scored(job: Job) -> Scores:
    """Measure a run's model on its held-out rows.

    Raises:
        NumericError: a loss is not finite.
    """
    task, held_out = named(job.recipe.task), job.data.held_out
    scores, rows = task.score(job), job.data.split.held_out
    if not isinstance(rows, Joined) or held_out is None:
        return scores
    of_set: dict[str, list[float]] = {name: [] for name in rows.names}
    for row, loss in zip(held_out.source, task.item_losses(job, held_out.items), strict=True):
        of_set[rows.names[row]].append(loss)
    return replace(scores, sets={name: sum(losses) / len(losses) for name, losses in of_set.items() if losses})
