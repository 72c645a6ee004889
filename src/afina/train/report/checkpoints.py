"""Which checkpoints are whole: a manifest with every file's size is written last."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

_MANIFEST = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(folder: Path) -> None:
    """Write the manifest of a checkpoint, atomically."""
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    sizes.pop(_MANIFEST, None)
    partial = folder / f".{_MANIFEST}"
    with partial.open("w", encoding="utf-8") as file:
        json.dump({"sizes": sizes}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / _MANIFEST)


def is_complete(folder: Path) -> bool:
    """Whether every file of the checkpoint is there in its full size."""
    try:
        sizes = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def newest_complete(run: Path) -> Path | None:
    """The checkpoint with the most steps that is whole, or None."""
    found = [(int(m[1]), path) for path in run.glob("checkpoint-*") if (m := _NAME.fullmatch(path.name))]
    return next((path for _, path in sorted(found, reverse=True) if is_complete(path)), None)
