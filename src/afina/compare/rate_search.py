"""The learning rate of each method, searched on training rows that are held out for it; never on the test items.

The candidates of a method climb in a fleet (`afina.tune`): those that are significantly worse leave at an eighth, a
quarter and a half of the way, and the last one is taken without being trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ..evidence.prepare import Shared
from ..train.recipe.sections import Recipe
from ..train.report.events import Reporter
from ..tune.contender import Contender
from ..tune.outcome import ALONE, is_trained

FACTORS = (1.0, 2.0, 5.0, 0.3, 10.0, 3.0, 0.5, 20.0, 0.1, 7.0, 30.0)
"""Of a method's own rate, which trains on every task, so that better ones lie above it more often than below
(docs/learning-rates.md): the first ones are tried first."""
_RUNGS = 3


@dataclass
class Tried:
    """What was searched for one method.

    Attributes:
        trials: each with its `learning_rate`, `status`, `loss` (the last that was measured; None if none was), `steps`
            and `error`.
        best: the learning rate that is taken; None if none could be trained.
    """

    trials: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None


def search(
    recipes: Mapping[str, Recipe], count: int, seed: int, shared: Shared, folder: Path, reporter: Reporter
) -> dict[str, Tried]:
    """Try `count` rates for each recipe, around its own.

    Args:
        recipes: by the name of their method, each with a rate.
        seed: of all trials.
        folder: what was tried there before is not tried again.

    Raises:
        StoppedError: a signal asked for the end.
    """
    from ..train.fleet.room import in_turn  # loads what trains
    from ..tune.search import Search

    device = next(iter(recipes.values())).model.device
    climbing = Search(shared, folder, _RUNGS, None, reporter, alone=in_turn(device), seed=seed, until_alone=True)
    climbing.run([one for name, recipe in recipes.items() for one in _contenders(name, recipe, count, shared)])
    return {name: _tried([one for one in climbing.done if one.group == name]) for name in recipes}


def _contenders(name: str, recipe: Recipe, count: int, shared: Shared) -> list[Contender]:
    own = recipe.training.learning_rate
    assert own is not None
    rates = sorted(float(f"{own * factor:.2g}") for factor in FACTORS[:count])
    return [Contender(f"{name} lr={rate:g}", {}, at_rate(recipe, rate), shared.steps, group=name) for rate in rates]


def _tried(done: Sequence[Contender]) -> Tried:
    """The rate of the last one left; or that with the lowest loss of those that were trained to the end."""
    ended = [one for one in done if one.record.status == "done"]
    won = next((one for one in done if one.record.reason == ALONE), None)
    if won is None and ended:
        won = min(ended, key=lambda one: (is_trained(one) is False, fmean(one.record.losses)))
    return Tried([_trial(one) for one in done], won.recipe.training.learning_rate if won is not None else None)


def _trial(one: Contender) -> dict[str, Any]:
    record = one.record
    last = record.losses or next((losses for _, losses in reversed(record.rungs.values())), [])
    status = "taken" if record.reason == ALONE else record.status
    return {"learning_rate": one.recipe.training.learning_rate, "status": status, "steps": record.steps,
            "loss": fmean(last) if last else None, "error": record.reason if status == "failed" else ""}  # fmt: skip


def at_rate(recipe: Recipe, rate: float) -> Recipe:
    """The recipe with another learning rate."""
    out = recipe.model_copy(deep=True)
    out.training.learning_rate = rate
    return out
