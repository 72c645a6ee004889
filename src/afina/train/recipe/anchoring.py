"""Paths in a recipe count from the recipe's folder; those of a command line from the current one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .sections import Recipe

_REFERENCE = re.compile(r"(package|sdist|embedded):")
_HUB = "hub:"
_SAMPLE = re.compile(r"#\d+$")


def anchor(values: dict[str, Any], folder: Path) -> None:
    """Let the paths among a recipe's values by section count from `folder`."""

    def put(section: str, key: str, place: Callable[[str, Path], str]) -> None:
        found = values.get(section)
        if isinstance(found, dict) and isinstance(found.get(key), str):
            found[key] = place(found[key], folder)

    put("model", "path", _model)
    put("data", "train", _rows)
    put("data", "eval", _rows)
    put("output", "dir", _path)


def absolute(recipe: Recipe) -> None:
    """Let the recipe's own paths, wherever they count from, be read from anywhere."""
    here = Path.cwd()
    recipe.model.path = _model(recipe.model.path, here)
    recipe.data.train = _rows(recipe.data.train, here)
    if recipe.data.eval is not None:
        recipe.data.eval = _rows(recipe.data.eval, here)
    recipe.output.dir = _path(recipe.output.dir, here)


def _path(text: str, folder: Path) -> str:
    return str(folder / Path(text).expanduser()) if text else text


def _rows(text: str, folder: Path) -> str:
    """Of a source of rows: a path, `PATH#500`, `hub:FOLDER@SPLIT`, or a reference, which stays."""
    if _REFERENCE.match(text):
        return text
    if text.startswith(_HUB):
        name, mark, split = text.removeprefix(_HUB).partition("@")
        own = _path(name, folder)
        return f"{_HUB}{own}{mark}{split}" if name.startswith((".", "~", "/")) or Path(own).is_dir() else text
    sample = _SAMPLE.search(text)
    return _path(text[: sample.start()], folder) + sample[0] if sample else _path(text, folder)


def _model(text: str, folder: Path) -> str:
    """Of a base model: what is there, or can be nothing but a path; hub ids and references stay."""
    own = _path(text, folder)
    is_path = text.startswith((".", "~", "/")) or text.endswith(".gguf") or text.count("/") > 1
    return own if not _REFERENCE.match(text) and (is_path or Path(own).exists()) else text
