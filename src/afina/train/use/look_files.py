"""What the images or sounds of rows are: a sample of them is opened."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import DataError
from ..conversations.image_files import found_at, pictured
from ..conversations.images import image_in
from ..data.readers.media_rows import IMAGES, SOUNDS, Medium
from ..data.readers.row_check import Row
from ..data.rows import Rows
from ..data.sounds.sound_files import recorded
from ..tasks import Task
from ..tasks.files.file_items import file_item

MOST_OPENED = 100
"""Rows whose files are opened, evenly spread over all."""


@dataclass
class Files:
    """What a sample of files is.

    Attributes:
        word: "image" or "sound".
        rows, of: rows that were looked at, and how many there are.
        opened: files in them that could be read.
        sizes: of images, "WIDTH x HEIGHT" -> how many, the commonest first; `modes` (RGB, L, ...) likewise.
        rates: of sounds, samples a second -> how many; `channels` likewise.
        seconds: of sounds, the shortest, the median and the longest.
    """

    word: str
    rows: int
    of: int
    opened: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    rates: dict[int, int] = field(default_factory=dict)
    channels: dict[int, int] = field(default_factory=dict)
    seconds: tuple[float, float, float] | None = None

    @property
    def lines(self) -> list[str]:
        """In words."""
        which = "all" if self.rows == self.of else f"{self.rows} of"
        out = [f"{self.word}s: those of {which} {self.of} rows were opened, {self.opened} could be read"]
        if self.seconds is not None:
            low, middle, high = self.seconds
            out.append(f"  durations: {low:.2f} to {high:.2f} s, median {middle:.2f} s")
        tables: dict[str, Mapping[Any, int]] = {"sizes": self.sizes, "modes": self.modes, "channels": self.channels,
                  "rates": {f"{rate:,} Hz": n for rate, n in self.rates.items()}}  # fmt: skip
        return out + [f"  {name}: {_told(table)}" for name, table in tables.items() if table]


def look_into(rows: Rows, task: Task, problem: Callable[[DataError, str], None]) -> Files | None:
    """Open the files of some rows; None where the task's rows are texts alone.

    Args:
        problem: is told what is wrong with a row, and where it is.
    """
    medium = {"images": IMAGES, "sounds": SOUNDS}.get(task.medium)
    if medium is None and "Image" not in task.loader:
        return None
    count = min(MOST_OPENED, len(rows))
    last = max(count - 1, 1)
    chosen = [round(n * (len(rows) - 1) / last) for n in range(count)]
    out, facts = Files((medium or IMAGES).word, count, len(rows)), list[Any]()
    for index in chosen:
        try:
            facts += [_facts(*source, medium or IMAGES) for source in _sources(rows, index, medium)]
        except DataError as error:
            problem(error, rows.where(index))
    out.opened = len(facts)
    if medium is SOUNDS and facts:
        seconds = [fact[0] for fact in facts]
        out.seconds = min(seconds), statistics.median(seconds), max(seconds)
        out.rates, out.channels = (_counted(fact[n] for fact in facts) for n in (1, 2))
    elif facts:
        out.sizes, out.modes = _counted(f"{w} x {h}" for (w, h), _ in facts), _counted(mode for _, mode in facts)
    return out


def _facts(source: Any, where: str, medium: Medium) -> tuple[Any, ...]:
    return recorded(source, where) if medium is SOUNDS else pictured(source, where)


def _sources(rows: Rows, index: int, medium: Medium | None) -> Iterator[tuple[Any, str]]:
    """The files of a row, and how each is called in messages.

    Raises:
        DataError: there is none, where a row is one.
    """
    if medium is not None:
        item = file_item(rows, index, medium)
        yield item[medium.column], item["where"]
        return
    where = rows.where(index)
    for source in _seen(rows.values[index]):
        yield found_at(source, rows.folder(index), where), where


def _seen(row: Row) -> Iterator[Any]:
    """The images of a row's columns, and of the parts of its messages."""
    for column in ("image", "images"):
        given = row.get(column)
        yield from given if isinstance(given, list) else [] if given is None else [given]
    messages = row.get("messages")
    contents = [m.get("content") for m in messages if isinstance(m, Mapping)] if isinstance(messages, list) else []
    for content in contents:
        for part in content if isinstance(content, list) else ():
            is_image, source = image_in(part)
            if is_image and source is not None:
                yield source


def _counted(values: Any) -> dict[Any, int]:
    return dict(Counter(values).most_common())


def _told(table: Mapping[Any, int], most: int = 6) -> str:
    shown = ", ".join(f"{value} ({count})" for value, count in list(table.items())[:most])
    return shown + (f" and {len(table) - most} more" if len(table) > most else "")
