"""Rows in batches, which processes that share a run share out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ...devices.ranks import gathered, sharers, turns

_Row = TypeVar("_Row")
_Said = TypeVar("_Said")


def in_batches(
    rows: Sequence[_Row], batch_size: int, judge: Callable[[list[_Row]], _Said],
    progress: Callable[[int], None] = lambda done: None,
) -> list[_Said]:  # fmt: skip
    """What `judge` says of every batch of rows, in their order: all of it in every process, each of which judges some
    of the batches. They are the batches of one process, so what is said is the same but for rounding.

    Args:
        judge: what it says travels between processes, so tensors are to be on the processor.
        progress: told how many rows are done in all processes, as far as this one can know.
    """
    starts = range(0, len(rows), batch_size)
    own: dict[int, _Said] = {}
    for number in turns(len(starts)):
        start = starts[number % len(starts)]
        said = judge(list(rows[start : start + batch_size]))
        if number < len(starts):
            own[number] = said
        progress(min(len(rows), (number // sharers() + 1) * sharers() * batch_size))
    if sharers() > 1:
        own = {number: said for part in gathered(own) for number, said in part.items()}
    return [own[number] for number in range(len(starts))]
