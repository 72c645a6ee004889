"""The file that a row names: where it is, and how it is called in messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....errors import DataError
from ...conversations.image_files import found_at
from ...data.readers.media_rows import Medium
from ...data.rows import Rows

_LIKELY = ("path", "file", "file_name", "filename")
_MORE = {"image": ("img", "image_path", "picture"), "audio": ("sound", "wav", "audio_path", "audio_filepath", "speech")}


def file_item(rows: Rows, index: int, medium: Medium) -> dict[str, Any]:
    """An item of a row: under the medium's column its file (or bytes), and `where`.

    Raises:
        DataError: the row has none, or it is not there.
    """
    where = rows.where(index)
    source = found_at(_named(rows, index, medium), rows.folder(index), where, medium.word)
    short = "/".join(Path(source).parts[-2:]) if isinstance(source, str) else ""  # its folder mostly is its class
    return {medium.column: source, "where": f"{where} ({short})" if short else where}


def _named(rows: Rows, index: int, medium: Medium) -> Any:
    """What a row names as its file.

    Raises:
        DataError: it lacks the column; says how to name one that looks like it.
    """
    columns = rows.values[index]
    like = next((name for name in (*_MORE[medium.column], *_LIKELY) if name in columns), None)
    if medium.column not in columns and like is not None:
        raise DataError(f"no column {medium.column!r}", where=rows.where(index),
                        got=f"columns {', '.join(map(repr, columns))}",
                        fix=f"data.columns={{{medium.column}: {like}}}")  # fmt: skip
    return rows.value(index, medium.column)
