"""Rows of JSONL, JSON, CSV, TSV, Parquet and text files, or a folder of such; faults are told with file and line."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache import sha256
from ...errors import DataError, did_you_mean

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of one file.

    Attributes:
        path: the file.
        values: one mapping of columns a row.
        lines: the line of each row (its number from 1 on, in a JSON list).
        remarks: how the file was read, where that was not plain.
    """

    path: Path
    values: list[Row]
    lines: list[int]
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

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
        return Rows(self.path, self.values[start:stop], self.lines[start:stop])

    def pick(self, indices: list[int]) -> Rows:
        """The rows at `indices`."""
        return Rows(self.path, [self.values[i] for i in indices], [self.lines[i] for i in indices])

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
        if column not in row:
            raise DataError(
                f"no column {column!r}",
                where=self.where(index),
                got=f"columns {', '.join(map(repr, row))}",
                fix=did_you_mean(column, row),
            )
        return row[column]


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
    found, remark = (_parquet(path), "") if reader is None else reader(_decoded(path), path)
    pairs = list(found)
    if not pairs:
        raise DataError("the file has no rows", where=path, expected="at least one")
    return Rows(path, [row for _, row in pairs], [line for line, _ in pairs], (remark,) if remark else ())


_Numbered = Iterable[tuple[int, Row]]


def _readers() -> dict[str, Callable[[str, Path], tuple[_Numbered, str]]]:
    """Kinds of text files, each with what gives lines with their rows, and a remark on how if it was not plain."""
    return {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".txt": _text}


def _read_folder(folder: Path) -> Rows:
    known = {*_readers(), ".parquet"}
    parts = [read_rows(p) for p in sorted(folder.iterdir()) if p.is_file() and p.suffix.lower() in known]
    if not parts:
        raise DataError("the folder has no data files", where=folder, expected=", ".join(sorted(known)))
    values, lines = [row for p in parts for row in p.values], [line for p in parts for line in p.lines]
    return Rows(folder, values, lines, tuple(r for p in parts for r in p.remarks))


def _text(text: str, path: Path) -> tuple[_Numbered, str]:
    return ((n, {"text": line.rstrip("\r")}) for n, line in enumerate(text.split("\n"), 1) if line.strip()), ""


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
    wide = next((name for mark, name in _WIDE if raw.startswith(mark)), None)
    try:
        text = raw.decode(wide or "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"not {'UTF-16' if wide else 'UTF-8'} (byte 0x{raw[error.start]:02x} at offset {error.start})",
            where=f"{path}:{line}",
            fix="convert the file, e.g. iconv -f latin1 -t utf-8",
        ) from error
    if wide is None and raw[:1000].count(0) > len(raw[:1000]) // 4:
        raise DataError("every other byte is zero, as in UTF-16 without its mark", where=path,
                        fix="convert the file, e.g. iconv -f utf-16le -t utf-8")  # fmt: skip
    return text


_WIDE = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
"""How files of wider characters begin; UTF-32 begins as UTF-16 does, and goes on."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return row


def _jsonl(text: str, path: Path) -> tuple[_Numbered, str]:
    first = next((line for line in text.split("\n") if line.strip()), "").lstrip()
    listed = first.startswith("[") and text.rstrip().endswith("]") and _parses(text)
    if listed and (not _parses(first) or first.startswith("[{")):
        return _json(text, path)[0], "one JSON list, and not a row a line, as its name says"
    if first.startswith("{") and not _parses(first) and (pretty := _pretty(text)) is not None:
        return ((n, _checked(row, f"{path}:{n}")) for n, row in pretty), "rows of several lines each"
    return _by_line(text, path), ""


def _parses(text: str) -> bool:
    try:
        json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        return False
    return True


def _pretty(text: str) -> list[tuple[int, Any]] | None:
    """JSON values one after another, each over as many lines as it likes; None where they are not only that."""
    decoder, blanks = json.JSONDecoder(object_pairs_hook=_no_duplicates), re.compile(r"\s*")
    out: list[tuple[int, Any]] = []
    at, line = 0, 1
    while True:
        start = blanks.match(text, at).end()  # type: ignore[union-attr]
        line += text.count("\n", at, start)
        if start == len(text):
            return out
        try:
            value, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            return None
        out.append((line, value))
        line += text.count("\n", start, at)


def _by_line(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line, object_pairs_hook=_no_duplicates)
        except json.JSONDecodeError as error:
            what = f"not valid JSON ({error.msg} at column {error.colno})"
            raise DataError(what, where=where, got=line.strip()[:60], expected="one whole row a line") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"not valid JSON ({error})", where=where, got=line.strip()[:60]) from error
        yield number, _checked(row, where)


def _json(text: str, path: Path) -> tuple[_Numbered, str]:
    try:
        rows = json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        what = f"not valid JSON ({error.msg} at column {error.colno})"
        fix = "a file with one object a line ends in .jsonl" if error.msg == "Extra data" else None
        raise DataError(what, where=f"{path}:{error.lineno}", fix=fix) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({error})", where=path) from error
    if not isinstance(rows, list):
        inner = next((k for k, v in rows.items() if isinstance(v, list)), None) if isinstance(rows, dict) else None
        raise DataError("not a list of rows", where=path, got=type(rows).__name__, expected="[{...}, {...}]",
                        fix=None if inner is None else f"save the list under {inner!r} by itself")  # fmt: skip
    return ((n, _checked(row, f"{path}: item {n}")) for n, row in enumerate(rows, 1)), ""


def _csv(text: str, path: Path) -> tuple[_Numbered, str]:
    """Separated by commas, unless the first line has none and another sign parts it."""
    head = text.split("\n", 1)[0]
    sign = "," if "," in head else next((sign for sign in ";\t|" if sign in head), ",")
    return _separated(text, path, sign, "" if sign == "," else f"separated by {sign!r}")


def _tsv(text: str, path: Path) -> tuple[_Numbered, str]:
    return _separated(text, path, "\t", "")


def _separated(text: str, path: Path, sign: str, remark: str) -> tuple[_Numbered, str]:
    plain = next(_cells(text, path, sign, blanks=False, most=1), (1, []))[1]
    # A blank after every separator belongs to the separator, so that quotes may follow it.
    blanks = len(plain) > 1 and all(name.startswith(" ") for name in plain[1:])
    lines = _cells(text, path, sign, blanks=blanks)
    names = [name.strip() for name in next(lines, (1, []))[1]]
    if len(set(names)) < len(names):
        raise DataError("a column name is given twice", where=f"{path}:1", got=", ".join(names))
    if blanks or plain != names:
        parts = "blanks before cells left out" if blanks else "blanks around column names left out"
        remark = f"{remark}, {parts}" if remark else parts
    return _as_rows(lines, names, path), remark


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


def _checked(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        got = f"{type(row).__name__} {str(row)[:60]}"
        raise DataError("a row is not an object", where=where, got=got, expected='{"column": value, ...}')
    if not row:
        raise DataError("a row is empty", where=where)
    return row
