"""A step's allocations put to a device's allocator: the peak, and what it is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .caching import Caching
from .heap import LARGE, Busy
from .trace import PARTS, Event

KEPT = 30
"""What outlives so many large tensors is kept for the backward pass, or longer."""
PLAIN = 72
"""Bytes that `kernels.cpu.blocks` asks for beyond a tensor's own."""
BESIDE = 15 * 2**19
"""Bytes of a process on its first steps, of the libraries' code and Python's objects (measured: 7 to 8 MiB)."""


@dataclass(frozen=True)
class Peak:
    """The most that a run takes, in bytes.

    Attributes:
        parts: what it is made of when most tensors are alive, by `trace.PARTS`; `allocator`: what the allocator takes
            beyond that.
        alive: the most that tensors alone take.
        fits: whether the allocator found room in the device's memory, where that was said.
    """

    parts: Mapping[str, int]
    alive: int
    fits: bool = True

    @property
    def bytes(self) -> int:
        """Of the device in all."""
        return sum(self.parts.values())


def on_processor(
    events: Iterable[Event], parts: Mapping[int, str], weights: Mapping[int, int], unread: int = 0, rows: int = 0,
    plain: bool = False,
) -> Peak:  # fmt: skip
    """The peak in main memory, beside what the process had before.

    Args:
        plain: tensors have the blocks of `kernels.cpu.blocks`, not torch's own.
        weights: bytes of the base's tensors by their keys; they are read from files, which the heap does not see.
        unread: bytes of them that no step reads, which stay in the files.
        rows: bytes of tensors that were made of rows beforehand and are kept.
    """
    heap, watch, events = Busy(), _Watch(parts, weights), list(events)
    kept = _kept(events)
    for event in events:
        watch.see(event)
        if event.key in weights:
            continue
        if event.size > 0:
            size = event.size + PLAIN if plain else event.size
            heap.allocate(event.key, size, aligned=not plain, kept=event.key in kept)
        else:
            heap.free(event.key)
        watch.at(heap.taken + watch.weights)
    return watch.peak({"weights": -unread, "libraries": BESIDE, "rows": rows})


def _kept(events: Iterable[Event]) -> set[int]:
    """The allocations that outlive `KEPT` large ones."""
    large, begun, out = 0, dict[int, int](), set[int]()
    for event in events:
        large += event.size > LARGE
        if event.size > 0:
            begun[event.key] = large
        elif large - begun.pop(event.key, large) > KEPT:
            out.add(event.key)
    return out | begun.keys()


def on_cuda(
    events: Iterable[Event], parts: Mapping[int, str], weights: Mapping[int, int], capacity: int | None = None
) -> Peak:
    """The peak of what torch reserves on a CUDA device, beside the driver's own context.

    Args:
        capacity: bytes that are there.
    """
    device, watch = Caching(capacity), _Watch(parts, weights)
    for key, size in weights.items():
        device.allocate(key, size)
    watch.at(device.taken)
    for event in events:
        watch.see(event)
        if event.size > 0:
            device.allocate(event.key, event.size)
        else:
            device.free(event.key)
        watch.at(device.taken)
    return watch.peak({}, not device.full)


class _Watch:
    """What is alive, what of it when most was, and the most that the device took."""

    def __init__(self, parts: Mapping[int, str], weights: Mapping[int, int]) -> None:
        self.of, self.own, self.weights = parts, {**weights}, sum(weights.values())
        self.now: Counter[str] = Counter({"weights": self.weights})
        self.live = self.alive = self.weights
        self.most, self.then = 0, Counter(self.now)

    def see(self, event: Event) -> None:
        if event.key in self.own:  # of the base: its bytes may be fewer than its tensor's
            size = -self.own.pop(event.key) if event.size < 0 else 0
            self.weights += size
        else:
            size = event.size
        self.now[self.of[event.key]] += size
        self.live += size
        if self.live > self.alive:
            self.alive, self.then = self.live, Counter(self.now)

    def at(self, taken: int) -> None:
        self.most = max(self.most, taken)

    def peak(self, beside: Mapping[str, int], fits: bool = True) -> Peak:
        found = {part: self.then[part] for part in PARTS}
        found["allocator"] = max(0, self.most - sum(found.values()))
        for part, size in beside.items():
            found[part] = found.get(part, 0) + size
        return Peak(found, self.alive + sum(beside.values()), fits)
