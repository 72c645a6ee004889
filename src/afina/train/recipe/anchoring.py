"""Paths in a recipe count from the recipe's folder; those of a command line from the current one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .sections import Recipe, Section

_REFERENCE = re.compile(r"(package|sdist|embedded):")
_HUB = "hub:"
_SAMPLE = re.compile(r"#\d+$")


def anchor(values: dict[str, Any], folder: Path) -> None:
    """Let the paths among a recipe's values by section count from `folder`."""
    for (section, key), place in _PLACES.items():
        found = values.get(section)
        if isinstance(found, dict) and found.get(key) is not None:
            found[key] = _placed(found[key], place, folder)


def absolute(recipe: Recipe) -> None:
    """Let the recipe's own paths, wherever they count from, be read from anywhere."""
    for (section, key), place in _PLACES.items():
        part = getattr(recipe, section)
        if getattr(part, key) is not None:
            setattr(part, key, _placed(getattr(part, key), place, Path.cwd()))


def _placed(value: Any, place: _Place, folder: Path) -> Any:
    """One path, or the paths of a list of them or of what has them."""
    if isinstance(value, str):
        return place(value, folder)
    if isinstance(value, list):
        return [_placed(one, place, folder) for one in value]
    if isinstance(value, dict):
        return {k: _placed(v, place, folder) if k in _HOLDING else v for k, v in value.items()}
    if isinstance(value, Section):
        held = {k: _placed(v, place, folder) for k, v in value if k in _HOLDING}
        return value.model_copy(update=held)
    return value


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


def _function(text: str, folder: Path) -> str:
    """Of a reward: `FILE.py:FUNCTION`; others have no path."""
    file, mark, function = text.rpartition(":")
    return f"{_path(file, folder)}:{function}" if mark and file.endswith(".py") else text


_Place = Callable[[str, Path], str]
_PLACES: Mapping[tuple[str, str], _Place] = MappingProxyType(
    {
        ("model", "path"): _model, ("model", "adapter"): _model, ("model", "chat_template"): _path,
        ("data", "train"): _rows, ("data", "eval"): _rows, ("data", "class_images"): _path, ("output", "dir"): _path,
        ("reinforcement", "rewards"): _function,
    }
)  # fmt: skip
_HOLDING = ("path", "use")
"""Keys of the parts of lists that hold such a path."""
