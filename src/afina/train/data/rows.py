"""Rows of JSONL, JSON, CSV, TSV, Parquet and text files, or a folder of such; faults are told with file and line."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...cache import sha256
from ...errors import DataError
from .readers.csv_rows import csv_rows, tsv_rows
from .readers.json_rows import json_list, jsonl
from .readers.media_rows import captions, is_medium, media_rows, of_metadata
from .readers.row_check import Numbered, Row, checked, decoded
from .standard import how_to_have


@dataclass(frozen=True)
class Rows:
    """The rows of one file.

    Attributes:
        path: the file.
        values: one mapping of columns a row.
        lines: the line of each row (its number from 1 on, in a JSON list).
        read: the columns that someone has asked for.
        remarks: how the file was read, where that was not plain.
    """

    path: Path
    values: list[Row]
    lines: list[int]
    read: set[str] = field(default_factory=set, compare=False, repr=False)
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def paths(self) -> list[Path]:
        """The files that they are from."""
        return [self.path]

    def where(self, index: int) -> str:
        """`file:line` of a row."""
        return f"{self.path}:{self.lines[index]}"

    def folder(self, index: int) -> Path:
        """What paths in a row count from: the folder of its file."""
        return folder_of(self.path)

    def first_of(self, index: int) -> int:
        """The row that says what form a row has: the first one of its data set."""
        return 0

    def digest(self) -> str:
        """The file's SHA-256; of a folder or a hub data set, that of the rows that were taken."""
        if self.path.is_file():
            return sha256(self.path)
        out = hashlib.sha256()
        for row in self.values:
            out.update(json.dumps(row, sort_keys=True, default=str).encode())
        return out.hexdigest()

    def take(self, start: int, stop: int | None) -> Rows:
        """The rows from `start` up to `stop`."""
        return Rows(self.path, self.values[start:stop], self.lines[start:stop], self.read)

    def pick(self, indices: list[int]) -> Rows:
        """The rows at `indices`."""
        return Rows(self.path, [self.values[i] for i in indices], [self.lines[i] for i in indices], self.read)

    def text(self, index: int, column: str) -> str:
        """A column that must be text.

        Raises:
            DataError: the row lacks the column, or it is not text.
        """
        value = self.value(index, column)
        if not isinstance(value, str):
            got = f"{type(value).__name__} {str(value)[:60]}"
            raise DataError(f"column {column!r} is not text", where=self.where(index), got=got, expected="str")
        return value

    def value(self, index: int, column: str) -> Any:
        """A column of any type.

        Raises:
            DataError: the row lacks the column.
        """
        row = self.values[index]
        self.read.add(column)
        if column not in row:
            raise DataError(
                f"no column {column!r}",
                where=self.where(index),
                got=f"columns {', '.join(map(repr, row))}",
                fix=how_to_have(column, row),
            )
        return row[column]

    def get(self, index: int, column: str) -> Any:
        """A column of any type; None where the row lacks it."""
        self.read.add(column)
        return self.values[index].get(column)

    def unread(self) -> dict[str, int]:
        """Columns that no one has asked for, and how many rows have them."""
        return dict(Counter(column for row in self.values for column in row if column not in self.read))


def folder_of(path: Path) -> Path:
    """What paths in a file, or in a folder of files, count from."""
    return (path if path.is_dir() else path.parent).absolute()


def read_rows(path: Path) -> Rows:
    """All rows of a `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` or `.txt` file (a row a line, column `text`), or of
    all such files in a folder, in the order of their names; or images or sounds: one, a folder of them, or of a folder
    for each class.

    Raises:
        DataError: the file is missing, empty, not UTF-8, malformed or of an unknown kind.
    """
    if path.is_dir():
        return _read_folder(path)
    if is_medium(path) and path.is_file():
        return _of_files(path, media_rows(path))
    readers = _readers()
    reader = readers.get(path.suffix.lower())
    if reader is None and path.suffix.lower() != ".parquet":
        if not path.exists():
            raise DataError("no such file or folder", where=path)
        raise DataError("unknown kind of data file", where=path, got=path.suffix,
                        expected=", ".join([*readers, ".parquet"]))  # fmt: skip
    found, remark = (_parquet(path), "") if reader is None else reader(decoded(path), path)
    pairs = list(found)
    if not pairs:
        raise DataError("the file has no rows", where=path, expected="at least one")
    return Rows(path, [row for _, row in pairs], [line for line, _ in pairs], remarks=(remark,) if remark else ())


def _readers() -> dict[str, Callable[[str, Path], tuple[Numbered, str]]]:
    """Kinds of text files, each with what gives lines with their rows, and a remark on how if it was not plain."""
    return {".jsonl": jsonl, ".ndjson": jsonl, ".json": json_list, ".csv": csv_rows, ".tsv": tsv_rows, ".txt": _text}


def _read_folder(folder: Path) -> Rows:
    known = {*_readers(), ".parquet"}
    beside = set(captions(folder).values())
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p not in beside]
    parts = [_read_part(p) for p in files if p.suffix.lower() in known]
    if not parts and (found := media_rows(folder)):
        return _of_files(folder, found)
    if not parts:
        expected = f"{', '.join(sorted(known))}, images, sounds, or a folder of them for each class"
        raise DataError("the folder has no data files", where=folder, expected=expected)
    values, lines = [row for p in parts for row in p.values], [line for p in parts for line in p.lines]
    return Rows(folder, values, lines, remarks=tuple(r for p in parts for r in p.remarks))


def _read_part(path: Path) -> Rows:
    """A file of a folder; those named metadata say which image or sound a row is of."""
    rows = read_rows(path)
    if path.stem != "metadata":
        return rows
    return Rows(path, list(map(of_metadata, rows.values)), rows.lines, remarks=rows.remarks)


def _of_files(path: Path, rows: list[Row]) -> Rows:
    return Rows(path, rows, list(range(1, len(rows) + 1)))


def _text(text: str, path: Path) -> tuple[Numbered, str]:
    return ((n, {"text": line.rstrip("\r")}) for n, line in enumerate(text.split("\n"), 1) if line.strip()), ""


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        got = (str(error).splitlines() or [""])[0][:200]
        raise DataError("cannot read the Parquet file", where=path, got=got) from error
    return ((n, checked(row, f"{path}: row {n}")) for n, row in enumerate(rows, 1))
