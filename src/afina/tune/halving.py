"""Who leaves at a rung: of the worse half, those that are significantly worse than the best.

Successive halving (K. Jamieson and A. Talwalkar, AISTATS 2016, arXiv 1502.07943) drops the worse half whatever the
difference; here a candidate leaves only where it is in the worse half and the interval of its difference from the best,
in pairs over the held-out rows, lies wholly on the worse side. So noise drops nobody, and those that are as good go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..evidence.score import is_worse, standings, told_difference


@dataclass(frozen=True)
class Leaves:
    """Why a candidate leaves.

    Attributes:
        reason: in words.
        worse_than: the candidate that it is significantly worse than; empty where it leaves for another reason.
    """

    reason: str
    worse_than: str = ""


def rungs(steps: int, count: int) -> list[int]:
    """The steps at which candidates are compared: `count` of them, each twice the one before and the last one half of
    all; fewer where a run is too short for that.
    """
    return sorted({step for n in range(1, count + 1) if 0 < (step := round(steps / 2**n)) < steps})


def leaving(losses: Mapping[str, Sequence[float]]) -> dict[str, Leaves]:
    """Who leaves, and why; `losses` are of every held-out row, by candidate.

    One whose losses are not finite leaves. The best never does.
    """
    finite = {name: values for name, values in losses.items() if all(map(math.isfinite, values))}
    out = {name: Leaves("its held-out loss is not finite") for name in losses if name not in finite}
    if len(finite) < 2:
        return out
    best, found = standings({n: {0: v} for n, v in finite.items()}, higher_is_better=False)
    ranked = sorted(found, key=lambda name: found[name].quality.mean)
    for name in ranked[math.ceil(len(ranked) / 2) :]:
        difference = found[name].to_best
        if difference is not None and is_worse(difference, higher_is_better=False):
            words = told_difference({"mean": difference.mean, "low": difference.low, "high": difference.high}, "loss")
            out[name] = Leaves(f"significantly worse than {best} ({words})", best)
    return out
