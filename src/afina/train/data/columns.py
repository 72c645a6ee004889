"""Columns that a file calls by other names (`data.columns`), brought to the names that recipes use."""

from __future__ import annotations

import string
from collections.abc import Mapping

from ...errors import DataError, RecipeError, did_you_mean
from ..recipe.sections import DataSection
from .readers.row_check import Row
from .rows import Rows
from .standard import STANDARD


def columns_of(template: str, key: str) -> list[str]:
    """The columns that a template such as 'Tweet: {text}' names.

    Raises:
        RecipeError: the template is malformed or names something other than plain columns.
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise RecipeError(f"malformed template ({error})", where=key, got=template[:80]) from error
    for name in names:
        if not name or name.isdigit() or set(name) & set(".["):
            what = "a template names columns as {column}; write {{ and }} for braces"
            raise RecipeError(what, where=key, got=template[:80])
    return names


def check_columns(data: DataSection) -> None:
    """Refuse a mapping onto names that nothing reads.

    Raises:
        RecipeError: names the nearest one that is read.
    """
    templates = [t for t in (data.prompt, data.completion) if t is not None]
    named = [name for template in templates for name in columns_of(template, "data.prompt")]
    read = {*STANDARD, *named, data.text_column, data.label_column, data.task_column}
    for name in data.columns or {}:
        if name not in read:
            what, expected = f"nothing reads a column {name!r}", "standard name: the file's column"
            raise RecipeError(what, where="data.columns", expected=expected, fix=did_you_mean(name, STANDARD))


def absent(rows: Rows, columns: Mapping[str, str] | None) -> list[str]:
    """The names of `columns` whose column no row has."""
    there = {column for row in rows.values for column in row} if columns else set()
    return [name for name, column in (columns or {}).items() if column not in there]


def renamed(rows: Rows, columns: Mapping[str, str] | None, *, whole: bool = True) -> Rows:
    """The rows with `columns` (name -> the file's column) renamed; those that have the names already stay as they are.

    Args:
        whole: rows must have all of them; without it, rows to be answered may lack the answers.

    Raises:
        DataError: a row has neither the column nor the name; has file and line, and the nearest column.
    """
    if not columns:
        return rows
    return Rows(rows.path, [_renamed(rows, i, columns, whole) for i in range(len(rows))], rows.lines, rows.read)


def _renamed(rows: Rows, index: int, columns: Mapping[str, str], whole: bool) -> Row:
    row = rows.values[index]
    found = {name: column for name, column in columns.items() if column in row}
    lacking = next((name for name in columns if name not in found and name not in row), None)
    if lacking is not None and whole:
        raise DataError(
            f"no column {columns[lacking]!r} to take as {lacking!r}", where=rows.where(index),
            got=f"columns {', '.join(map(repr, row))}", fix=did_you_mean(columns[lacking], row),
        )  # fmt: skip
    rest = {key: value for key, value in row.items() if key not in found.values()}
    return {**rest, **{name: row[column] for name, column in found.items()}}
