"""What tasks share whose rows are pairs: how much better the better half is judged, and what follows from that."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import Any, ClassVar

from ...answers.batches import in_batches
from ...answers.evaluate import of_pairs, pair_loss, pair_right
from ...report.events import Progress
from ...report.scores import Scores
from ..base import Job, Task


class OfPairs(Task):
    """A task whose rows are pairs.

    Attributes:
        metric: what the share of rightly judged pairs is called.
    """

    metric: ClassVar[str]

    @abstractmethod
    def margins(self, job: Job, items: list[dict[str, Any]]) -> list[float]:
        """By how much the better half of each pair of one batch is judged better; below 0 where it is not."""

    def score(self, job: Job) -> Scores:
        """The loss -log sigmoid(margin), and the share of pairs that are judged rightly."""
        return of_pairs(self._all(job, _held_out(job)), self.metric)

    def item_losses(self, job: Job, items: Sequence[dict[str, Any]]) -> list[float]:
        """The loss of every pair."""
        return [pair_loss(margin) for margin in self._all(job, items)]

    def items(self, job: Job) -> tuple[list[float], list[float]]:
        """1 where the better half is judged better, else 0; a tie counts half."""
        margins = self._all(job, _held_out(job))
        return [pair_loss(margin) for margin in margins], [pair_right(margin) for margin in margins]

    def _all(self, job: Job, items: Sequence[dict[str, Any]]) -> list[float]:
        found = in_batches(
            items, job.recipe.evaluation.batch_size, lambda part: self.margins(job, part),
            lambda done: job.reporter.progress(Progress(f"comparing ({job.stage})", done, len(items))),
        )  # fmt: skip
        return list(chain.from_iterable(found))


def _held_out(job: Job) -> list[dict[str, Any]]:
    assert job.data.held_out is not None
    return job.data.held_out.items
