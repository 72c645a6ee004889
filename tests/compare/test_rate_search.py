from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from afina.compare.rate_search import FACTORS, search
from afina.evidence.prepare import prepare
from afina.train.fleet.room import IN_TURN
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter
from afina.tune import search as tuning
from afina.tune.climb import ALONE

from ..train import tiny


@pytest.fixture
def recipe(tmp_path):
    return load_recipe(str(tiny.write_recipe(tmp_path, tmp_path)))  # its learning rate is 0.01


class Pretended:
    """A search whose loss is lowest at the rate 0.05; the worst leaves, `fate` says what becomes of the others."""

    def __init__(self, shared, folder, count, at_once, reporter, *, alone, seed, until_alone):
        assert alone == IN_TURN

    def run(self, made):
        self.done = list(made)
        for one in made:
            rate = one.recipe.training.learning_rate
            one.record.status, one.record.losses = "done", [abs(rate - 0.05)]
            one.record.descent = {"verdict": self.verdict(rate)}
            if rate > 0.09:
                one.record.status, one.record.reason, one.record.losses = "left", "worse", []
                one.record.rungs, one.record.steps = {0: (10, [3.0])}, 10
        self.last(made)

    def verdict(self, rate):
        return "fell"

    def last(self, made):
        pass


def searched(monkeypatch, recipe, count=5, **changes):
    monkeypatch.setattr(tuning, "Search", type("Made", (Pretended,), changes))
    return search({"lora": recipe, "ia3": recipe}, count, 3, SimpleNamespace(steps=40), Path(), Reporter())["ia3"]


def test_rates_lie_around_the_own_one_and_the_lowest_loss_wins(recipe, monkeypatch):
    found = searched(monkeypatch, recipe)
    assert [trial["learning_rate"] for trial in found.trials] == [0.003, 0.01, 0.02, 0.05, 0.1]
    assert found.best == 0.05
    assert found.trials[-1] == {"learning_rate": 0.1, "status": "left", "steps": 10, "loss": 3.0, "error": ""}


def test_the_own_rate_is_tried_first(recipe, monkeypatch):
    assert [t["learning_rate"] for t in searched(monkeypatch, recipe, 1).trials] == [0.01]
    assert len(set(FACTORS)) == len(FACTORS)


def test_the_last_one_left_is_taken_without_an_end(recipe, monkeypatch):
    def last(self, made):
        for one in made:
            one.record.status, one.record.reason, one.record.losses = "left", "worse", []
        made[1].record.reason = made[6].record.reason = ALONE

    found = searched(monkeypatch, recipe, last=last)
    assert found.best == 0.01
    assert [trial["status"] for trial in found.trials] == ["left", "taken", "left", "left", "left"]


def test_a_rate_that_trained_is_taken_before_one_that_did_not(recipe, monkeypatch):
    found = searched(monkeypatch, recipe, verdict=lambda self, rate: "flat" if rate > 0.02 else "fell")
    assert found.best == 0.02


def test_a_method_that_failed_at_every_rate_has_no_best(recipe, monkeypatch):
    def last(self, made):
        for one in made:
            one.record.status, one.record.reason, one.record.losses = "failed", "no layer has a bias", []

    found = searched(monkeypatch, recipe, last=last)
    assert found.best is None
    assert {trial["error"] for trial in found.trials} == {"no layer has a bias"}


def really(folder, source):
    recipe = load_recipe(source, [("max_steps", "16")])
    shared = prepare(recipe, folder / "data", Reporter())
    return search({"lora": recipe}, 3, 3, shared, folder / "rates", Reporter())["lora"]


def test_a_method_is_not_trained_on_once_its_rate_is_known(model_folder, child, tmp_path):
    source = tiny.write_recipe(tmp_path, model_folder, training__learning_rate=2e-3)
    tiny.write_rows(tmp_path / "train.jsonl", 100)
    found = child(really, tmp_path, str(source))
    assert found.best == 0.01
    assert all(trial["steps"] > 0 for trial in found.trials)
    assert sum(trial["steps"] for trial in found.trials) < 3 * 16
