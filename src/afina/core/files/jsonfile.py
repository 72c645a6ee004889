"""JSON files read with limits and clear errors; any files written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from ...errors import CheckpointError, ConfigError
from . import leftovers
from .unwritable import made_folder, told_if_unwritable

MAX_BYTES = 10_000_000
MAX_DEPTH = 64
MAX_VALUES = 200_000
"""In a file that is no header: settings, or lists of names."""


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: not there, or not a regular file.
        ConfigError: too large, too deep, not UTF-8, not JSON, duplicate keys, NaN, or not an object.
    """
    if not path.is_file():
        raise CheckpointError("no such file", where=path)
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError("the file is too large", where=path, got=path.stat().st_size, expected=f"<= {MAX_BYTES}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}", where=path) from None
    value = parse_json(text, path, MAX_VALUES)
    if not isinstance(value, dict):
        raise ConfigError("not a JSON object", where=path, got=type(value).__name__, expected="{...}")
    return value


def parse_json(text: str, where: object, most: int = 10 * MAX_VALUES) -> Any:
    """Parse JSON strictly: no duplicate keys, no NaN or infinity, at most 64 levels and `most` values."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            twice, _ = Counter(k for k, _ in pairs).most_common(1)[0]
            raise ConfigError("the key appears twice", where=where, got=twice)
        return out

    def refuse(constant: str) -> NoReturn:
        raise ConfigError("not a number", where=where, got=constant)

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        around = text[max(0, error.pos - 10) : error.pos + 10].replace("\n", " ")
        raise ConfigError(
            f"not valid JSON: {error.msg}", where=f"{where}, line {error.lineno} column {error.colno}", got=repr(around)
        ) from None
    except RecursionError:
        raise _too_deep(where) from None
    except ConfigError:
        raise
    except ValueError as error:
        # Numbers of thousands of digits are refused by Python itself.
        raise ConfigError(f"not valid JSON: {str(error).partition(';')[0]}", where=where) from None
    _check_values(value, where, most)
    return value


def _too_deep(where: object) -> ConfigError:
    return ConfigError("nested too deeply", where=where, expected=f"<= {MAX_DEPTH} levels")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary file, fsync, rename; the mode follows the umask.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    with told_if_unwritable(path.parent, lambda: len(data)):
        os.replace(stage_bytes(path, data), path)
        sync_folder(path.parent)


def stage_bytes(path: Path, data: bytes) -> Path:
    """Write `data` to a synced temporary file beside `path` and return its path; those of killed saves go."""
    leftovers.sweep(path.parent, path.name)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=leftovers.prefix(path.name))
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(name, 0o666 & ~_umask())
    except BaseException:  # a signal, too
        os.unlink(name)
        raise
    return Path(name)


def publish(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that belong together: all are on disk before the first takes its name.

    Raises:
        CheckpointError: the folder is a file, one of the names is a link that leads elsewhere, the disk is full, or
            the folder cannot be written; what was there before is whole.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError("this is a file, not a folder", where=folder, fix="choose another output folder")
    for name in files:
        if (folder / name).is_symlink():
            raise CheckpointError("refusing to write through a link", where=folder / name)
    with told_if_unwritable(folder, lambda: sum(map(len, files.values()))):
        _publish(folder, files)


def _publish(folder: Path, files: Mapping[str, bytes]) -> None:
    made_folder(folder)
    staged: dict[str, Path] = {}
    try:
        for name, data in files.items():
            staged[name] = stage_bytes(folder / name, data)
        for name in files:
            os.replace(staged[name], folder / name)
            del staged[name]
        sync_folder(folder)
    finally:
        for left in staged.values():
            left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable (where the system can)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _check_values(value: Any, where: object, most: int) -> None:
    """Refuse depth, and numbers that are not finite; level by level, because a file decides how deep it is."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        inner: list[Any] = []
        for item in level:
            if isinstance(item, float) and not math.isfinite(item):
                raise ConfigError("not a finite number", where=where, got=item)
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level, most = inner, most - len(inner)
        if most < 0:
            raise ConfigError("too many values", where=where, fix="is this the right file?")
    if level:
        raise _too_deep(where)


def plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return str.__str__(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
