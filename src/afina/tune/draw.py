"""Which candidates of a space are tried: all where they are few enough, else those that Optuna's sampler suggests."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from .contender import Contender
from .space import Axis, grid, size

_TRIES = 20
"""How often a choice that was made before is drawn anew."""


class Draw:
    """Choices of values from a space, in waves: of a space that is too large, the second half of them knows what became
    of the first (a tree-structured Parzen estimator, J. Bergstra et al., NeurIPS 2011).

    Args:
        most: how many candidates there may be.
    """

    def __init__(self, axes: Sequence[Axis], most: int) -> None:
        self.axes, self.most = axes, most
        self.sampled = size(axes) > most
        self.trials: dict[tuple[str, ...], Any] = {}
        self.study: Any = None
        self.random = Random(0)
        if self.sampled:
            self.study = _study(most)

    def waves(self) -> list[int]:
        """How many choices each wave has."""
        if not self.sampled:
            return [int(size(self.axes))]
        first = (self.most + 1) // 2
        return [n for n in (first, self.most - first) if n]

    def choices(self, count: int) -> list[dict[str, str]]:
        """So many choices that were not made before, fewer where none can be found."""
        if not self.sampled:
            return grid(self.axes)
        found: list[dict[str, str]] = []
        tries = _TRIES * count
        while len(found) < count and tries:
            tries -= 1
            choice, trial = self._asked()
            if tuple(choice.values()) in self.trials:
                self._forget(trial)
                self._enqueue_another()
                continue
            self.trials[tuple(choice.values())] = trial
            found.append(choice)
        return found

    def _asked(self) -> tuple[dict[str, str], Any]:
        trial = self.study.ask()
        return {axis.key: _value(axis, trial) for axis in self.axes}, trial

    def _enqueue_another(self) -> None:
        """Where the sampler comes back to what was tried, go on with a choice that was not."""
        if size(self.axes) == float("inf"):
            return
        rest = [choice for choice in grid(self.axes) if tuple(choice.values()) not in self.trials]
        self.study.enqueue_trial(self.random.choice(rest))

    def _forget(self, trial: Any) -> None:
        from optuna.trial import TrialState

        self.study.tell(trial, state=TrialState.FAIL)

    def tell(self, done: Sequence[Contender]) -> None:
        """What became of candidates."""
        from optuna.trial import TrialState

        for one in done if self.sampled else ():
            trial, record = self.trials[tuple(one.choice.values())], one.record
            for step, losses in record.rungs.values():
                trial.report(sum(losses) / len(losses), step)
            if record.status == "done":
                self.study.tell(trial, sum(record.losses) / len(record.losses))
            else:
                self.study.tell(trial, state=TrialState.PRUNED if record.rungs else TrialState.FAIL)


def _study(most: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=(most + 1) // 2, constant_liar=True)
    return optuna.create_study(direction="minimize", sampler=sampler)


def _value(axis: Axis, trial: Any) -> str:
    if axis.span is None:
        return str(trial.suggest_categorical(axis.key, axis.values))
    low, high = axis.span
    if axis.whole:
        return str(trial.suggest_int(axis.key, round(low), round(high), log=True))
    return f"{trial.suggest_float(axis.key, low, high, log=True):.2g}"
