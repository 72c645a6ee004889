"""The GNU C library's malloc, as a model: what a process takes for blocks that come and go in some order.

malloc/malloc.c of 2.36 with one arena. Blocks from a threshold on are mapped and given back by themselves; each that is
freed raises the threshold to its size, up to 32 MiB. Smaller ones come best fit from a heap, which shrinks at its end
only.
"""

from __future__ import annotations

import random
from heapq import heappop, heappush

from .spans import Free, Span, merged, rounded

KIB, MIB = 2**10, 2**20
PAGE, MAPPED, MOST_MAPPED, PADDING = 4 * KIB, 16 * MIB, 32 * MIB, 128 * KIB
"""A page; from where blocks are mapped in a process that has read rows and a model (seen between 7 and 26 MiB), and
from where in any; what the heap's end keeps."""
_HEADER, _LEAST, _ALIGNMENT = 16, 32, 64
_SMALL, _FAST, _CACHED = 1040, 128, 7
"""Spans up to which size are kept as they are, seven of each (tcache), and of which all wait (fastbins)."""
_TO_A_TENSOR, _LASTING, _TENSORS, _SHORT = 4, 0.1, 0.2, 18
_LONG, _SIZES = (60, 200, 800, 3000), (24, 32, 16, 8, 56, 64, 176, 96, 224, 112, 464, 472, 480, 600, 300)
"""Of the small blocks of a `Busy` heap: to a tensor, the part that lasts, the part that is aligned, lives in blocks
that come meanwhile, and bytes."""


class Heap:
    """Of one process. What was never written is not in memory: tensors are taken to be written whole.

    Attributes:
        taken, mapped: bytes of memory that it has now, and of them those of mapped blocks.
    """

    def __init__(self) -> None:
        self.taken = self.mapped = 0
        self._free, self._threshold = Free(), MAPPED
        self._mapped: dict[int, int] = {}
        self._blocks: dict[int, Span] = {}
        self._cached: dict[int, list[Span]] = {}
        self._waiting: list[Span] = []
        self._last: Span | None = None
        self._top, self._room, self._touched = _HEADER, 0, 0
        """Where the last span ends, bytes of the heap after it, and up to where it was written."""

    def allocate(self, key: int, size: int, aligned: bool = True) -> None:
        """A block, of the heap where that has room.

        Args:
            aligned: to 64 bytes, as torch asks for tensors: a larger one is taken, and both ends are given back.
        """
        block = max(_LEAST, rounded(size + _HEADER // 2, _HEADER))
        need = block + _ALIGNMENT + _LEAST if aligned else block
        if not aligned and self._cached.get(block):
            self._blocks[key] = self._cached[block].pop()
            return
        if need >= _SMALL:
            waiting, self._waiting = self._waiting, []
            for span in waiting:
                self._give(span)
        found = self._free.best(need)
        if found is None and need > self._room and need >= self._threshold:
            self._mapped[key] = rounded(need + _HEADER, PAGE)
            self.taken, self.mapped = self.taken + self._mapped[key], self.mapped + self._mapped[key]
            return
        if found is None:
            found = self._extended(need)
        elif found.size - need >= _LEAST:
            self._free.add(self._cut(found, need))
        self._blocks[key] = self._aligned(found, block) if aligned else found

    def _aligned(self, span: Span, block: int) -> Span:
        """The aligned middle of a span."""
        lead = -(span.start + _HEADER) % _ALIGNMENT
        lead += _ALIGNMENT if 0 < lead < _LEAST else 0
        if lead:
            head, span = span, self._cut(span, lead)
            self._put_by(head)
        if span.size - block >= _LEAST:
            self._put_by(self._cut(span, block))
        return span

    def _cut(self, span: Span, size: int) -> Span:
        """What is left over of a span that keeps so many bytes; not free yet."""
        rest = span.split(size)
        rest.free = False
        if self._last is span:
            self._last = rest
        return rest

    def _extended(self, need: int) -> Span:
        """A span at the heap's end; pages are taken as they are written."""
        span = Span(self._top, need, before=self._last)
        if self._last is not None:
            self._last.after = span
        self._last = span
        if need > self._room:
            self._room = rounded(need + PADDING, PAGE)
        self._top, self._room = self._top + need, self._room - need
        written = max(0, self._top - self._touched)
        self._touched, self.taken = self._touched + written, self.taken + written
        return span

    def free(self, key: int) -> None:
        """The end of a block; a mapped one leaves at once."""
        if key in self._mapped:
            size = self._mapped.pop(key)
            self.taken, self.mapped = self.taken - size, self.mapped - size
            self._threshold = max(self._threshold, min(size, MOST_MAPPED))
        elif key in self._blocks:
            self._put_by(self._blocks.pop(key))

    def _put_by(self, span: Span) -> None:
        """Small spans wait, as they are, for another use; seven of each size until they are asked for, others until
        something larger is."""
        cached = self._cached.setdefault(span.size, []) if span.size <= _SMALL else []
        if span.size <= _SMALL and len(cached) < _CACHED:
            cached.append(span)
        elif span.size <= _FAST:
            self._waiting.append(span)
        else:
            self._give(span)

    def _give(self, span: Span) -> None:
        span = merged(span, self._free)
        if span.after is not None:
            self._free.add(span)
            return
        self._top, self._last = span.start, span.before
        if span.before is not None:
            span.before.after = None
        self._room += span.size
        if self._room >= 2 * self._threshold:
            left = span.start + PADDING
            self.taken -= max(0, self._touched - left)
            self._touched, self._room = min(self._touched, left), PADDING


class Busy(Heap):
    """The heap of a process that has more to do: between tensors come small blocks, of torch's own bookkeeping and of
    Python's, which lie between them and keep neighbours apart. Their number, sizes and lives are drawn, from the same
    seed each time, as they were counted in runs (four to a tensor; nine of ten are gone after twenty others)."""

    def __init__(self) -> None:
        super().__init__()
        self._draw, self._small = random.Random(0), 0
        self._ends: list[tuple[int, int]] = []

    def allocate(self, key: int, size: int, aligned: bool = True) -> None:
        """A tensor's block, after small ones."""
        self._traffic(_TO_A_TENSOR)
        super().allocate(key, size, aligned)

    def free(self, key: int) -> None:
        """The end of a block."""
        self._traffic(1)
        super().free(key)

    def _traffic(self, count: int) -> None:
        for _ in range(count):
            self._small += 1
            life = _SHORT if self._draw.random() > _LASTING else self._draw.choice(_LONG)
            super().allocate(-self._small, self._draw.choice(_SIZES), self._draw.random() < _TENSORS)
            heappush(self._ends, (self._small + self._draw.randrange(1, 2 * life), self._small))
            while self._ends[0][0] < self._small:
                super().free(-heappop(self._ends)[1])
