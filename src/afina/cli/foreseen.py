"""What `afina chat` refuses before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files.unwritable import check_place
from ..errors import DataError, RecipeError
from ..train.conversations.image_files import found_at

if TYPE_CHECKING:
    from ..train.data.prompts import Prompter
    from ..train.tasks.base import Known

_OF_TEXT = ("--max-new-tokens", "--system")
_OF_DRAWING = ("--temperature", "--top-p", "--seed")
_OF_TALK = (*_OF_DRAWING, "--raw")
"""Options that mean something where a model writes, and where it does so piece by piece."""


def check_transcript(path: Path | None) -> None:
    """Refuse a file that cannot be written at the end.

    Raises:
        DataError: it is there, or its folder is not.
        CheckpointError: it cannot be written.
    """
    if path is None:
        return
    check_place(path)
    if path.exists():
        raise DataError("the file to write exists", where=path, fix="--transcript another file")
    if not path.absolute().parent.is_dir():
        raise DataError("no such folder to write to", where=path.absolute().parent)


def check_drawing(given: Mapping[str, Any], *, alone: bool) -> None:
    """Refuse to draw where the likeliest token is always taken.

    Args:
        given: option -> its value; None where it was not given.
        alone: there is one message, and so no `/set temperature=...`.

    Raises:
        RecipeError: names the option.
    """
    idle = next((name for name in ("--top-p", "--seed") if given[name] is not None), None)
    if alone and idle and not given["--temperature"]:
        raise RecipeError("nothing is drawn: the likeliest token is always taken", where=idle, got=given[idle],
                          fix="--temperature 1")  # fmt: skip


def check_alone(known: Known, given: Mapping[str, Any]) -> None:
    """Refuse options that say nothing to a model of this task.

    Raises:
        RecipeError: names the option.
    """
    task = known.task
    idle = () if task.streams else _OF_TALK if task.writes else (*_OF_TEXT, *_OF_TALK)
    name = next((name for name in idle if given[name] not in (None, False)), None)
    if name is not None:
        what = "models of this task write a text as a whole" if task.writes else "models of this task write no text"
        raise RecipeError(what, where=name, got=task.name, fix="leave it out")
    if given["--base"] and not task.streams:
        raise RecipeError("only language models answer beside their base", got=f"--base, {task.name}")
    if given["--base"] and not known.is_adapter:
        raise RecipeError("the whole model was trained, there is no base beside it", got="--base")


def check_seen(known: Known, given: Mapping[str, Any], prompter: Prompter) -> None:
    """Refuse images where only texts are read, or that are not there.

    Raises:
        RecipeError: only texts are read.
        DataError: there is no such image.
    """
    if given["--image"] and prompter.images is None and known.task.medium == "texts":
        raise RecipeError("only models trained on images see them", where="--image", got=known.task.name,
                          expected="image_text_to_text")  # fmt: skip
    files = [given["--prompt"]] if given["--prompt"] is not None and known.task.medium != "texts" else []
    for path in [*files, *(given["--image"] or ())]:
        found_at(
            str(path).strip(),
            Path.cwd(),
            "--prompt" if path in files else "--image",
            "sound" if known.task.medium == "sounds" else "image",
        )


def check_several(given: Mapping[str, Any]) -> None:
    """Refuse options that say nothing where several adapters answer.

    Raises:
        RecipeError: names the option.
    """
    if given["--task"] is not None:
        raise RecipeError("several adapters have no task in common", where="--task", got=given["--task"])
    if given["--image"]:
        raise RecipeError("several adapters answer side by side to texts only", where="--image",
                          got=given["--image"][0], fix="afina chat ADAPTER --image FILE")  # fmt: skip
    if given["--base"]:
        raise RecipeError("beside several adapters the base always answers", where="--base", fix="leave it out")
