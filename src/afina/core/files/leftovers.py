"""Temporary names that say which process made them, so that those of killed processes can be swept."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from pathlib import Path

from ...errors import CheckpointError

_OLD_S = 24 * 3600
"""By then no save that is still running is as old, on whatever machine it runs."""
_OWNER = re.compile(r"([0-9a-f]{8})-(\d+)\..+")
_UNOWNED = re.compile(r"[a-z0-9_]{8}")


def prefix(name: str) -> str:
    """What the temporary name of a file or folder begins with."""
    return f".{name}.{_machine()}-{os.getpid()}."


def sweep(folder: Path, name: str) -> None:
    """Remove what killed processes left beside the file or folder of this name."""
    start = f".{name}."
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if entry.name.startswith(start)]
    for path in found:
        try:
            if _is_left(path, path.name.removeprefix(start)):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError:
            continue  # another process was quicker, or it is not ours to remove


def room_beside(out: Path, what: str) -> Path:
    """A temporary folder beside `out`, in which what will be put there can be made.

    Args:
        what: is made: "the merged model".

    Raises:
        CheckpointError: there is no place for it.
    """
    folder = out.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, out.name)
        return Path(tempfile.mkdtemp(prefix=prefix(out.name), dir=folder))
    except OSError as error:
        raise CheckpointError(f"cannot write {what}", where=out, got=error.strerror) from error


def _is_left(path: Path, rest: str) -> bool:
    owner = _OWNER.fullmatch(rest)
    if owner is not None and owner[1] == _machine():
        return int(owner[2]) != os.getpid() and not _lives(int(owner[2]))
    old = time.time() - path.lstat().st_mtime > _OLD_S
    return old and (owner is not None or _UNOWNED.fullmatch(rest) is not None)


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _lives(process: int) -> bool:
    if os.name != "posix":
        return True  # there, asking would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
