"""Several data sets as one: every row knows which it is of (`data.train: [{path, weight, name}, ...]`)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ...errors import DataError, RecipeError
from ..recipe.sections import DataSet
from .formats import recognise
from .rows import Rows, folder_of


@dataclass(frozen=True)
class Joined(Rows):
    """Rows of several data sets.

    Attributes:
        files: the file of every row.
        names: the data set of every row.
    """

    files: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return list(dict.fromkeys(self.files))

    def where(self, index: int) -> str:
        """`file:line` of a row."""
        return f"{self.files[index]}:{self.lines[index]}"

    def folder(self, index: int) -> Path:
        """What paths in a row count from: the folder of its file."""
        return folder_of(self.files[index])

    def first_of(self, index: int) -> int:
        """The first row of a row's data set: sets may have forms of their own."""
        return self._firsts[self.names[index]]

    @cached_property
    def _firsts(self) -> dict[str, int]:
        return {name: index for index, name in reversed(list(enumerate(self.names)))}

    def take(self, start: int, stop: int | None) -> Rows:
        """The rows from `start` up to `stop`."""
        return self.pick(list(range(len(self)))[start:stop])

    def pick(self, indices: list[int]) -> Rows:
        """The rows at `indices`."""
        rows = super().pick(indices)
        files, names = [self.files[i] for i in indices], [self.names[i] for i in indices]
        return Joined(rows.path, rows.values, rows.lines, self.read, files=files, names=names)


def joined(parts: Sequence[tuple[str, Rows]]) -> Joined:
    """Named data sets one after the other. Prompts with answers and conversations stay what they are.

    Raises:
        DataError: they have forms that no task takes together.
    """
    found = [recognise(rows) for _, rows in parts]
    shapes = [shape for _, shape in found]
    if len(set(shapes)) > 1:
        parts = [(name, _as_messages(rows)) for (name, _), (rows, _) in zip(parts, found, strict=True)]
    for (name, rows), shape in zip(parts, shapes, strict=True):
        if shape != shapes[0] and not {shape, shapes[0]} <= _ANSWERED:
            raise DataError("data sets of different forms", where=f"{name} ({rows.path})", got=shape,
                            expected=f"{shapes[0]}, as {parts[0][0]} has", fix="convert one of them")  # fmt: skip
    return Joined(
        Path(" + ".join(name for name, _ in parts)),
        [value for _, rows in parts for value in rows.values], [line for _, rows in parts for line in rows.lines],
        set[str]().union(*(rows.read for _, rows in parts)),
        files=[rows.path for _, rows in parts for _ in rows.values],
        names=[name for name, rows in parts for _ in rows.values],
    )  # fmt: skip


_ANSWERED = frozenset({"alpaca", "prompt_completion", "chat", "sharegpt"})
"""Forms of prompts with answers, in one turn or in several."""


def _as_messages(rows: Rows) -> Rows:
    """Rows without the ShareGPT turns, where messages were made of them."""
    values = [
        {key: value for key, value in row.items() if key != "conversations" or "messages" not in row}
        for row in rows.values
    ]
    return Rows(rows.path, values, rows.lines, rows.read)


def named_sets(sets: Sequence[DataSet], where: str) -> list[tuple[str, DataSet]]:
    """Data sets with their names: the recipe's, else the file's.

    Raises:
        RecipeError: there is none, or two have one name.
    """
    if not sets:
        raise RecipeError("a list of data sets without one", where=where)
    found = [(one.name or Path(one.path.partition("#")[0]).stem, one) for one in sets]
    names = [name for name, _ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError("two data sets of one name", where=where, got=twice, fix="give each a name of its own")
    return found


def weighted(rows: Rows, weight: float, seed: int) -> Rows:
    """The rows as often as `weight` says: all of them for its whole part, as many as its fraction is of them drawn.

    Raises:
        DataError: no row is left.
    """
    whole, order = int(weight), list(range(len(rows)))
    drawn = random.Random(seed).sample(order, round((weight - whole) * len(rows)))
    if not whole and not drawn:
        raise DataError("a weight that leaves no row", where=rows.path, got=weight, expected="a larger one")
    return rows.pick([*order * whole, *sorted(drawn)])
