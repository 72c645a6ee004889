"""One of the candidates of a search: its settings, and what became of it, kept in its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.config import config_class
from ..errors import RecipeError
from ..evidence.candidates import Candidate, candidates, recipe_for
from ..train.loop.adapt import fill_rate
from ..train.recipe.sections import Recipe
from ..train.recipe.settings import load_recipe, method_config
from ..train.report.events import Reporter
from ..train.report.results import write_json
from .space import factor_of

_RECORD = "record.json"
_SETTINGS = {"rank": ("r",), "alpha": ("lora_alpha", "alpha"), "dropout": ("lora_dropout", "dropout"),
             "targets": ("target_modules",)}  # fmt: skip
"""Keys that methods call each in their own way."""


@dataclass
class Record:
    """What became of a candidate.

    Attributes:
        rungs: of each rung that it came to, its step and the loss of every held-out row.
        status: "" while it is on its way, "done" (trained to the end), "left" (at a rung), "failed".
        reason: why it left or failed.
        worse_than: the candidate that it left because of.
        steps: how many it was trained for.
        seconds: its share of the time of the fleets that it was in.
        losses: of every held-out row at the end, and how right it is on each where rows are right or wrong.
        descent: what became of its training loss (`report.descent`); None where that is no measure.
        curve: (step, training loss).
        alone: why it had passes of its own.
    """

    rungs: dict[int, tuple[int, list[float]]] = field(default_factory=dict)
    status: str = ""
    reason: str = ""
    worse_than: str = ""
    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    right: list[float] | None = None
    descent: dict[str, Any] | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    trainable: int = 0
    alone: str = ""


@dataclass
class Contender:
    """A candidate.

    Attributes:
        name: what it has of the space, e.g. `lora rate=0.002`.
        choice: the values as the space has them.
        recipe: with its settings, not placed on the search's rows yet.
        steps: of its whole training.
        used: keys of the space that it has; its method may lack some.
        group: candidates are compared with those of their group.
        folder: of what it leaves; set when the search is placed.
    """

    name: str
    choice: dict[str, str]
    recipe: Recipe
    steps: int
    used: tuple[str, ...] = ()
    group: str = ""
    folder: Path = Path()
    record: Record = field(default_factory=Record)

    @property
    def rows_per_step(self) -> int:
        """Rows that it takes in a step."""
        return self.recipe.training.batch_size * self.recipe.training.gradient_accumulation

    @property
    def settings(self) -> dict[str, Any]:
        """What tells it from others, whatever it is called."""
        return self.recipe.model_dump(mode="json", include={"method", "training"})

    def at(self, folder: Path) -> None:
        """Give it a folder, and what it left there before."""
        self.folder = folder
        path = folder / _RECORD
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            found["rungs"] = {int(number): tuple(rung) for number, rung in found["rungs"].items()}
            self.record = Record(**found)
            if not self.record.status:
                self.record.steps = 0  # until it goes on, from wherever its last checkpoint is

    def keep(self) -> None:
        """Write what became of it so far."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _RECORD, asdict(self.record))


def slug(name: str) -> str:
    """A name as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def contender(
    source: str, overrides: Sequence[tuple[str, str]], choice: Mapping[str, str], rows: int, max_steps: int | None
) -> Contender:
    """The candidate with these values of the space; values that its method has no setting for are left out.

    Args:
        rows: that there are to train on.

    Raises:
        RecipeError, ConfigError: a value is wrong.
    """
    from ..train.loop.adapt import planned_steps

    words: list[str] = []
    pairs: list[tuple[str, str]] = []
    used = [key for key in choice if key in ("method", "rate")]
    if "method" in choice:
        (named,) = candidates(choice["method"], where="--space method")
        words.append(named.name)
        pairs += named.overrides
    fields = _fields(load_recipe(source, [*overrides, *pairs]).method.type)
    for key, value in choice.items():
        if key in ("method", "rate"):
            continue
        target = _target(key, fields)
        if target is None and "method" in choice:
            continue
        target = target or f"method.{_names(key)[0]}"  # which loading the recipe will refuse
        pairs.append((target, _multiplied(source, [*overrides, *pairs], target, value)))
        words.append(f"{key.removeprefix('method.')}={pairs[-1][1]}")
        used.append(key)
    rate = choice.get("rate", "x1")
    factor = factor_of(rate)
    if factor is None:
        pairs.append(("training.learning_rate", rate))
    recipe, _ = recipe_for(source, overrides, Candidate("", tuple(pairs)), max_steps)
    fill_rate(recipe, rows, Reporter())
    own = recipe.training.learning_rate
    assert own is not None
    if factor not in (None, 1.0):
        recipe.training.learning_rate = float(f"{own * factor:.2g}")
    if "rate" in choice:
        words.append(f"rate={recipe.training.learning_rate:g}")
    name = " ".join(words) or recipe.method.type
    return Contender(name, dict(choice), recipe, planned_steps(recipe, rows), tuple(used))


def _fields(method: str) -> list[str]:
    from dataclasses import fields

    return [f.name for f in fields(config_class(method, where="method.type")) if f.init]


def _target(key: str, fields: Sequence[str]) -> str | None:
    """The recipe's key; None where the method has no such setting."""
    if key not in _SETTINGS and not key.startswith("method."):
        return f"training.{key}"
    return next((f"method.{name}" for name in _names(key) if name in fields), None)


def _names(key: str) -> tuple[str, ...]:
    return _SETTINGS.get(key, (key.removeprefix("method."),))


def _multiplied(source: str, pairs: Sequence[tuple[str, str]], target: str, value: str) -> str:
    """A value, or so many times the own one."""
    factor = factor_of(value)
    if factor is None:
        return value
    recipe = load_recipe(source, pairs)
    section, _, name = target.partition(".")
    own = method_config(recipe).get(name) if section == "method" else getattr(recipe.training, name)
    if not isinstance(own, int | float):
        raise RecipeError("there is no own value to multiply", where=f"--space {target}", got=own)
    return str(max(1, round(own * factor)))
