"""Disks that are full and folders that cannot be written, told as what they are."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ...errors import CheckpointError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_SUFFIX, _LONG = 24, 160
"""What names of unfinished files have more than the finished one's, and how much of a name is shown."""
_TORCH = ("inline_container", "PytorchStreamWriter failed", "Parent directory", " requested and ")
"""In what `torch.save` and numpy's `tofile` say when a file cannot be written, whatever the reason."""


@contextmanager
def told_if_unwritable(
    folder: Path, needed: Callable[[], int | None] | None = None, fix: Callable[[], str] | None = None
) -> Iterator[None]:
    """Turn what systems and libraries raise when a file cannot be written into what the user can mend.

    Args:
        folder: what is written to.
        needed: how many bytes are to be written.
        fix: what to do then.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _reason(error, folder)
        if reason is None:
            raise
        wanted = needed() if needed else None
        raise CheckpointError(
            f"cannot write: {reason}",
            where=folder,
            got=f"{free_bytes(folder):,} bytes free",
            expected=None if wanted is None else f"{wanted:,} bytes",
            fix=fix() if fix else "make room, or choose a folder that can be written",
        ) from error


def usable_folder(given: object) -> Path:
    """The folder to write to, if it is the name of one.

    Raises:
        CheckpointError: it is no path, empty, or a name that the system cannot have.
    """
    try:
        if isinstance(given, (str, os.PathLike)) and os.fspath(given):
            os.lstat(os.fspath(given))
            return Path(os.fspath(given))
    except FileNotFoundError:
        return Path(str(given))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"not the name of a folder: {getattr(error, 'strerror', None) or error}",
                              where=str(given)) from None  # fmt: skip
    raise CheckpointError("not the name of a folder", where="save_directory", got=repr(given), expected="a path")


def check_place(path: Path) -> None:
    """Refuse a file or folder that could not be written at the end of the work; tried with a file that goes at once.

    Args:
        path: what will be written; folders above it may be missing.

    Raises:
        CheckpointError: the system would not have it, with its reason.
    """
    given = path.expanduser().absolute()
    try:
        there = next(place for place in (given, *given.parents) if place.exists())
        if there == given and not there.is_dir():
            there = there.parent
        with tempfile.NamedTemporaryFile(dir=there, prefix=".afina-"):
            pass
        os.lstat(given.parent / f".{given.name}.{'x' * _SUFFIX}")
    except FileNotFoundError as error:
        if error.filename is None or _SUFFIX * "x" not in str(error.filename):
            raise _refused(path, error) from None
    except OSError as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot write there: {error.strerror}", where=shortened(path),
                           fix="choose another place to write")  # fmt: skip


def shortened(path: object) -> str:
    """The name of a file, or the beginning of one that nobody would read to its end."""
    name = str(path)
    return name if len(name) <= _LONG else f"{name[:_LONG]}..."


def made_folder(folder: Path) -> Path:
    """The folder, made with its parents where it is missing.

    Raises:
        CheckpointError: it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise CheckpointError(f"the folder cannot be made: {error.strerror}", where=folder,
                              fix="choose another output folder") from None  # fmt: skip
    return folder


def free_bytes(folder: Path) -> int:
    """What is left on the disk that a folder is on, or would be."""
    # `Path.exists` raises for names that are too long.
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    return shutil.disk_usage(there).free


def _reason(error: Exception, folder: Path) -> str | None:
    """Why a file could not be written; None if something else went wrong."""
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in _FULL:
            return os.strerror(error.errno)
        name = error.filename
        inside = not isinstance(name, str) or Path(name).absolute().is_relative_to(folder.absolute())
        return os.strerror(error.errno) if error.errno in _CLOSED and inside else None
    # safetensors and torch raise errors of their own, which name the system's in words at best.
    said = str(error)
    for number in (*_FULL, *_CLOSED):
        if f"(os error {number})" in said or os.strerror(number) in said:
            return os.strerror(number)
    return "a file could not be written to its end" if any(word in said for word in _TORCH) else None
