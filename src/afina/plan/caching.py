"""CUDA's caching allocator, as a model: what it takes of a device for blocks that come and go in some order.

Blocks are multiples of 512 bytes; up to 1 MiB they come from segments of 2 MiB, below 10 MiB from segments of 20 MiB,
else segments have the size in multiples of 2 MiB; the smallest free block that is large enough is taken, and split
where enough is left over; neighbours merge as they are freed; segments stay until there is no room
(c10/cuda/CUDACachingAllocator.cpp at its defaults). Estimators replay a step through these rules: DNNMem, Gao et al.
2020 (ESEC/FSE).
"""

from __future__ import annotations

from .spans import Free, Span, merged, rounded

MIB = 2**20
BLOCK, SMALL, SMALL_SEGMENT, LARGE_SEGMENT, LARGE, LARGE_STEP = 512, MIB, 2 * MIB, 20 * MIB, 10 * MIB, 2 * MIB
"""The unit, the largest block of a small segment, segments of either kind, from where a block has a segment of its own,
and the unit of those."""


class Caching:
    """Of one device.

    Args:
        capacity: bytes of the device; where they do not do, segments that are wholly free are given back.

    Attributes:
        taken: bytes of the device that it has now.
        full: whether something did not fit.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity, self.taken, self.full = capacity, 0, False
        self._pools = {True: Free(), False: Free()}
        self._blocks: dict[int, Span] = {}
        self._end = 0

    def allocate(self, key: int, size: int) -> None:
        """A block; of no bytes none."""
        if not size:
            return
        size = rounded(size, BLOCK)
        small = size <= SMALL
        pool = self._pools[small]
        span = pool.best(size) or self._segment(size, small)
        if span.size - size >= BLOCK if small else span.size - size > SMALL:
            pool.add(span.split(size))
        self._blocks[key] = span

    def free(self, key: int) -> None:
        """The block may be used again; its segment stays."""
        span = self._blocks.pop(key, None)
        if span is not None:
            pool = self._pools[span.small]
            pool.add(merged(span, pool))

    def _segment(self, size: int, small: bool) -> Span:
        whole = SMALL_SEGMENT if small else LARGE_SEGMENT if size < LARGE else rounded(size, LARGE_STEP)
        if self.capacity is not None and self.taken + whole > self.capacity:
            self._give_back()
            self.full = self.full or self.taken + whole > self.capacity
        self.taken += whole
        start, self._end = self._end, self._end + 2 * whole  # so that no two segments touch
        return Span(start, whole, small)

    def _give_back(self) -> None:
        for pool in self._pools.values():
            for span in [s for s in pool if s.before is None and s.after is None]:
                pool.remove(span)
                self.taken -= span.size
