"""Intervals, differences in pairs, and which method to take.

Every run scores the same items, so two methods are compared item by item and seed by seed: what is hard for both
cancels. Seeds and items are both drawn at random, each item is scored with each seed: the variance of the mean is that
of a two-way layout with both effects random, (MS_seeds + MS_items - MS_rest) / (seeds * items), and its degrees of
freedom are F. E. Satterthwaite's (Biometrics Bulletin 2, 1946). With three seeds that differ, t has about two degrees
of freedom, and the interval is as wide as three seeds deserve. One seed tells nothing of how much seeds differ.
Intervals are not widened for the number of methods.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..train.answers.evaluate import t_quantile


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(scores: Any) -> Interval:
    """Of the mean of `scores`, an array [seeds, items] of two items or more; of one item, the item itself."""
    seeds, items = scores.shape
    mean = float(scores.mean())
    if items < 2:
        return Interval(mean, mean, mean)
    # Each part of the variance of the mean, with its degrees of freedom.
    parts = [(float(scores.mean(0).var(ddof=1)) / items, items - 1)]
    variance = parts[0][0]
    if seeds > 1:
        rest = scores - scores.mean(0) - scores.mean(1, keepdims=True) + mean
        parts.append((float(scores.mean(1).var(ddof=1)) / seeds, seeds - 1))
        parts.append((float((rest**2).sum()) / ((seeds - 1) * (items - 1) * seeds * items), (seeds - 1) * (items - 1)))
        variance = max(parts[0][0], parts[1][0], parts[0][0] + parts[1][0] - parts[2][0])
    spread = sum(part**2 / degrees for part, degrees in parts)
    if spread == 0.0:
        return Interval(mean, mean, mean)
    half = t_quantile(variance**2 / spread) * variance**0.5
    return Interval(mean, mean - half, mean + half)


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
    among: Collection[str] = (),
) -> tuple[str, dict[str, Standing]]:  # fmt: skip
    """The best method's name, and where each stands.

    Args:
        scores: method -> seed -> score of every item.
        full: the name of full fine-tuning, where it is among them.
        among: those that the best can be of; all if none is named.

    Returns:
        Pairs are taken over the seeds that both methods finished. Methods that finished fewer seeds than others cannot
        be the best.
    """
    import numpy as np

    fit = {name: scores[name] for name in among or scores}
    most = max(len(by_seed) for by_seed in fit.values())
    means = {name: float(np.mean(list(s.values()))) for name, s in fit.items() if len(s) == most}
    best = (max if higher_is_better else min)(means, key=lambda name: means[name])

    def pairs(name: str, other: str | None) -> Interval | None:
        if other is None or other == name or other not in scores:
            return None
        both = sorted(set(scores[name]) & set(scores[other]))
        if not both:
            return None
        return interval(np.array([np.subtract(scores[name][s], scores[other][s]) for s in both], dtype=float))

    def quality(array: Any) -> Interval:
        found = interval(array)  # a share of right answers lies between 0 and 1
        return Interval(found.mean, max(found.low, 0.0), min(found.high, 1.0)) if higher_is_better else found

    return best, {
        name: Standing(quality(np.array(list(s.values()), dtype=float)), pairs(name, best), pairs(name, full), len(s))
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


MARGIN = 0.05
"""How much worse than the best a recommended method may be at most, with 95 % certainty: a share of right answers, or
of the best's loss. That a difference is not significant says little where seeds differ much."""


@dataclass(frozen=True)
class Recommendation:
    """A method, and why, in a sentence."""

    name: str
    sentence: str


def recommend(
    rows: Sequence[Mapping[str, Any]], best: str, *, metric: str, floor: float | None, timed: bool = True
) -> Recommendation:
    """The method with the fewest trained parameters among those that are not significantly worse than the best and,
    with 95 % certainty, at most `MARGIN` worse.

    One that was not trained is neither recommended nor the best: what it could do is not known, which is said.

    Args:
        rows: the comparison's finished rows: `name`, `quality`, `to_best`, `worse`, `complete`, `trained`,
            `learning_rate`, `rate_to_try`, `trainable`, `share`, `wall_s`, `memory_mb`, `size_bytes`.
        floor: the accuracy of always giving the commonest label, where there is one.
        timed: whether the times can be compared.
    """
    idle = [row for row in rows if row["trained"] is False]
    rows, left_out = [row for row in rows if row["trained"] is not False], _untrained(idle)
    if not rows:
        return Recommendation("", f"No method can be recommended, none was trained.{left_out}")
    by_name = {row["name"]: row for row in rows}
    top = by_name[best]
    if floor is not None and top["quality"]["low"] <= floor:
        sentence = (f"No method can be recommended: the best, {best}, is not significantly better than always giving "
                    f"the commonest label ({floor:.1%}); try more steps, or --tune.{left_out}")  # fmt: skip
        return Recommendation("", sentence)
    level = [row for row in rows if not row["worse"] and row["complete"]]
    fit = [row for row in level if row is top or is_near(row, top, metric)]
    pick = min(fit, key=lambda row: (row["trainable"], row["wall_s"] if timed else 0))
    reason = (
        f"{told(pick['quality'], metric)}, with {pick['trainable']:,} trained parameters ({100 * pick['share']:.3g} %)"
    )
    if pick["name"] == best:
        cheaper = [row for row in rows if row["trainable"] < top["trainable"]]
        why = _why_best(cheaper, level, metric)
        second = _second(cheaper, top, metric, floor)
        return Recommendation(best, f"Take {best}: the best, {reason}; {why}.{second}{left_out}")
    factor = top["trainable"] / pick["trainable"]
    times = f"{factor:,.0f} times" if factor >= 2 else f"{factor:.2f} times"
    time = f"; it took {pick['wall_s'] / top['wall_s']:.1f} times as long to train" if timed else ""
    return Recommendation(pick["name"], (
        f"Take {pick['name']}: {reason}, {times} fewer than the best, {best} ({told(top['quality'], metric)}), and no "
        f"significant difference from it ({told_difference(pick['to_best'], metric)}: "
        f"{told_margin(pick['to_best'], metric)}){time}.{left_out}"
    ))  # fmt: skip


def is_near(row: Mapping[str, Any], top: Mapping[str, Any], metric: str) -> bool:
    """Whether a method is at most `MARGIN` worse than the best, with 95 % certainty."""
    most = MARGIN if metric == "accuracy" else MARGIN * abs(top["quality"]["mean"])
    return row["to_best"] is not None and _lost(row["to_best"], metric) <= most


def _lost(difference: Mapping[str, float], metric: str) -> float:
    """How much worse at most the one with this difference from the best is."""
    return max(0.0, -difference["low"] if metric == "accuracy" else difference["high"])


def _why_best(cheaper: Sequence[Mapping[str, Any]], level: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Why nothing with fewer parameters than the best is recommended."""
    unsure = [row["name"] for row in cheaper if row in level]
    if not unsure:
        return "every method with fewer is significantly worse" if cheaper else "none has fewer"
    most = f"{100 * MARGIN:.0f} points" if metric == "accuracy" else f"{MARGIN:.0%} of its loss"
    return (f"of those with fewer {', '.join(unsure)} may be as good, or more than {most} worse: more rows or seeds "
            "would tell")  # fmt: skip


def told_margin(difference: Mapping[str, float], metric: str) -> str:
    """How much worse at most the one with this difference from the best is: the margin within which both are equal."""
    least = _lost(difference, metric)
    words = f"{100 * least:.1f} points" if metric == "accuracy" else f"{least:.3f}"
    return f"at most {words} worse, with 95 % certainty"


def _untrained(idle: Sequence[Mapping[str, Any]]) -> str:
    """Who was left out, with the rates to try; a sentence, if there are any."""
    if not idle:
        return ""
    names = ", ".join(f"{row['name']} (at {row['learning_rate']:g}; try lr={row['rate_to_try']:g})" for row in idle)
    why = "the training loss did not fall by more than its noise (not trained)"
    return f" Left out, because {why}: {names}. What they could do at other rates or with more steps is not known."


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
