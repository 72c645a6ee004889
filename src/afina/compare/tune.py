"""A short search for a method's learning rate, on training rows that are held out for it; never on the test items."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..train.recipe.sections import Recipe
from .runs import Outcome, Runner

_BELOW, _ABOVE = 10.0, 30.0
"""The range around the rate to begin with. A method's own is one that trains on every task, so better ones lie above it
more often than below (docs/learning-rates.md)."""
_FIRST = (1.0, 5.0)
"""Factors that are tried before Optuna suggests its own."""


@dataclass
class Search:
    """What was searched for one method.

    Attributes:
        low, high: the range of learning rates.
        trials: each with its `learning_rate`, `status` and `loss` (the last that it told; None if it told none).
        best: the learning rate with the lowest loss; None if no trial was finished.
    """

    low: float
    high: float
    trials: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None


def search(runner: Runner, name: str, recipe: Recipe, trials: int, seed: int) -> Search:
    """Try `trials` learning rates, each with the whole budget of steps unless it falls behind, and take the best.

    The sampler (TPE) is seeded and told the same values again when cached trials are found, so a search that was cut
    off goes on as it would have. A trial is stopped where its loss on the way is above the median of the others there.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    start = recipe.training.learning_rate
    assert start is not None
    found = Search(start / _BELOW, start * _ABOVE)
    study = optuna.create_study(
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=3),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0),
    )
    for factor in _FIRST:
        study.enqueue_trial({"learning_rate": start * factor})
    for number in range(trials):
        trial = study.ask()
        rate = float(f"{trial.suggest_float('learning_rate', found.low, found.high, log=True):.2g}")

        def stop(step: int, loss: float, trial: Any = trial) -> bool:
            trial.report(loss, step)
            return not math.isfinite(loss) or bool(trial.should_prune())

        outcome = runner.run(
            f"{name} trial {number + 1} lr={rate:g}", at_rate(recipe, rate), seed, trial=True, stop=stop
        )
        if outcome.cached:
            for step, loss in outcome.values:
                trial.report(loss, step)
        _record(study, trial, outcome, found, rate)
    finished = [t for t in found.trials if t["status"] == "done"]
    found.best = min(finished, key=lambda t: t["loss"])["learning_rate"] if finished else None
    return found


def _record(study: Any, trial: Any, outcome: Outcome, found: Search, rate: float) -> None:
    from optuna.trial import TrialState

    loss = outcome.result.get("loss") if outcome.status == "done" else None
    if loss is not None and math.isfinite(loss):
        study.tell(trial, loss)
    else:
        study.tell(trial, state=TrialState.PRUNED if outcome.status == "pruned" else TrialState.FAIL)
    last = loss if loss is not None else outcome.values[-1][1] if outcome.values else None
    found.trials.append({"learning_rate": rate, "status": outcome.status, "loss": last, "error": outcome.error})


def at_rate(recipe: Recipe, rate: float) -> Recipe:
    """The recipe with another learning rate."""
    out = recipe.model_copy(deep=True)
    out.training.learning_rate = rate
    return out
