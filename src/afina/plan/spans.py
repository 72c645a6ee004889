"""Pieces of memory between their neighbours, and which of them are free: what models of allocators are made of."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Span:
    """A piece of a segment or heap, between its neighbours; `small`: of a segment for small blocks."""

    start: int
    size: int
    small: bool = False
    free: bool = False
    before: Span | None = None
    after: Span | None = None

    def split(self, size: int) -> Span:
        """Its first bytes stay; what is left over."""
        rest = Span(self.start + size, self.size - size, self.small, True, self, self.after)
        if self.after is not None:
            self.after.before = rest
        self.after, self.size = rest, size
        return rest

    def join(self) -> None:
        """Take in the one after it."""
        assert self.after is not None
        self.size += self.after.size
        self.after = self.after.after
        if self.after is not None:
            self.after.before = self


class Free:
    """Free spans, the smallest first and of those the lowest."""

    def __init__(self) -> None:
        self.order: list[tuple[int, int]] = []
        self.spans: dict[tuple[int, int], Span] = {}

    def __iter__(self) -> Iterator[Span]:
        return iter([*self.spans.values()])

    def add(self, span: Span) -> None:
        """One more."""
        key = span.size, span.start
        insort(self.order, key)
        self.spans[key] = span
        span.free = True

    def remove(self, span: Span) -> None:
        """It is used, or part of another one."""
        key = span.size, span.start
        del self.order[bisect_left(self.order, key)], self.spans[key]
        span.free = False

    def best(self, size: int) -> Span | None:
        """The smallest that has so many bytes."""
        at = bisect_left(self.order, (size, -1))
        if at == len(self.order):
            return None
        span = self.spans[self.order[at]]
        self.remove(span)
        return span


def merged(span: Span, free: Free) -> Span:
    """A span that is given back, with its free neighbours."""
    if span.after is not None and span.after.free:
        free.remove(span.after)
        span.join()
    if span.before is not None and span.before.free:
        span = span.before
        free.remove(span)
        span.join()
    return span


def rounded(size: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-size // unit) * unit
