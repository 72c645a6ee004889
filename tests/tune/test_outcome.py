from __future__ import annotations

import json

import pytest
import yaml

from .made import contender, ended, found


def names(result):
    return [row["name"] for row in result["rows"]]


def test_the_best_comes_first_and_what_failed_last(recipe):
    result = found(recipe, contender(recipe, "rate=0.02", 0.02, **ended(0.9)))
    assert result["best"] == "rate=0.01"
    assert names(result) == ["rate=0.01", "rate=0.02", "rate=1e-05", "rate=<b>1</b>"]
    assert json.loads(json.dumps(result)) == result


def test_differences_are_taken_in_pairs(recipe):
    result = found(recipe, contender(recipe, "near", 0.02, **ended(0.501)))
    near = next(row for row in result["rows"] if row["name"] == "near")
    assert near["to_best"]["mean"] == pytest.approx(0.001)
    assert near["worse"] is True  # each row is worse by as much
    assert result["as_good"] == []


def test_those_that_are_as_good_are_named(recipe):
    noisy = ended(0.5)
    noisy["losses"] = [loss + (-1) ** i * 0.3 + 0.01 for i, loss in enumerate(noisy["losses"])]
    assert found(recipe, contender(recipe, "noisy", 0.02, **noisy))["as_good"] == ["noisy"]


def test_what_was_not_trained_is_not_the_best(recipe):
    result = found(recipe, contender(recipe, "idle", 0.02, **ended(0.1, verdict="flat")))
    idle = next(row for row in result["rows"] if row["name"] == "idle")
    assert (result["best"], idle["trained"]) == ("rate=0.01", False)


def test_without_a_trained_candidate_there_is_no_best_and_no_recipe(recipe):
    from afina.tune.outcome import standing_of

    only = [contender(recipe, "idle", 0.02, **ended(0.1, verdict="rose"))]
    assert standing_of(only) == ("", {})
    assert standing_of([contender(recipe, "short", 0.02, **ended(0.1, verdict="too short"))])[0] == "short"


def test_the_recipe_has_the_best_settings_and_is_measured_as_the_recipe_says(recipe):
    recipe.evaluation.every, recipe.training.early_stopping = 2, 3
    best = contender(recipe, "best", 0.03, **ended(0.1))
    best.recipe.evaluation.enabled, best.recipe.evaluation.every, best.recipe.training.early_stopping = (
        False,
        None,
        None,
    )
    made = yaml.safe_load(found(recipe, best)["best_recipe"])
    assert made["training"]["learning_rate"] == 0.03
    assert made["training"]["early_stopping"] == 3
    assert (made["evaluation"]["enabled"], made["evaluation"]["every"]) == (True, 2)


def test_rows_that_were_saved_are_those_of_steps_not_taken(recipe):
    saved = found(recipe)["saved"]
    assert (saved["rows"], saved["rows_of_all"]) == (4 * (80 + 3 + 20), 4 * 240)
    assert saved["share"] == pytest.approx(1 - 103 / 240)
    assert saved["seconds_of_all"] == pytest.approx(60 * 240 / 103, abs=0.1)
