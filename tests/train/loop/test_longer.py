from __future__ import annotations

import json

import pytest

from afina.errors import AfinaError
from afina.train.recipe.settings import load_recipe

from .. import tiny
from .test_run import Heard


def run_it(recipe, resume=False):
    from afina.train.loop.run import run

    heard = Heard()
    return run(recipe, heard, resume=resume), heard.notes


def longer(folder, model_folder, **changes):
    return load_recipe(str(tiny.write_recipe(folder, model_folder, **changes)))


LENGTHS = {
    "epochs": (
        {"training__max_steps": None, "training__epochs": 1},
        {"training__max_steps": None, "training__epochs": 2},
    ),
    "steps": ({}, {"training__max_steps": 12}),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_finished_run_goes_on_for_longer(name, model_folder, child, tmp_path):
    first, then = LENGTHS[name]
    before, _ = child(run_it, longer(tmp_path, model_folder, **first))
    after, notes = child(run_it, longer(tmp_path, model_folder, **then), True)
    assert (before.report["training"]["steps"], after.report["training"]["steps"]) == (6, 12)
    assert "resuming from checkpoint-6" in notes
    assert any("a finished run goes on" in note for note in notes)
    assert after.report["before"] == before.report["before"]  # of the run's very beginning
    assert after.after.loss < before.after.loss
    steps = [json.loads(line)["step"] for line in (after.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert {1, 6, 7, 12} <= set(steps)


def test_finished_run_is_not_resumed_for_no_longer(model_folder, child, tmp_path):
    child(run_it, longer(tmp_path, model_folder))
    for changes in ({}, {"training__max_steps": 5}, {"training__epochs": 9}):
        with pytest.raises(AfinaError, match=r"(?s)finished.*more epochs"):
            child(run_it, longer(tmp_path, model_folder, **changes), True)


def test_other_settings_stay_and_a_refusal_leaves_the_run_finished(model_folder, child, tmp_path):
    child(run_it, longer(tmp_path, model_folder))
    recipe = longer(tmp_path, model_folder, training__max_steps=12, training__learning_rate=0.5)
    with pytest.raises(AfinaError, match="learning_rate"):
        child(run_it, recipe, True)
    assert (tmp_path / "out" / "report.json").is_file()


def test_method_whose_schedule_ended_is_refused(model_folder, child, tmp_path):
    own = {"method": {"type": "adalora", "target_modules": "all-linear"}}
    child(run_it, longer(tmp_path, model_folder, **own))
    with pytest.raises(AfinaError, match="own schedule ended"):
        child(run_it, longer(tmp_path, model_folder, **own, training__max_steps=12), True)
