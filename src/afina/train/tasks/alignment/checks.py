"""Rewards of answers: built-in checks, and functions of the user's own, which only a recipe can name.

A rule is `exact` or `exact:COLUMN` (the answer is what the row's column says, up to case and outer blanks), `json` (it
is valid JSON), `format:PATTERN` (it matches as a whole), or `FILE.py:FUNCTION`.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....errors import DataError, RecipeError, did_you_mean
from ...recipe.sections import RewardRule

Reward = Callable[[Sequence[str], Sequence[str], Sequence[Mapping[str, Any]]], list[float]]
"""Prompts, answers and rows -> a number for each."""
_WHERE = "reinforcement.rewards"
_KINDS = "exact, json, format:PATTERN or FILE.py:FUNCTION"
_RAISED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, NameError, OSError, ImportError,
           SyntaxError, AssertionError, RuntimeError)  # fmt: skip
"""What a user's code may raise."""


def total(rules: Sequence[str | RewardRule]) -> Reward:
    """The weighted sum of the rules' rewards.

    Raises:
        RecipeError: there is none, or one names nothing.
    """
    if not rules:
        raise RecipeError(
            "a reward is needed", where=_WHERE, expected="exact, json, format:PATTERN or FILE.py:FUNCTION"
        )
    made = [(1.0, rule) if isinstance(rule, str) else (rule.weight, rule.use) for rule in rules]
    parts = [(weight, _made(use), use) for weight, use in made]

    def reward(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        out = [0.0] * len(answers)
        for weight, part, use in parts:
            found = _numbers(part(prompts, answers, rows), len(answers), use)
            out = [so_far + weight * value for so_far, value in zip(out, found, strict=True)]
        return out

    return reward


def _made(use: str) -> Reward:
    name, _, rest = use.partition(":")
    if name == "exact":
        return _exact(rest or "answer")
    if use == "json":
        return lambda prompts, answers, rows: [float(_is_json(answer)) for answer in answers]
    if name == "format" and rest:
        return _format(rest)
    file, mark, function = use.rpartition(":")
    if mark and file.endswith(".py"):
        return _of_user(Path(file).expanduser(), function)
    raise RecipeError("no such reward", where=_WHERE, got=use, expected=_KINDS,
                      fix=did_you_mean(name, ("exact", "json", "format")))  # fmt: skip


def _exact(column: str) -> Reward:
    def reward(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        lacking = next((row for row in rows if column not in row), None)
        if lacking is not None:
            raise DataError(f"a row has no column {column!r} to compare answers with",
                            got=f"columns {', '.join(lacking)}", fix="name it: exact:COLUMN")  # fmt: skip
        return [float(a.strip().casefold() == str(row[column]).strip().casefold())
                for a, row in zip(answers, rows, strict=True)]  # fmt: skip

    return reward


def _format(pattern: str) -> Reward:
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise RecipeError(f"malformed pattern ({error})", where=_WHERE, got=pattern[:80]) from error
    return lambda prompts, answers, rows: [float(compiled.fullmatch(answer.strip()) is not None) for answer in answers]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _of_user(file: Path, name: str) -> Reward:
    """The function `name` of a file, which is run: `name(prompts, answers, rows)` gives a number for each answer; or,
    as TRL calls them, `name(prompts, completions, **columns)`."""
    if not file.is_file():
        raise RecipeError("no such file with a reward function", where=_WHERE, got=file.absolute())
    spec = importlib.util.spec_from_file_location(f"afina_reward_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except _RAISED as error:
        raise RecipeError("the file with the reward function raises", where=file, got=_said(error)) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise RecipeError("no such reward function", where=file, got=name, fix=did_you_mean(name, known))

    as_trl = "completions" in inspect.signature(function).parameters

    def reward(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        try:
            if as_trl:
                names = {name for row in rows for name in row} - {"prompt", "completion"}
                columns = {name: [row.get(name) for row in rows] for name in names}
                return list(function(**{**columns, "prompts": list(prompts), "completions": list(answers)}))
            return list(function(list(prompts), list(answers), list(rows)))
        except _RAISED as error:
            raise RecipeError("the reward function raises", where=f"{file}:{name}", got=_said(error)) from error

    return reward


def _numbers(found: Sequence[Any], count: int, use: str) -> list[float]:
    bad = next((v for v in found if not isinstance(v, (int, float)) or not math.isfinite(v)), None)
    if len(found) != count or bad is not None:
        raise RecipeError("a reward gives a number for each answer", where=use, expected=f"{count} finite numbers",
                          got=f"{len(found)} values" if bad is None else repr(bad)[:80])  # fmt: skip
    return [float(value) for value in found]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]
