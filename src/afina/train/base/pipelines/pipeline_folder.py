"""The folder of a pipeline: found, fetched or made; what its index and its models' configs say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ....errors import CheckpointError, RecipeError
from ...recipe.sections import ModelSection
from ...report.events import Reporter
from ..assets import is_reference, locate, looked
from .made_pipelines import PREFIX, made
from .part_files import INDEX


def check_pipeline(section: ModelSection) -> None:
    """Refuse what is no pipeline on this machine, before anything is fetched or made.

    Raises:
        RecipeError: there is no such folder, and it is no id of the hub.
        CheckpointError: the folder holds no pipeline.
    """
    if section.path.startswith(PREFIX) or is_reference(section.path):
        return
    path = Path(section.path).expanduser()
    if path.exists():
        _check_folder(path)
    elif section.path.count("/") > 1 or section.path.startswith((".", "~", "/")):
        raise RecipeError("no such pipeline", where="model.path", got=f"{section.path} ({looked(path)})",
                          expected="a folder, a hub id or embedded:NAME")  # fmt: skip


def _check_folder(path: Path) -> None:
    if not (path / INDEX).is_file():
        raise CheckpointError(f"not a pipeline of diffusers (no {INDEX})", where=path,
                              fix="text_to_image trains whole pipelines: Stable Diffusion and its like")  # fmt: skip


def pipeline_location(section: ModelSection, reporter: Reporter) -> str:
    """The folder of the pipeline that a section names: a path, a reference, a hub id, or `embedded:NAME`.

    Raises:
        RecipeError: there is none.
        CheckpointError: it is no pipeline, or cannot be fetched.
    """
    check_pipeline(section)
    if section.path.startswith(PREFIX):
        return str(made(section.path.removeprefix(PREFIX), reporter))
    path = locate(section.path, reporter) if is_reference(section.path) else Path(section.path).expanduser()
    path = path if path.exists() else _fetched(section)
    _check_folder(path)
    return str(path)


def _fetched(section: ModelSection) -> Path:
    """The snapshot of a hub pipeline; its folder is named by the commit."""
    from diffusers import DiffusionPipeline

    try:
        with unloadable("pipeline", section.path), without_bars():
            return Path(DiffusionPipeline.download(section.path, revision=section.revision))
    except CheckpointError as error:
        raise CheckpointError("no such folder here, and no such pipeline from the hub", where=section.path,
                              got=str(error.got)[:120],
                              fix="if it is the folder of another run, train that first") from error  # fmt: skip


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep diffusers' own progress bars off the terminal within."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def unloadable(part: str, location: str) -> Iterator[None]:
    """Tell what a library could not load.

    Raises:
        CheckpointError: something in the context could not.
    """
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        got = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise CheckpointError(f"cannot load the {part}", where=location, got=got) from error


def index_of(location: str) -> dict[str, Any]:
    """Name of a part -> (library, class).

    Raises:
        CheckpointError: it cannot be read.
    """
    return _json(Path(location) / INDEX)


def config_of_part(location: str, part: str, file: str = "config.json") -> dict[str, Any]:
    """What a part of a pipeline says of itself.

    Raises:
        CheckpointError: it is missing or malformed.
    """
    return _json(Path(location) / part / file)


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(_text(path))
    except (OSError, ValueError) as error:
        raise CheckpointError("cannot read a part of the pipeline", where=path, got=str(error)[:160]) from error
    return found


def load_part(location: str, part: str, dtype: Any = None) -> Any:
    """A model or tokenizer of a pipeline, by the class that the index names.

    Raises:
        CheckpointError: it is missing, or its class is not known.
    """
    library, kind = _kind_of(location, part)
    options: dict[str, Any] = {} if dtype is None else {"torch_dtype" if library == "diffusers" else "dtype": dtype}
    with unloadable(part, location):
        return kind.from_pretrained(str(Path(location) / part), **options)


def sketched_part(location: str, part: str) -> Any:
    """A model of a pipeline by its config alone, in float32: its weights are not read.

    Raises:
        CheckpointError: it is missing, or its class is not known.
    """
    library, kind = _kind_of(location, part)
    with unloadable(part, location):
        if library == "diffusers":
            return kind.from_config(config_of_part(location, part))
        return kind._from_config(kind.config_class.from_pretrained(str(Path(location) / part)))


def _kind_of(location: str, part: str) -> tuple[str, Any]:
    """The library of a part, and its class there.

    Raises:
        CheckpointError: the pipeline has no such part, or its class is not known.
    """
    import diffusers
    import transformers

    library, name = index_of(location).get(part) or (None, None)
    kind = getattr({"diffusers": diffusers, "transformers": transformers}.get(str(library)), str(name), None)
    if kind is None:
        raise CheckpointError("the pipeline has no such part", where=location, got=f"{part}: {name} of {library}")
    return str(library), kind
