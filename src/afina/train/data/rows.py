"""Rows of JSONL, JSON, CSV, TSV, Parquet and text files, or a folder of such; faults are told with file and line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...cache import sha256
from ...errors import DataError, did_you_mean

Row = dict[str, Any]
HALF = "half a character (a lone surrogate), which no text can hold"


@dataclass(frozen=True)
class Rows:
    """The rows of one file.

    Attributes:
        path: the file.
        values: one mapping of columns a row.
        lines: the line of each row (its number from 1 on, in a JSON list).
        read: the columns that someone has asked for.
    """

    path: Path
    values: list[Row]
    lines: list[int]
    read: set[str] = field(default_factory=set, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def paths(self) -> list[Path]:
        """The files that they are from."""
        return [self.path]

    def where(self, index: int) -> str:
        """`file:line` of a row."""
        return f"{self.path}:{self.lines[index]}"

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
                fix=did_you_mean(column, row),
            )
        return row[column]

    def get(self, index: int, column: str) -> Any:
        """A column of any type; None where the row lacks it."""
        self.read.add(column)
        return self.values[index].get(column)

    def unread(self) -> dict[str, int]:
        """Columns that no one has asked for, and how many rows have them."""
        return dict(Counter(column for row in self.values for column in row if column not in self.read))


def read_rows(path: Path) -> Rows:
    """All rows of a `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` or `.txt` file (a row a line, column `text`), or of
    all such files in a folder, in the order of their names.

    Raises:
        DataError: the file is missing, empty, not UTF-8, malformed or of an unknown kind.
    """
    if path.is_dir():
        return _read_folder(path)
    readers = _readers()
    reader = readers.get(path.suffix.lower())
    if reader is None and path.suffix.lower() != ".parquet":
        raise DataError("unknown kind of data file", where=path, got=path.suffix,
                        expected=", ".join([*readers, ".parquet"]))  # fmt: skip
    pairs = list(_parquet(path) if reader is None else reader(_decoded(path), path))
    if not pairs:
        raise DataError("the file has no rows", where=path, expected="at least one")
    return Rows(path, [row for _, row in pairs], [line for line, _ in pairs])


def _readers() -> dict[str, Callable[[str, Path], Iterator[tuple[int, Row]]]]:
    return {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".txt": _text}


def _read_folder(folder: Path) -> Rows:
    known = {*_readers(), ".parquet"}
    parts = [read_rows(p) for p in sorted(folder.iterdir()) if p.is_file() and p.suffix.lower() in known]
    if not parts:
        raise DataError("the folder has no data files", where=folder, expected=", ".join(sorted(known)))
    values, lines = [row for p in parts for row in p.values], [line for p in parts for line in p.lines]
    return Rows(folder, values, lines)


def _text(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    return ((n, {"text": line.rstrip("\r")}) for n, line in enumerate(text.split("\n"), 1) if line.strip())


def _tsv(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    return _csv(text, path, delimiter="\t")


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        got = (str(error).splitlines() or [""])[0][:200]
        raise DataError("cannot read the Parquet file", where=path, got=got) from error
    return ((n, _checked(row, f"{path}: row {n}")) for n, row in enumerate(rows, 1))


def _decoded(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError("cannot read the data", where=path, got=error.strerror) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start})",
            where=f"{path}:{line}",
            fix="convert the file, e.g. iconv -f latin1 -t utf-8",
        ) from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return row


def _jsonl(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line, object_pairs_hook=_no_duplicates)
        except json.JSONDecodeError as error:
            what = f"not valid JSON ({error.msg} at column {error.colno})"
            raise DataError(what, where=where, got=line.strip()[:60]) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"not valid JSON ({error})", where=where, got=line.strip()[:60]) from error
        yield number, _checked(row, where)


def _json(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    try:
        rows = json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        what = f"not valid JSON ({error.msg} at column {error.colno})"
        fix = "a file with one object a line ends in .jsonl" if error.msg == "Extra data" else None
        raise DataError(what, where=f"{path}:{error.lineno}", fix=fix) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({error})", where=path) from error
    if not isinstance(rows, list):
        raise DataError("not a list of rows", where=path, got=type(rows).__name__, expected="[{...}, {...}]")
    for number, row in enumerate(rows, 1):
        yield number, _checked(row, f"{path}: item {number}")


def _csv(text: str, path: Path, delimiter: str = ",") -> Iterator[tuple[int, Row]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise DataError("a column name is given twice", where=f"{path}:1", got=", ".join(names))
        for cells in reader:
            if cells and len(cells) != len(names):
                where = f"{path}:{reader.line_num}"
                raise DataError("wrong number of cells", where=where, got=len(cells), expected=len(names))
            if cells:
                yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"not valid CSV ({error})", where=f"{path}:{reader.line_num}") from error


def _checked(row: object, where: str) -> Row:
    if (half := lone_surrogate(row)) is not None:
        raise DataError(HALF, where=where, got=ascii(half)[1:-1], fix="write the character itself, or both halves")
    if not isinstance(row, dict):
        got = f"{type(row).__name__} {str(row)[:60]}"
        raise DataError("a row is not an object", where=where, got=got, expected='{"column": value, ...}')
    if not row:
        raise DataError("a row is empty", where=where)
    return row


def lone_surrogate(value: object) -> str | None:
    r"""Half a character, such as `"\ud800"` in JSON, anywhere in a value; None where there is none."""
    if isinstance(value, str):
        return next((c for c in value if "\ud800" <= c <= "\udfff"), None) if not _encodes(value) else None
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((half for one in inner if (half := lone_surrogate(one)) is not None), None)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
