"""Rewards of answers: built-in checks, and functions of the user's own, which only a recipe can name.

A rule is `exact` or `exact:COLUMN` (the answer is what the row's column says, up to case and outer blanks), `json` (it
is valid JSON), `format:PATTERN` (it matches as a whole), or `FILE.py:FUNCTION`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ....errors import DataError, RecipeError, did_you_mean
from ...recipe.sections import RewardRule
from .own_reward import OwnReward, numbers


class Reward(Protocol):
    """Prompts, answers and rows -> a number for each; `places` say where the rows stand."""

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Mapping[str, Any]],
        places: Sequence[str] = (),
    ) -> list[float]: ...  # fmt: skip


_Rule = Callable[[Sequence[str], Sequence[str], Sequence[Mapping[str, Any]], Sequence[str]], Any]
_WHERE = "reinforcement.rewards"
_KINDS = "exact, json, format:PATTERN or FILE.py:FUNCTION"


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

    def reward(
        prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Mapping[str, Any]], places: Sequence[str] = ()
    ) -> list[float]:
        out = [0.0] * len(answers)
        for weight, part, use in parts:
            found = numbers(part(prompts, answers, rows, places), places, len(answers), use)
            out = [so_far + weight * value for so_far, value in zip(out, found, strict=True)]
        return out

    return reward


def _made(use: str) -> _Rule:
    name, _, rest = use.partition(":")
    if name == "exact":
        return _exact(rest or "answer")
    if use == "json":
        return lambda prompts, answers, *rest: [float(_is_json(answer)) for answer in answers]
    if name == "format" and rest:
        return _format(rest)
    file, mark, function = use.rpartition(":")
    if mark and file.endswith(".py"):
        return OwnReward(Path(file).expanduser(), function)
    raise RecipeError("no such reward", where=_WHERE, got=use, expected=_KINDS,
                      fix=did_you_mean(name, ("exact", "json", "format")))  # fmt: skip


def _exact(column: str) -> _Rule:
    def reward(
        prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Mapping[str, Any]], places: Sequence[str]
    ) -> list[float]:
        lacking = next((index for index, row in enumerate(rows) if column not in row), None)
        if lacking is not None:
            raise DataError(f"a row has no column {column!r} to compare answers with",
                            where=places[lacking] if lacking < len(places) else None,
                            got=f"columns {', '.join(rows[lacking])}", fix="name it: exact:COLUMN")  # fmt: skip
        return [float(a.strip().casefold() == str(row[column]).strip().casefold())
                for a, row in zip(answers, rows, strict=True)]  # fmt: skip

    return reward


def _format(pattern: str) -> _Rule:
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise RecipeError(f"malformed pattern ({error})", where=_WHERE, got=pattern[:80]) from error
    return lambda prompts, answers, *rest: [float(compiled.fullmatch(answer.strip()) is not None) for answer in answers]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
