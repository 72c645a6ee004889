"""The folder of things that are made or fetched once: data sets, models, compiled kernels; what they are known by."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError


def cache_dir() -> Path:
    """`$AFINA_CACHE`, or `~/.cache/afina`."""
    given = os.environ.get("AFINA_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "afina"


def make_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Let `make` fill a fresh folder and put it at `target` in one rename, unless `target` is there already.

    A lock keeps two processes from making the same thing; were it to fail (some network file systems), the loser's
    work is dropped and nothing is torn.
    """
    if target.is_dir():  # also where nothing can be written
        return target
    with _lock(target):
        if target.is_dir():
            return target
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            make(work)
            open_up(work)
            try:
                work.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError("cannot write to the cache", where=target.parent, got=error, fix="set AFINA_CACHE") from error
    with FileLock(f"{target}.lock"):
        yield


def open_up(folder: Path) -> None:
    """Give files the rights that the umask grants; temporary folders and safetensors files start as private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def sha256(*paths: Path) -> str:
    """The SHA-256 of a file, or of several one after the other, in hex."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
