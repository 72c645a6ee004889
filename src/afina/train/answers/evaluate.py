"""The proof in numbers: held-out loss, and how much is right with its interval and what chance or the majority gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import NumericError
from ..data.labels import majority_share

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Scores:
    """What was measured.

    Attributes:
        loss: mean held-out loss; None where rows were only predicted.
        rows: number of rows.
        accuracy: share of right answers, or None; a language model's greedy answer must be exactly the label
            (`labels.is_right`).
        low, high: its Wilson 95 % interval, where the rows are independent of each other.
        majority: accuracy of always giving the commonest label.
        samples: a few answers as (prompt, expected, got).
        f1: micro F1 of entities.
        metric: what `accuracy` is called.
    """

    loss: float | None
    rows: int
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    majority: float | None = None
    samples: tuple[tuple[str, str, str], ...] = ()
    f1: float | None = None
    metric: str = "accuracy"

    def as_dict(self) -> dict[str, Any]:
        """Plain values; samples as objects."""
        samples = [{"prompt": p, "expected": e, "got": g} for p, e, g in self.samples]
        return {**asdict(self), "samples": samples}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scores:
        """The scores that `as_dict` gave."""
        samples = tuple((s["prompt"], s["expected"], s["got"]) for s in values["samples"])
        return cls(**{**values, "samples": samples})

    @property
    def beside(self) -> list[str]:
        """What the accuracy must be read with, in words."""
        out = [] if self.low is None else [f"95 % interval {self.low:.3f} to {self.high:.3f}"]
        return out if self.majority is None else [*out, f"majority {self.majority:.3f}"]

    def __str__(self) -> str:
        """The scores in words."""
        parts = []
        if self.accuracy is not None:
            beside = f" ({'; '.join(self.beside)})" if self.beside else ""
            parts.append(f"{self.metric} {self.accuracy:.3f}{beside}")
        if self.f1 is not None:
            parts.append(f"entity F1 {self.f1:.3f}")
        if self.loss is not None:
            parts.append(f"held-out loss {self.loss:.3f} on {self.rows} rows")
        return ", ".join(parts)


def wilson(right: float, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (E. B. Wilson, 1927)."""
    if total == 0:
        return 0.0, 1.0
    p, z2 = right / total, _Z95**2
    middle, scale = p + z2 / (2 * total), 1 + z2 / total
    half = _Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def share_right(
    loss: float | None, right: int, expected: Sequence[str], samples: tuple[tuple[str, str, str], ...] = ()
) -> Scores:
    """Scores of answers of which `right` are the expected ones."""
    low, high = wilson(right, len(expected))
    share = majority_share(list(expected))
    return Scores(loss, len(expected), right / len(expected), low, high, share, samples)


def pair_loss(margin: float) -> float:
    """-log sigmoid(margin), without overflow."""
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))


def pair_right(margin: float) -> float:
    """1 where the better half was judged better, 0 where it was not; a tie counts half."""
    return float(margin > 0) + float(margin == 0) / 2


def of_pairs(margins: Sequence[float], metric: str) -> Scores:
    """Scores of pairs from how much better each one's better half was judged; a tie counts half, and 0.5 is chance.

    Raises:
        NumericError: a margin is not finite.
    """
    bad = next((m for m in margins if not math.isfinite(m)), None)
    if bad is not None:
        raise NumericError("a score of a held-out pair is not finite", got=bad, fix="lower training.learning_rate")
    loss = sum(map(pair_loss, margins)) / len(margins)
    right = sum(map(pair_right, margins))
    low, high = wilson(right, len(margins))
    return Scores(loss, len(margins), right / len(margins), low, high, metric=metric)
