"""Rewards by a function of the user's own, whose every mistake is told with the function, and with the row where one
answer alone shows it."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ....errors import AfinaError, DataError, RecipeError, did_you_mean

_WHERE = "reinforcement.rewards"
_FORMS = "NAME(prompts, answers, rows), or NAME(prompts, completions, **columns) as TRL calls them"


class _Guarded:
    """What a user's code raises, whatever that is, becomes a mistake of theirs; only signals go their way."""

    def __init__(self, file: Path, told: Callable[[BaseException], AfinaError]) -> None:
        self.file, self.told = file, told

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (Exception, SystemExit)) and not isinstance(error, AfinaError):
            raise self.told(error) from error


def said(error: BaseException, file: Path) -> str:
    """What was raised, and at which line of the file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    words = (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]
    return words + (f" (line {lines[-1]})" if lines else "")


class OwnReward:
    """The function `name` of a file, which is run.

    Raises:
        RecipeError: there is no such, the file raises, or the function takes other arguments.
    """

    def __init__(self, file: Path, name: str) -> None:
        if not file.is_file():
            raise RecipeError("no such file with a reward function", where=_WHERE, got=file.absolute())
        self.file, self.where = file, f"{file}:{name}"
        spec = importlib.util.spec_from_file_location(f"afina_reward_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        raised = "the file with the reward function raises"
        with _Guarded(file, lambda error: RecipeError(raised, where=file, got=said(error, file))):
            spec.loader.exec_module(module)
        function = getattr(module, name, None)
        if not callable(function):
            known = [key for key, value in vars(module).items() if callable(value)]
            raise RecipeError("no such reward function", where=file, got=name, fix=did_you_mean(name, known))
        self.function: Callable[..., Any] = function
        self.as_trl = self._as_trl()

    def _as_trl(self) -> bool:
        try:
            signature = inspect.signature(self.function)
        except ValueError:  # of some that are written in C
            return False
        if "completions" in signature.parameters:
            return True
        try:
            signature.bind(None, None, None)
        except TypeError as error:
            raise RecipeError("a reward function takes other arguments", where=self.where, got=str(signature),
                              expected=_FORMS) from error  # fmt: skip
        return False

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Mapping[str, Any]],
        places: Sequence[str],
    ) -> Any:  # fmt: skip
        """What the function gives.

        Raises:
            RecipeError: it raises.
        """
        with _Guarded(self.file, lambda error: self._told(error, prompts, answers, rows, places)):
            return self._called(prompts, answers, rows)

    def _called(self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Any:
        if not self.as_trl:
            return self.function(list(prompts), list(answers), list(rows))
        names = {name for row in rows for name in row} - {"prompt", "completion"}
        columns = {name: [row.get(name) for row in rows] for name in names}
        return self.function(**{**columns, "prompts": list(prompts), "completions": list(answers)})

    def _told(
        self, error: BaseException, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Mapping[str, Any]],
        places: Sequence[str],
    ) -> RecipeError:  # fmt: skip
        """The mistake, with the first row that shows it by itself."""
        place = ""
        for prompt, answer, row, where in zip(prompts, answers, rows, places, strict=False):
            try:
                with _Guarded(self.file, lambda found: _Again(said(found, self.file))):
                    self._called([prompt], [answer], [row])
            except _Again:
                place = f", on the answer {answer[:60]!r} to the row {where}"
                break
        return RecipeError("the reward function raises", where=self.where, got=f"{said(error, self.file)}{place}")


class _Again(DataError):
    """One answer alone makes it raise too."""


def numbers(found: Any, places: Sequence[str], count: int, where: str) -> list[float]:
    """What a reward gave, as a number for each answer.

    Raises:
        RecipeError: it is something else; names the row where it is one answer's.
    """
    expected = f"a list of {count} finite numbers"
    what = "a reward gives a number for each answer"
    if isinstance(found, (str, bytes, Mapping)) or not hasattr(found, "__iter__"):
        raise RecipeError(what, where=where, got=f"{type(found).__name__} {found!r}"[:120], expected=expected)
    values = list(found)
    if len(values) != count:
        raise RecipeError(what, where=where, got=f"{len(values)} values", expected=expected)
    for index, value in enumerate(values):
        if not _is_number(value):
            place = f" for the row {places[index]}" if index < len(places) else ""
            got = f"{type(value).__name__} {value!r}"[:80] + place
            raise RecipeError(what, where=where, got=got, expected=expected)
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    """Also numpy's and torch's, of which float() knows how."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        return False
    try:
        return abs(float(value)) < float("inf")
    except (TypeError, ValueError, RuntimeError, OverflowError):  # of several numbers
        return False
