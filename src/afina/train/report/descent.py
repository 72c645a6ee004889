"""Whether a run's training loss fell by more than its noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal

_SHORTEST, _LONGEST, _SHARE = 5, 50, 4
"""Least and most losses in a window, and which part of a run (a quarter) it is between them."""
_ERRORS = 2.0
"""How many standard errors a difference must exceed: about one false call in 20 for windows of five."""
_FAR_ABOVE = 5.0
"""From how many times the method's own rate on a flat loss means too high a rate, not too low a one."""

Verdict = Literal["fell", "flat", "rose", "too short"]


@dataclass(frozen=True)
class Descent:
    """What became of the training loss.

    Attributes:
        verdict: "fell" or "rose" by more than its noise, or "flat"; "too short" where that cannot be told.
        window: how many losses at either end were compared.
        first, last: their means.
        noise: what a difference must exceed, two standard errors of the difference of both means.
    """

    verdict: Verdict
    window: int = 0
    first: float | None = None
    last: float | None = None
    noise: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the report."""
        return asdict(self)


def descent(losses: Sequence[float]) -> Descent:
    """Compare the first and the last losses of a run: the mean of k against the mean of k.

    k is a quarter of the run, at least 5 and at most 50; a run of fewer than 10 losses is too short. The noise is that
    from one loss to the next, var = mean of (x[i+1] - x[i])^2 / 2 within a window (J. von Neumann, Annals of
    Mathematical Statistics 12, 1941), so that a fall within a window does not count as noise. A run that ends in a loss
    that is not finite rose.
    """
    if losses and not math.isfinite(losses[-1]):
        return Descent("rose")
    values = [loss for loss in losses if math.isfinite(loss)]
    if len(values) < 2 * _SHORTEST:
        return Descent("too short")
    window = min(max(len(values) // _SHARE, _SHORTEST), _LONGEST)
    head, tail = values[:window], values[-window:]
    first, last = fmean(head), fmean(tail)
    noise = _ERRORS * math.sqrt((_variance(head) + _variance(tail)) / window)
    # Rounding alone is no fall: losses are logged in single precision.
    fall, least = first - last, max(noise, 1e-6 * abs(first))
    return Descent("fell" if fall > least else "rose" if -fall > least else "flat", window, first, last, noise)


def _variance(values: Sequence[float]) -> float:
    return fmean((after - before) ** 2 for before, after in pairwise(values)) / 2


def rate_to_try(found: Descent, rate: float, default: float) -> float | None:
    """A learning rate for the next run: a tenth where the loss rose; where it is flat ten times, or the method's own if
    that is higher, but the method's own where `rate` is far above it: such runs leave what they know at the first steps
    and stay flat (docs/method-table.md). None where the run was trained or cannot be told."""
    if found.verdict in ("fell", "too short"):
        return None
    if found.verdict == "rose":
        return float(f"{rate / 10:.2g}")
    return float(f"{default if rate >= _FAR_ABOVE * default else max(10 * rate, default):.2g}")


def advice(found: Descent, rate: float) -> str:
    """What to say at the end of a run that was not trained, in a line."""
    what = "rose" if found.verdict == "rose" else "did not fall by more than its noise"
    numbers = "" if found.first is None else (
        f" (mean of the first {found.window} logged {found.first:.4g}, of the last {found.last:.4g}; noise "
        f"{found.noise:.2g})"
    )  # fmt: skip
    return f"not trained: the training loss {what}{numbers}; try training.learning_rate={rate:g}"
