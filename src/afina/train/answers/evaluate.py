"""The proof in numbers: how much is right with its interval, and what chance or the majority gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ...errors import NumericError
from ..data.labels import majority_share
from ..report.scores import Scores

_Z95 = 1.959963984540054
_CERTAIN = 0.95
_MOST_DEGREES = 10_000
"""Of freedom; with more t is the normal distribution to three digits."""


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


def t_quantile(degrees: float) -> float:
    """Student's t that 2.5 % lie above, for 1 degree of freedom and more (fewer are taken for 1).

    With t = sqrt(df) tan(a) the density of a is proportional to cos(a)^(df - 1).
    """
    import numpy as np

    degrees = min(max(degrees, 1.0), _MOST_DEGREES)
    angles = np.linspace(0.0, min(np.pi / 2, 12 / degrees**0.5), 4001)
    density = np.cos(angles) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp(_CERTAIN * below[-1], below, angles)
    return float(degrees**0.5 * np.tan(angle))


def against(before: Scores, after: Scores) -> Scores:
    """The scores after, with how much lower each row's loss is than before, where both kept the rows' losses."""
    if not after.losses or len(after.losses) != len(before.losses):
        return after
    lower = [was - now for was, now in zip(before.losses, after.losses, strict=True)]
    mean, rows = sum(lower) / len(lower), len(lower)
    spread = math.sqrt(sum((one - mean) ** 2 for one in lower) / max(1, rows - 1) / rows)
    half = t_quantile(rows - 1) * spread if rows > 1 else math.inf
    return replace(after, lowered=(mean, mean - half, mean + half))
