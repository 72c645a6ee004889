"""Plots as SVG that takes its colours from the page, so that light and dark need no second copy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 360, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 26, 38
_LETTER, _LINE = 5.8, 11
COLOURS = """
:root { --ink: #1c2733; --soft: #5b6875; --rule: #d8dee4; --accent: #0b6bcb; --good: #1a7f37; --back: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa7b4; --rule: #30363d; --accent: #58a6ff; --good: #3fb950; --back: #0d1117; }
}
"""
STYLE = """
svg text { font: 10px system-ui, sans-serif; fill: var(--soft); }
svg .name { fill: var(--ink); } svg .title { font-size: 12px; font-weight: 600; fill: var(--ink); }
svg .rule { stroke: var(--rule); fill: none; } svg .range { stroke: var(--soft); opacity: .55; }
svg .point { fill: var(--soft); } svg .front { fill: var(--accent); } svg .pick { fill: var(--good); }
svg .edge { stroke: var(--accent); fill: none; stroke-dasharray: 3 3; opacity: .8; }
svg .loss { stroke: var(--accent); fill: none; stroke-width: .8; opacity: .28; }
svg .line { stroke: var(--soft); fill: none; stroke-width: 1.2; opacity: .7; }
svg .line.chosen { stroke: var(--good); stroke-width: 2; opacity: 1; }
svg .mean { stroke: var(--accent); fill: none; stroke-width: 1.6; }
"""
COSTS = (
    ("trainable", "trained parameters"), ("memory_mb", "peak memory above the base, MiB"),
    ("wall_s", "seconds of training"),
)  # fmt: skip


class _Axis:
    """A linear or logarithmic scale from values to pixels, with round ticks."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = (self._of(low), self._of(high))
        margin = 0.08 * (high - low) or 0.5
        self.low, self.high = low - margin, high + margin

    def _of(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value

    def __call__(self, value: float) -> float:
        share = (self._of(value) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if not self.log:
            return _steps(self.low, self.high)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for factors in ((1,), (1, 2, 5)):
            inside = [f * 10.0**p for p in decades for f in factors if self.low <= math.log10(f * 10.0**p) <= self.high]
            if len(inside) >= 2:
                return inside[:: math.ceil(len(inside) / 5)]
        return _steps(10**self.low, 10**self.high)


def _steps(low: float, high: float) -> list[float]:
    """Two to six round numbers between `low` and `high`, evenly spaced."""
    step: float = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= 5)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def short(value: float) -> str:
    """A number in a few signs: 1.2M, 300k, 0.05."""
    for factor, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{sign}"
    return f"{value:.3g}"


def pareto(comparison: Mapping[str, Any], cost: str, title: str) -> str:
    """Quality against a cost, a point a method with its interval; the front joins what nothing beats in both."""
    rows = [row for row in comparison["rows"] if row["status"] == "done"]
    if not rows:
        return ""
    percent = 100 if comparison["metric"] == "accuracy" else 1
    x = _Axis(min(r[cost] for r in rows), max(r[cost] for r in rows), _LEFT, WIDTH - _RIGHT, log=True)
    lows, highs = ([percent * r["quality"][end] for r in rows] for end in ("low", "high"))
    y = _Axis(min(lows), max(highs), HEIGHT - _BOTTOM, _TOP)
    points = [(x(r[cost]), y(percent * r["quality"]["mean"])) for r in rows]
    front = _front(rows, cost, comparison["higher_is_better"])
    what = "accuracy, %" if percent == 100 else "loss (lower is better)"
    parts = [_frame(x, y, title, what)]
    edge = sorted(points[rows.index(r)] for r in front)
    parts.append(f'<path class="edge" d="{_path(edge)}"/>')
    for row, (px, py), low, high in zip(rows, points, lows, highs, strict=True):
        kind = "pick" if row["name"] == comparison["recommended"] else "front" if row in front else "point"
        parts.append(f'<path class="range" d="M{px} {y(low)}V{y(high)}"/>')
        parts.append(f'<circle class="{kind}" cx="{px}" cy="{py}" r="4"><title>{escape(row["name"])}</title></circle>')
    parts += _labels([row["name"] for row in rows], points)
    label = escape(f"{what} against {title}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _front(rows: Sequence[Mapping[str, Any]], cost: str, higher: bool) -> list[Mapping[str, Any]]:
    sign = 1 if higher else -1

    def beaten(row: Mapping[str, Any]) -> bool:
        mine = (row[cost], -sign * row["quality"]["mean"])
        others = ((o[cost], -sign * o["quality"]["mean"]) for o in rows if o is not row)
        return any(o[0] <= mine[0] and o[1] <= mine[1] and o != mine for o in others)

    return [row for row in rows if not beaten(row)]


def _frame(x: _Axis, y: _Axis, title: str, what: str) -> str:
    out = [f'<text class="title" x="{_LEFT}" y="14">{escape(what)}</text>']
    out.append(f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(title)}</text>')
    for tick in y.ticks():
        out.append(f'<path class="rule" d="M{_LEFT} {y(tick)}H{WIDTH - _RIGHT}"/>')
        out.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 3:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in x.ticks():
        out.append(f'<text x="{x(tick)}" y="{HEIGHT - _BOTTOM + 14}" text-anchor="middle">{short(tick)}</text>')
    return "".join(out)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{px} {py}" for px, py in points)


def _labels(names: Sequence[str], points: Sequence[tuple[float, float]]) -> list[str]:
    """Names beside their points, each where it covers least of what is there already."""
    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in points]
    out = []
    for name, (px, py) in sorted(zip(names, points, strict=True), key=lambda item: item[1]):
        wide = _LETTER * len(name)
        spots = [(px + 7, py + dy) for dy in (3, -8, 14, -19, 25)] + [
            (px - 7 - wide, py + dy) for dy in (3, -8, 14, -19, 25)
        ]
        boxes = [(sx, sy - _LINE + 2, sx + wide, sy + 2) for sx, sy in spots]
        best = min(range(len(boxes)), key=lambda i: (_cost(boxes[i], taken), i))
        taken.append(boxes[best])
        sx, sy = spots[best]
        out.append(f'<text class="name" x="{sx:.1f}" y="{sy:.1f}">{escape(name)}</text>')
    return out


def _cost(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> float:
    outside = box[0] < _LEFT or box[2] > WIDTH or box[1] < _TOP - 8 or box[3] > HEIGHT - _BOTTOM + 4
    overlap = sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    return overlap + 1e6 * outside


def all_curves(rows: Sequence[Mapping[str, Any]], steps: int) -> str:
    """The training losses of several, each on its own figure and all on the same axes."""
    losses = sorted(loss for row in rows for curve in row["curves"].values() for _, loss in curve)
    if not losses:
        return ""
    # A few wild first steps must not press all other curves to the floor.
    top = max(losses[math.floor(0.99 * (len(losses) - 1))], 1e-6)
    return "".join(f"<figure>{curves(row, top, steps)}</figure>" for row in rows)


def curves(row: Mapping[str, Any], top: float, steps: int) -> str:
    """The training loss of one method: every seed, and above them their smoothed mean; `top` and `steps` end the axes
    that all methods share."""
    wide, high, left = 170, 96, 26

    def drawn(kind: str, curve: Sequence[Sequence[float]]) -> str:
        points = [
            (round(left + step / steps * (wide - left - 4), 1), round(high - 14 - min(loss / top, 1) * (high - 34), 1))
            for step, loss in curve
        ]
        return f'<path class="{kind}" d="{_path(points)}"/>' if points else ""

    seeds = list(row["curves"].values())
    paths = [*(drawn("loss", curve) for curve in seeds), drawn("mean", smoothed(seeds, max(1, steps // 8)))]
    return (
        f'<svg viewBox="0 0 {wide} {high}" role="img" aria-label="training loss of {escape(row["name"])}">'
        f'<text class="name" x="{left}" y="11">{escape(row["name"])}</text>'
        f'<path class="rule" d="M{left} 20V{high - 14}H{wide - 4}"/>'
        f'<text x="{left - 4}" y="26" text-anchor="end">{top:.2g}</text>'
        f'<text x="{left - 4}" y="{high - 12}" text-anchor="end">0</text>'
        f'<text x="{wide - 4}" y="{high - 3}" text-anchor="end">step {steps}</text>{"".join(paths)}</svg>'
    )


def smoothed(curves: Sequence[Sequence[Sequence[float]]], window: int) -> list[tuple[float, float]]:
    """The mean of curves of (step, loss), each point over up to `window` steps on both sides."""
    at: dict[float, list[float]] = {}
    for curve in curves:
        for step, loss in curve:
            at.setdefault(step, []).append(loss)
    means = [(step, sum(losses) / len(losses)) for step, losses in sorted(at.items())]

    def near(step: float) -> list[float]:
        return [loss for other, loss in means if abs(other - step) <= window]

    return [(step, sum(near(step)) / len(near(step))) for step, _ in means]


def lines(series: Sequence[tuple[str, Sequence[tuple[float, float]], bool]], steps: int, what: str) -> str:
    """Several series of (step, value) on the same axes, each with its name, points and whether it is the one to look
    at; they are named where they end. Values that are all above zero and far apart have a logarithmic scale."""
    values = [value for _, points, _ in series for _, value in points]
    log = min(values) > 0 and max(values) > 10 * min(values)
    x = _Axis(0, steps, _LEFT, WIDTH - _RIGHT)
    y = _Axis(min(values), max(values), HEIGHT - _BOTTOM, _TOP, log=log)
    parts = [_frame(x, y, "step", what)]
    ends = []
    for name, points, chosen in series:
        placed = [(x(step), y(value)) for step, value in points]
        kind = " chosen" if chosen else ""
        parts.append(f'<path class="line{kind}" d="{_path(placed)}"><title>{escape(name)}</title></path>')
        circle = "pick" if chosen else "point"
        parts += [f'<circle class="{circle}" cx="{px}" cy="{py}" r="2.5"><title>{escape(name)}</title></circle>'
                  for px, py in placed]  # fmt: skip
        ends.append(placed[-1])
    parts += _labels([name for name, *_ in series], ends)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(what)} by step">{"".join(parts)}</svg>'


def pareto_file(comparison: Mapping[str, Any]) -> str:
    """The three plots beside each other as a file of its own."""
    plots = [pareto(comparison, cost, title) for cost, title in COSTS]
    placed = "".join(f'<g transform="translate({i * WIDTH} 0)">{plot}</g>' for i, plot in enumerate(plots) if plot)
    sized = placed.replace("<svg ", f'<svg width="{WIDTH}" height="{HEIGHT}" ')
    box = f"0 0 {len(COSTS) * WIDTH} {HEIGHT}"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{len(COSTS) * WIDTH}" height="{HEIGHT}">'
            f'<style>{COLOURS.replace(":root", "svg")}{STYLE}</style>'
            f'<rect width="100%" height="100%" style="fill: var(--back)"/>{sized}</svg>\n')  # fmt: skip
