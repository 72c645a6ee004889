from __future__ import annotations

import math

import pytest

from afina.compare.runs import Outcome
from afina.compare.tune import search
from afina.train.recipe.settings import load_recipe

from ..train import tiny

pytest.importorskip("optuna")


class Pretended:
    """A runner whose loss is lowest at the rate 0.05; rates above 0.4 get worse and worse on the way."""

    def __init__(self):
        self.rates, self.trials, self.seen = [], [], {}

    def run(self, label, recipe, seed, *, trial, stop):
        rate = recipe.training.learning_rate
        self.rates.append(rate)
        self.trials.append(trial)
        if label in self.seen:
            return self.seen[label]
        told = []
        for step in (10, 20, 30):
            told.append((step, abs(math.log10(rate / 0.05)) + (step / 10 if rate > 0.4 else 1 / step)))
            if stop(*told[-1]):
                return self._keep(label, Outcome("pruned", values=tuple(told)))
        return self._keep(label, Outcome("done", {"loss": told[-1][1]}, values=tuple(told)))

    def _keep(self, label, outcome):
        self.seen[label] = Outcome(outcome.status, outcome.result, cached=True, values=outcome.values)
        return outcome


@pytest.fixture
def recipe(tmp_path):
    return load_recipe(str(tiny.write_recipe(tmp_path, tmp_path)))  # its learning rate is 0.01


def test_search_begins_with_the_own_rate_and_takes_the_lowest_loss(recipe):
    runner = Pretended()
    found = search(runner, "lora", recipe, 6, seed=0)
    assert runner.rates[:2] == [0.01, 0.05]
    assert found.best == 0.05
    assert all(runner.trials)
    assert len(found.trials) == 6
    assert all(found.low * 0.99 <= rate <= found.high * 1.01 for rate in runner.rates)


def test_bad_trials_are_stopped_early(recipe):
    found = search(Pretended(), "lora", recipe, 12, seed=0)
    pruned = [t for t in found.trials if t["status"] == "pruned"]
    assert pruned
    assert all(t["learning_rate"] != found.best for t in pruned)


def test_search_that_is_repeated_from_the_cache_asks_for_the_same_rates(recipe):
    runner = Pretended()
    first = search(runner, "lora", recipe, 8, seed=0)
    again = search(runner, "lora", recipe, 8, seed=0)
    assert runner.rates[:8] == runner.rates[8:]
    assert first == again


def test_search_without_a_finished_trial_has_no_best(recipe):
    class Broken(Pretended):
        def run(self, label, recipe, seed, *, trial, stop):
            return Outcome("crashed", error="killed by SIGKILL")

    found = search(Broken(), "lora", recipe, 2, seed=0)
    assert found.best is None
    assert [t["error"] for t in found.trials] == ["killed by SIGKILL"] * 2
