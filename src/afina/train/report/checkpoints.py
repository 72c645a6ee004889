"""Which checkpoints are whole: a manifest with every file's hash is written last."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from ...cache import sha256

_MANIFEST = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")
SET_ASIDE = "damaged-"
"""Before the name of a checkpoint that was sealed and whose bytes are others now."""


class Found(NamedTuple):
    """The newest checkpoint that is whole, or None; and what is wrong with the newer ones, by their folders."""

    whole: Path | None
    faults: dict[Path, str]


def mark_complete(folder: Path) -> None:
    """Write the manifest of a checkpoint, atomically."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name.removeprefix(".") != _MANIFEST]
    partial = folder / f".{_MANIFEST}"
    with partial.open("w", encoding="utf-8") as file:
        json.dump({"sha256": {str(p.relative_to(folder)): sha256(p) for p in files}}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / _MANIFEST)


def fault_of(folder: Path) -> str | None:
    """What keeps a checkpoint from being whole, or None."""
    try:
        hashes = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["sha256"]
        for name, known in hashes.items():
            if sha256(folder / name) != known:
                return f"{name} has other bytes than were written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} cannot be read"
    return None


def is_complete(folder: Path) -> bool:
    """Whether every file of the checkpoint is there as it was written."""
    return fault_of(folder) is None


def is_sealed(folder: Path) -> bool:
    """Whether its save came to an end, whatever happened to it since."""
    return (folder / _MANIFEST).is_file()


def checkpoints(run: Path) -> list[Path]:
    """All checkpoints of a run, the one with the most steps first."""
    there = (path for path in run.glob("checkpoint-*") if path.is_dir())
    found = [(int(m[1]), path) for path in there if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def run_of(folder: Path) -> Path | None:
    """The folder of the run that a checkpoint belongs to; None of what is no checkpoint."""
    return folder.absolute().parent if _NAME.fullmatch(folder.absolute().name) else None


def look(run: Path) -> Found:
    """Read the checkpoints from the newest on, up to one that is whole."""
    faults: dict[Path, str] = {}
    for path in checkpoints(run):
        fault = fault_of(path)
        if fault is None:
            return Found(path, faults)
        faults[path] = fault
    return Found(None, faults)


def newest_complete(run: Path) -> Path | None:
    """The checkpoint with the most steps that is whole, or None."""
    return look(run).whole


def clear(faults: dict[Path, str]) -> None:
    """Take checkpoints that are not whole out of the way of a run that goes on; those once sealed are kept aside."""
    for path in faults:
        aside = path.with_name(f"{SET_ASIDE}{path.name}")
        if is_sealed(path) and not aside.exists():
            path.rename(aside)
        else:
            shutil.rmtree(path)
