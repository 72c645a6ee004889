"""What a run stands on, as hashes: the rows, and the files of the base model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ...cache import sha256
from ..base.adapter_below import files_below
from ..base.base_model import config_of
from ..base.pipelines.part_files import weights_of
from ..conversations.image_files import image_paths
from ..data.rows import Rows
from ..data.split import Split
from ..recipe.sections import ModelSection

_PARTS = frozenset({".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py"})
"""Kinds of files that a model folder's weights, config and tokenizer are in."""


def contents(split: Split, section: ModelSection, location: str, class_images: str | None = None) -> dict[str, str]:
    """What a resumed run must find as it was.

    Args:
        location: folder or hub id of the base model, as its task's `location` gives it.
        class_images: the recipe's folder of them.
    """
    out = {f"rows of {name}": _rows(rows) for name, rows in zip(("train", "eval"), split.parts, strict=False)}
    out |= {f"adapter: {path.name}": sha256(path) for path in files_below(section)}
    if section.chat_template is not None:
        out["chat template"] = sha256(Path(section.chat_template).expanduser())
    if class_images is not None:
        out["images of the class"] = folder_digest(Path(class_images).expanduser())
    folder = Path(location)
    if not folder.is_dir():
        # The hub's files are known by their commit.
        return {**out, "commit of the base": str(getattr(config_of(location, section), "_commit_hash", None))}
    inside = weights_of(folder, "*")
    files = sorted(path for path in inside if path.suffix in _PARTS and path.is_file())
    return {**out, **{f"base: {path.relative_to(folder)}": sha256(path) for path in files}}


def folder_digest(folder: Path) -> str:
    """Of the files in a folder, by their names."""
    out = hashlib.sha256()
    for path in sorted(p for p in folder.glob("*") if p.is_file()):
        out.update(f"{path.name} {sha256(path)}\n".encode())
    return out.hexdigest()


def _rows(rows: Rows) -> str:
    """Of the rows that are used, in their order, whatever file they come from, and of the images that they name."""
    out = hashlib.sha256()
    for index, row in enumerate(rows.values):
        out.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        for path in image_paths(row, rows.folder(index)):
            out.update(sha256(path).encode())
    return out.hexdigest()
