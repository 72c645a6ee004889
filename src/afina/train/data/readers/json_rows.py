"""Rows of JSON: a row a line, a list, or rows of several lines each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....errors import DataError
from .row_check import Numbered, Row, checked


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return row


def jsonl(text: str, path: Path) -> tuple[Numbered, str]:
    """Rows, one a line, and a remark where they stood otherwise.

    Raises:
        DataError: a line is no row.
    """
    first = next((line for line in text.split("\n") if line.strip()), "").lstrip()
    listed = first.startswith("[") and text.rstrip().endswith("]") and _parses(text)
    if listed and (not _parses(first) or first.startswith("[{")):
        return json_list(text, path)[0], "one JSON list, and not a row a line, as its name says"
    if first.startswith("{") and not _parses(first) and (pretty := _pretty(text)) is not None:
        return ((n, checked(row, f"{path}:{n}")) for n, row in pretty), "rows of several lines each"
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


def _fault(error: json.JSONDecodeError) -> str:
    return f"not valid JSON ({error.msg.removesuffix(' at')} at column {error.colno})"


def _by_line(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line, object_pairs_hook=_no_duplicates)
        except json.JSONDecodeError as error:
            what = _fault(error)
            raise DataError(what, where=where, got=line.strip()[:60], expected="one whole row a line") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"not valid JSON ({error})", where=where, got=line.strip()[:60]) from error
        yield number, checked(row, where)


def json_list(text: str, path: Path) -> tuple[Numbered, str]:
    """Rows of a list.

    Raises:
        DataError: it is no list of rows.
    """
    try:
        rows = json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        what = _fault(error)
        fix = "a file with one object a line ends in .jsonl" if error.msg == "Extra data" else None
        raise DataError(what, where=f"{path}:{error.lineno}", fix=fix) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({error})", where=path) from error
    if not isinstance(rows, list):
        raise DataError("not a list of rows", where=path, got=type(rows).__name__, expected="[{...}, {...}]",
                        fix=_as_rows(rows) if isinstance(rows, dict) and rows else None)  # fmt: skip
    return ((n, checked(row, f"{path}: item {n}")) for n, row in enumerate(rows, 1)), ""


def _as_rows(value: dict[str, Any]) -> str:
    """What makes rows of an object."""
    columns = [v for v in value.values() if isinstance(v, (list, dict))]
    if len(value) > 1 and len(columns) == len(value) and len({(type(v), len(v)) for v in columns}) == 1:
        return "these are columns: write rows, as pandas does with to_json(path, orient='records')"
    inner = next((key for key, held in value.items() if isinstance(held, list)), None)
    return "put [ ] around the row, if it is one" if inner is None else f"save the list under {inner!r} by itself"
