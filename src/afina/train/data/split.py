"""The rows of a run: read, and split into those to train on and those held out."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import DataError, RecipeError
from ..base.assets import is_reference
from ..recipe.sections import DataSection, DataSet, Recipe
from ..report.events import Reporter
from .columns import absent, check_columns, renamed
from .embedded import EMBEDDED, locate_rows
from .formats import IN_WORDS, recognise
from .hub_rows import PREFIX, read_hub
from .joined import joined, named_sets, weighted
from .readers.row_check import Row
from .rows import Rows, read_rows


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
    train, held_out = _train_and_held_out(data, seed, reporter)
    if data.eval is not None:
        held_out = _eval(data, data.eval, seed, reporter)
    train = train.take(0, data.max_train_rows)
    held_out = held_out.take(0, data.max_eval_rows) if held_out is not None else None
    if held_out is not None and (shared := _shared(train.values, held_out.values)):
        reporter.warn(f"{shared} of {len(held_out)} held-out rows are also in the training rows: the proof is weaker")
    return Split(train, held_out)


def _train_and_held_out(data: DataSection, seed: int, reporter: Reporter) -> tuple[Rows, Rows | None]:
    """The rows to train on, and those set aside where the recipe names none to hold out."""
    share = data.eval_split if data.eval is None else 0.0
    if isinstance(data.train, str):
        return _set_aside(rows_of(data.train, reporter, data.columns, seed), share, seed)
    if data.max_train_rows is not None:
        raise RecipeError("the first rows of several data sets are those of the first set", where="data.max_train_rows",
                          got=data.max_train_rows, fix="draw rows of each: path: FILE#500")  # fmt: skip
    parts: list[tuple[str, Rows]] = []
    aside: list[tuple[str, Rows]] = []
    for name, one in named_sets(data.train, "data.train"):
        rows, held_out = _set_aside(rows_of(one.path, reporter, data.columns, seed), share, seed)
        parts.append((name, weighted(rows, one.weight, seed)))
        if held_out is not None:
            aside.append((name, held_out))
        reporter.note(f"data set {name}: {len(rows):,} rows, with weight {one.weight:g} {len(parts[-1][1]):,} an epoch")
    return joined(parts), joined(aside) if aside else None


def _eval(data: DataSection, named: str | Sequence[DataSet], seed: int, reporter: Reporter) -> Rows:
    if isinstance(named, str):
        return rows_of(named, reporter, data.columns, seed)
    sets = named_sets(named, "data.eval")
    heavy = next((one for _, one in sets if one.weight != 1), None)
    if heavy is not None:
        raise RecipeError("held-out rows are measured once each", where="data.eval", got=f"weight {heavy.weight:g}",
                          fix="leave the weight out")  # fmt: skip
    return joined([(name, rows_of(one.path, reporter, data.columns, seed)) for name, one in sets])


def _set_aside(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows | None]:
    if share == 0 or len(rows) < 2:
        return rows, None
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    n = max(1, round(share * len(rows)))
    return rows.pick(sorted(order[n:])), rows.pick(sorted(order[:n]))


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
    rows = drawn_rows(source, reporter, seed)
    for name in absent(rows, columns):
        reporter.note(f"{rows.path}: no column {(columns or {})[name]!r}; {name!r} is there, and is taken")
    rows, shape = recognise(renamed(rows, columns))
    words = IN_WORDS.get(shape) or f"columns {', '.join(rows.values[0])}"
    reporter.note(f"{rows.path}: {len(rows):,} rows of {words}")
    return rows


def drawn_rows(source: str, reporter: Reporter, seed: int = 0) -> Rows:
    """The rows of a file, folder, reference or hub data set as they stand there; `source#500` draws 500 of them.

    Raises:
        DataError: a file is unusable.
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
    return rows


def is_named(source: str) -> bool:
    """Whether rows are named by a reference, or some of a file's are."""
    name, mark, count = source.rpartition("#")
    return source.startswith((PREFIX, EMBEDDED)) or is_reference(source) or (bool(mark and name) and count.isdigit())


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
