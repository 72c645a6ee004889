"""Rows of separated cells: CSV and TSV."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

from ....errors import DataError
from .row_check import Numbered, Row


def csv_rows(text: str, path: Path) -> tuple[Numbered, str]:
    """Rows separated by commas, unless the first line has none and another sign parts it; and a remark on that.

    Raises:
        DataError: a row has not the cells of the first line.
    """
    head = text.split("\n", 1)[0]
    sign = "," if "," in head else next((sign for sign in ";\t|" if sign in head), ",")
    return _separated(text, path, sign, "" if sign == "," else f"separated by {sign!r}")


def tsv_rows(text: str, path: Path) -> tuple[Numbered, str]:
    """Rows separated by tabs.

    Raises:
        DataError: a row has not the cells of the first line.
    """
    return _separated(text, path, "\t", "")


def _separated(text: str, path: Path, sign: str, remark: str) -> tuple[Numbered, str]:
    plain = next(_cells(text, path, sign, blanks=False, most=1), (1, []))[1]
    # A blank after every separator belongs to the separator, so that quotes may follow it.
    blanks = len(plain) > 1 and all(name.startswith(" ") for name in plain[1:])
    lines = _cells(text, path, sign, blanks=blanks)
    names = [name.strip() for name in next(lines, (1, []))[1]]
    if len(set(names)) < len(names):
        raise DataError("a column name is given twice", where=f"{path}:1", got=", ".join(names),
                        fix="the first line has the names: is it a row?")  # fmt: skip
    if blanks or plain != names:
        parts = "blanks before cells left out" if blanks else "blanks around column names left out"
        remark = f"{remark}, {parts}" if remark else parts
    rows = list(_as_rows(lines, names, path))
    if _looks_like_a_row(names, rows):
        told = f"its first line was taken for the names of its columns ({', '.join(names)[:80]}): is it a row?"
        remark = f"{remark}, {told}" if remark else told
    return iter(rows), remark


def _looks_like_a_row(names: list[str], rows: list[tuple[int, Row]]) -> bool:
    """Whether a first line is hardly one of names: a number, a sentence, or what stands in its own column again."""
    again = any(row[name] == name for _, row in rows[:1000] for name in names)
    return again or any(_is_number(name) or len(name) > 60 for name in names)


def _is_number(name: str) -> bool:
    return name.lstrip("+-").replace(".", "", 1).isdigit()


def _as_rows(lines: Iterator[tuple[int, list[str]]], names: list[str], path: Path) -> Iterator[tuple[int, Row]]:
    for number, cells in lines:
        if len(cells) != len(names):
            raise DataError("wrong number of cells", where=f"{path}:{number}", got=len(cells), expected=len(names),
                            fix='put cells that hold a separator or a line break into "..."')  # fmt: skip
        yield number, dict(zip(names, cells, strict=True))


def _cells(
    text: str, path: Path, sign: str, *, blanks: bool, most: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=sign, skipinitialspace=blanks)
    usual = csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # of the whole process
    try:
        found = [(reader.line_num, cells) for cells in itertools.islice(reader, most) if cells]
    except csv.Error as error:
        raise DataError(f"not valid CSV ({error})", where=f"{path}:{reader.line_num}") from error
    finally:
        csv.field_size_limit(usual)
    return iter(found)
