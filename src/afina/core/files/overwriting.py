"""Outputs that would replace what they are made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...errors import CheckpointError, ConfigError
from .unwritable import check_place


def refuse_overwriting(out: Path, inputs: Mapping[str, Path], where: str) -> None:
    """Refuse to write to a file or folder that is an input, holds one, or is a file of one.

    Args:
        out: what will be written, or replaced as a whole.
        inputs: file or folder by what it is; those that are not there are not compared.
        where: the option that names the output.

    Raises:
        ConfigError: it would replace an input.
    """
    for name, path in inputs.items():
        if not path.exists() or not out.exists():
            continue
        if _within(path, out) or (out.is_file() and _within(out, path)):
            raise ConfigError(f"this would overwrite {name}", where=where, got=out, fix="choose another place to write")


def refuse_occupied(out: Path, kind: str, is_one: bool, overwrite: bool) -> None:
    """Refuse to write into a folder that holds something, unless that is what may be replaced and was asked for.

    Args:
        out: the folder.
        kind: what may be replaced: "a merged model".
        is_one: whether that is what it holds.
        overwrite: it was asked for.

    Raises:
        CheckpointError: it is a file, or holds something else, or it was not asked for, or there is no place for it.
    """
    check_place(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())) or (is_one and overwrite):
        return
    fix = "choose another folder, or --overwrite" if is_one else f"choose another folder: only {kind} is replaced"
    raise CheckpointError("the output holds something", where=out, fix=fix)


def _within(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, or lies in it, by its own name or where links lead."""
    real = path.expanduser().resolve()
    given = path.expanduser().absolute()
    # `samefile` also sees other names of one folder: mounts, file systems that take a and A for one.
    return any(here.exists() and here.samefile(folder) for here in (given, *given.parents, real, *real.parents))
