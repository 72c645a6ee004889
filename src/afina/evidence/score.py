"""Intervals, differences in pairs, and which method to take.

Every run scores the same items, so two methods are compared item by item and seed by seed: what is hard for both
cancels. Intervals are percentiles of a bootstrap that draws items and seeds anew, each with replacement and
independently of each other (the pigeonhole bootstrap: A. B. Owen, Annals of Applied Statistics 1, 2007). With few seeds
it understates how much seeds differ; intervals are not widened for the number of methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_DRAWS = 4000
_SEED = 0
_LOW, _HIGH = 2.5, 97.5


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


class Bootstrap:
    """Draws of `seeds` x `items`, the same for everything that is asked, so that results repeat."""

    def __init__(self, seeds: int, items: int) -> None:
        import numpy as np

        draw = np.random.default_rng(_SEED)
        self.item_weights = draw.multinomial(items, [1 / items] * items, size=_DRAWS) / items
        self.seed_weights = draw.multinomial(seeds, [1 / seeds] * seeds, size=_DRAWS) / seeds

    def interval(self, scores: Any) -> Interval:
        """Of the mean of `scores`, an array [seeds, items]."""
        import numpy as np

        means = ((self.seed_weights @ scores) * self.item_weights).sum(1)
        low, high = np.percentile(means, [_LOW, _HIGH])
        return Interval(float(scores.mean()), float(low), float(high))


@dataclass(frozen=True)
class Standing:
    """How a method stands.

    Attributes:
        quality: in the metric's own unit.
        to_best, to_full: its quality less that of the best and of full fine-tuning, in pairs; None for those
            themselves and where full fine-tuning was not compared.
        seeds: how many seeds were finished.
    """

    quality: Interval
    to_best: Interval | None
    to_full: Interval | None
    seeds: int


def standings(
    scores: Mapping[str, Mapping[int, Sequence[float]]], *, higher_is_better: bool, full: str | None = None,
    best: str = "",
) -> tuple[str, dict[str, Standing]]:  # fmt: skip
    """The best method's name, and where each stands; `scores` is method -> seed -> score of every item. `best` says
    which is taken for it, where that is known.

    Pairs are taken over the seeds that both methods finished. Methods that finished fewer seeds than others cannot be
    the best.
    """
    import numpy as np

    most = max(len(by_seed) for by_seed in scores.values())
    means = {name: float(np.mean(list(s.values()))) for name, s in scores.items() if len(s) == most}
    best = best or (max if higher_is_better else min)(means, key=lambda name: means[name])
    drawn: dict[int, Bootstrap] = {}

    def interval(array: Any) -> Interval:
        return drawn.setdefault(len(array), Bootstrap(*array.shape)).interval(array)

    def pairs(name: str, other: str | None) -> Interval | None:
        if other is None or other == name or other not in scores:
            return None
        both = sorted(set(scores[name]) & set(scores[other]))
        if not both:
            return None
        return interval(np.array([np.subtract(scores[name][s], scores[other][s]) for s in both], dtype=float))

    return best, {
        name: Standing(interval(np.array(list(s.values()), dtype=float)), pairs(name, best), pairs(name, full), len(s))
        for name, s in scores.items()
    }


def is_worse(difference: Interval | None, *, higher_is_better: bool) -> bool:
    """Whether the whole interval of a difference lies on the worse side of zero."""
    if difference is None:
        return False
    return difference.high < 0 if higher_is_better else difference.low > 0


def was_trained(verdicts: Sequence[str]) -> bool | None:
    """Whether a method's training loss fell by more than its noise (`report.descent`) in most of its runs; None where
    no run tells: too short, or of a task whose loss is no measure."""
    told = [verdict == "fell" for verdict in verdicts if verdict != "too short"]
    return 2 * sum(told) > len(told) if told else None


@dataclass(frozen=True)
class Recommendation:
    """A method, and why, in a sentence."""

    name: str
    sentence: str


def recommend(
    rows: Sequence[Mapping[str, Any]], best: str, *, metric: str, floor: float | None, timed: bool = True
) -> Recommendation:
    """The method with the fewest trained parameters among those that are not significantly worse than the best.

    None is recommended against one that was not trained: what that could do is not known.

    Args:
        rows: the comparison's finished rows: `name`, `quality`, `to_best`, `worse`, `complete`, `trained`,
            `learning_rate`, `rate_to_try`, `trainable`, `share`, `wall_s`, `memory_mb`, `size_bytes`.
        floor: the accuracy of always giving the commonest label, where there is one.
        timed: whether the times can be compared.
    """
    idle = [row for row in rows if row["trained"] is False]
    if idle:
        return Recommendation("", _untrained(idle))
    by_name = {row["name"]: row for row in rows}
    top = by_name[best]
    if floor is not None and top["quality"]["low"] <= floor:
        sentence = (f"No method can be recommended: the best, {best}, is not significantly better than always giving "
                    f"the commonest label ({floor:.1%}); try more steps, or --tune.")  # fmt: skip
        return Recommendation("", sentence)
    fit = [row for row in rows if not row["worse"] and row["complete"]]
    pick = min(fit, key=lambda row: (row["trainable"], row["wall_s"] if timed else 0))
    reason = (
        f"{told(pick['quality'], metric)}, with {pick['trainable']:,} trained parameters ({100 * pick['share']:.3g} %)"
    )
    if pick["name"] == best:
        cheaper = [row for row in rows if row["trainable"] < top["trainable"]]
        why = "every method with fewer is significantly worse" if cheaper else "none has fewer"
        return Recommendation(best, f"Take {best}: the best, {reason}; {why}.{_second(cheaper, top, metric, floor)}")
    lost = told_difference(pick["to_best"], metric)
    factor = top["trainable"] / pick["trainable"]
    times = f"{factor:,.0f} times" if factor >= 2 else f"{factor:.2f} times"
    time = f"; it took {pick['wall_s'] / top['wall_s']:.1f} times as long to train" if timed else ""
    return Recommendation(pick["name"], (
        f"Take {pick['name']}: {reason}, {times} fewer than the best, {best} ({told(top['quality'], metric)}), and no "
        f"significant difference from it ({lost}){time}."
    ))  # fmt: skip


def _untrained(idle: Sequence[Mapping[str, Any]]) -> str:
    """Why nothing is recommended, with the rates to try."""
    names = ", ".join(f"{row['name']} (at {row['learning_rate']:g}; try lr={row['rate_to_try']:g})" for row in idle)
    return (f"No method can be recommended: the training loss of these did not fall by more than its noise, they were "
            f"not trained: {names}. Compare again at other rates, with more steps, or with --tune.")  # fmt: skip


def _second(cheaper: Sequence[Mapping[str, Any]], top: Mapping[str, Any], metric: str, floor: float | None) -> str:
    """The best of the cheaper methods in a sentence, for those to whom the best one costs too much."""
    useful = [r for r in cheaper if r["complete"] and (floor is None or r["quality"]["low"] > floor)]
    if not useful:
        return ""
    row = (max if metric == "accuracy" else min)(useful, key=lambda r: r["quality"]["mean"])
    fewer = f"{top['trainable'] / row['trainable']:,.0f} times fewer trained parameters"
    memory = f" and {row['memory_mb'] / top['memory_mb']:.1f} times the memory" if top["memory_mb"] else ""
    lost = told_difference(row["to_best"], metric)
    return f" Where that is too dear: {row['name']} ({lost}), with {fewer}{memory}."


def told(value: Mapping[str, float], metric: str) -> str:
    """A quality in words."""
    if metric == "accuracy":
        return f"{value['mean']:.1%} right [{value['low']:.1%}, {value['high']:.1%}]"
    return f"loss {value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def told_difference(value: Mapping[str, float] | None, metric: str, unit: str = " points") -> str:
    """A difference with its interval, in points of a percent for accuracies."""
    if value is None:
        return "-"
    factor, places = (100, 1) if metric == "accuracy" else (1, 3)
    mean, low, high = (factor * value[key] for key in ("mean", "low", "high"))
    return f"{mean:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]" + (unit if metric == "accuracy" else "")
