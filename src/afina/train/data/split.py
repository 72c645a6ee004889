"""The rows of a run: read, and split into those to train on and those held out."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import DataError
from ..recipe.sections import Recipe
from ..report.events import Reporter
from .columns import check_columns, renamed
from .embedded import locate_rows
from .formats import IN_WORDS, recognise
from .hub_rows import PREFIX, read_hub
from .rows import Row, Rows, read_rows


@dataclass(frozen=True)
class Split:
    """Rows to train on, and rows held out (None where the recipe wants none)."""

    train: Rows
    held_out: Rows | None

    @property
    def parts(self) -> list[Rows]:
        """What there is of them, training rows first."""
        return [self.train] if self.held_out is None else [self.train, self.held_out]


def read_split(recipe: Recipe, reporter: Reporter) -> Split:
    """The rows that the recipe's data section names.

    Raises:
        DataError: a file is unusable.
        RecipeError: a reference names nothing.
    """
    data = recipe.data
    check_columns(data)
    seed = recipe.training.seed
    train = rows_of(data.train, reporter, data.columns, seed)
    held_out: Rows | None = None
    if data.eval is not None:
        held_out = rows_of(data.eval, reporter, data.columns, seed)
    elif data.eval_split > 0 and len(train) > 1:
        order = list(range(len(train)))
        random.Random(seed).shuffle(order)
        n = max(1, round(data.eval_split * len(train)))
        train, held_out = train.pick(sorted(order[n:])), train.pick(sorted(order[:n]))
    train = train.take(0, data.max_train_rows)
    held_out = held_out.take(0, data.max_eval_rows) if held_out is not None else None
    if held_out is not None and (shared := _shared(train.values, held_out.values)):
        reporter.warn(f"{shared} of {len(held_out)} held-out rows are also in the training rows: the proof is weaker")
    return Split(train, held_out)


def rows_of(source: str, reporter: Reporter, columns: Mapping[str, str] | None = None, seed: int = 0) -> Rows:
    """The rows of a file, folder, reference or hub data set; `source#500` draws 500 of them. What shape they have is
    said.

    Args:
        columns: standard name -> the file's column.
        seed: of the draw.

    Raises:
        DataError: a file is unusable, its rows have no one shape, or a column is missing.
        RecipeError: a reference names nothing.
    """
    name, mark, count = source.rpartition("#")
    sampled = bool(mark) and count.isdigit()
    name = name if sampled else source
    rows = read_hub(name) if name.startswith(PREFIX) else read_rows(locate_rows(name, reporter))
    for remark in rows.remarks:
        reporter.note(f"{rows.path}: {remark}")
    if sampled:
        rows = _sampled(rows, int(count), seed, reporter)
    rows, shape = recognise(renamed(rows, columns))
    words = IN_WORDS.get(shape) or f"columns {', '.join(rows.values[0])}"
    reporter.note(f"{rows.path}: {len(rows):,} rows of {words}")
    return rows


def _sampled(rows: Rows, count: int, seed: int, reporter: Reporter) -> Rows:
    """`count` rows, drawn without replacement and left in the file's order."""
    if count == 0:
        raise DataError("a sample of no rows", where=f"{rows.path}#{count}", expected="at least one")
    if count >= len(rows):
        reporter.note(f"{rows.path}: {count} rows wanted, all {len(rows)} taken")
        return rows
    reporter.note(f"{rows.path}: {count} of {len(rows)} rows, drawn with seed {seed}")
    return rows.pick(sorted(random.Random(seed).sample(range(len(rows)), count)))


def _shared(train: list[Row], held_out: list[Row]) -> int:
    seen = {json.dumps(row, sort_keys=True, default=str) for row in train}
    return sum(json.dumps(row, sort_keys=True, default=str) in seen for row in held_out)
