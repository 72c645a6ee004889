"""What every row has to be, and how the text of a file is read."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ....errors import DataError

Row = dict[str, Any]
Numbered = Iterable[tuple[int, Row]]
"""Rows with the line that each begins on."""
HALF = "half a character (a lone surrogate), which no text can hold"


def decoded(path: Path) -> str:
    """The text of a file.

    Raises:
        DataError: it cannot be read, or is no UTF-8, UTF-16 or UTF-32.
    """
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


def checked(row: object, where: str) -> Row:
    """A row that is one.

    Raises:
        DataError: it is none, or is empty, or holds half a character.
    """
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
