"""Batches of rows of like length, so that little is padding (`training.group_by_length`).

The order of an epoch follows from the seed and the epoch's number alone, so that a resumed run goes on with the same
batches: the Trainer takes the rows one after the other and tells the data set the epoch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from ...recipe.sections import Recipe
from ...report.events import Reporter
from ..encode import Encoded

MOST_PADDING = 0.2
"""Share of padding in random batches above which rows are grouped unless the recipe says otherwise."""
_POOL, _POOLS = 50, 4
"""Batches whose rows are sorted together, and how many such pools there are at least: else every epoch would have the
same batches."""


class Grouped(Encoded):
    """Encoded rows in batches of like length, in another order every epoch; the longest batch comes first."""

    def __init__(self, encoded: Encoded, batch_size: int, seed: int) -> None:
        super().__init__(encoded.items, encoded.source, encoded.truncated, encoded.masked, encoded.rows)
        self.batch_size, self.seed = batch_size, seed
        self.lengths = [self.length(i) for i in range(len(self))]
        self.order: list[int] = []
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Put the rows into the order of an epoch."""
        draw = random.Random(f"{self.seed}:{epoch}")
        order, size = list(range(len(self))), self.batch_size
        pool = size * max(2, min(_POOL, len(order) // (_POOLS * size)))
        draw.shuffle(order)
        rest = len(order) % size  # an incomplete batch must stay the last
        pools = [sorted(part, key=lambda i: -self.lengths[i]) for part in _parts(order[: len(order) - rest], pool)]
        batches = [batch for part in pools for batch in _parts(part, size)]
        draw.shuffle(batches)
        if batches:  # what needs the most memory is tried at once
            longest = max(range(len(batches)), key=lambda i: self.lengths[batches[i][0]])
            batches.insert(0, batches.pop(longest))
        self.order = [i for batch in [*batches, order[len(order) - rest :]] for i in batch]

    def at(self, index: int) -> int:
        """The place in `items` of what comes at `index` of an epoch."""
        return self.order[index]


def _parts(values: Sequence[int], size: int) -> list[list[int]]:
    return [list(values[i : i + size]) for i in range(0, len(values), size)]


def padding_share(lengths: Sequence[int], order: Sequence[int], batch_size: int) -> float:
    """The share of padding in batches of rows in this order."""
    batches = [[lengths[i] for i in part] for part in _parts(order, batch_size)]
    return 1 - sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)


def grouped(recipe: Recipe, encoded: Encoded, reporter: Reporter) -> Encoded:
    """The rows, grouped by length where the recipe wants it, or where it saves much and the recipe does not say."""
    wanted, size = recipe.training.group_by_length, recipe.training.batch_size
    if wanted is False:
        return encoded
    if len(encoded) < _POOLS * size:
        if wanted:
            reporter.note(f"group_by_length: off, {len(encoded)} rows are too few for batches of {size}")
        return encoded
    out = Grouped(encoded, size, recipe.training.seed)
    order = list(range(len(out)))
    random.Random(recipe.training.seed).shuffle(order)
    before, after = padding_share(out.lengths, order, size), padding_share(out.lengths, out.order, size)
    if wanted is None and before <= MOST_PADDING:
        return encoded
    reporter.note(f"batches of like length: {after:.0%} padding, {before:.0%} in random ones (group_by_length)")
    return out
