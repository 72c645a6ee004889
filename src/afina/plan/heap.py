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
_SHORT, _MEDIUM, _KEPT, _NEAR = 4, 10, 13, 10
"""Small blocks of a `Busy` heap: to a tensor; to a large one beside; to one that is kept; and how many tensors after it
those to a large one are gone."""
LARGE = 16 * KIB
_SIZES = ((16, 29), (24, 23), (176, 11), (96, 7), (32, 6), (312, 4), (488, 4), (464, 3), (472, 3), (8, 2), (184, 2),
          (736, 2), (112, 2), (480, 2))  # fmt: skip
"""Bytes of small blocks, and in how many of a hundred."""


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
    """The heap of a process that has more to do: with tensors come small blocks, of torch's own bookkeeping and of
    Python's, which lie between them and keep neighbours apart. Most are gone at once; the nodes of autograd's graph
    stay as long as the tensors that they keep, and what was a hole between two of those is theirs then.

    How many there are was counted in runs of nine kinds: to a tensor that outlives 30 large ones 8 to 17, in the mean
    13. Their sizes and the lives of the others are drawn, from the same seed each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._draw, self._small, self._tensors = random.Random(0), 0, 0
        self._kinds = [size for size, share in _SIZES for _ in range(share)]
        self._ends: list[tuple[int, int]] = []
        self._beside: dict[int, list[int]] = {}

    def allocate(self, key: int, size: int, aligned: bool = True, kept: bool = False) -> None:
        """A tensor's block, after small ones.

        Args:
            kept: for the backward pass, or longer.
        """
        self._tensors += 1
        while self._ends and self._ends[0][0] < self._tensors:
            super().free(-heappop(self._ends)[1])
        for number in range(_SHORT + (_MEDIUM if size > LARGE else 0)):
            life = self._draw.randrange(0, (2 if number < _SHORT else 1 + _NEAR))
            heappush(self._ends, (self._tensors + life, self._block()))
        super().allocate(key, size, aligned)
        if kept:
            self._beside[key] = [self._block() for _ in range(_KEPT)]

    def _block(self) -> int:
        self._small += 1
        super().allocate(-self._small, self._draw.choice(self._kinds), False)
        return self._small

    def free(self, key: int) -> None:
        """The end of a block, and of the small ones that were there for it."""
        super().free(key)
        for number in self._beside.pop(key, ()):
            super().free(-number)
