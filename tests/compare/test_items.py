"""Scores of items are those that the training's own evaluation gives."""

from __future__ import annotations

import pytest

from afina.compare.items import check_task, general_text
from afina.errors import RecipeError
from afina.train.events import Reporter
from afina.train.settings import load_recipe

from ..train import tiny


def scored(path):
    """What the comparison's scores are after training, and what `afina train` reports of the same model."""
    from afina.compare.items import general_loss, quality
    from afina.train.run import run

    class Scores(Reporter):
        def __init__(self):
            self.found = {}

        def reached(self, stage, parts):
            if stage == "trained":
                mode = parts["trainer"].model.training
                self.found = {**quality(parts), "general": general_loss(parts)}
                self.found["mode kept"] = parts["trainer"].model.training is mode

    scores = Scores()
    report = run(load_recipe(str(path)), scores).report
    return scores.found, report["after"]


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "prefix_tuning"])
def test_answers_and_losses_are_those_of_the_evaluation(tmp_path, model_folder, child, method):
    own = {"type": "lora", "r": 8, "target_modules": "all-linear"} if method == "lora" else {"type": method}
    recipe = tiny.write_recipe(tmp_path, model_folder, method=own, training__max_steps=40, evaluation__batch_size=5)
    found, after = child(scored, recipe)
    assert found["metric"] == "accuracy"
    assert sum(found["items"]) / len(found["items"]) == after["accuracy"]
    assert found["loss"] == pytest.approx(after["loss"], rel=1e-4)
    assert 3 < found["general"] < 9
    assert found["mode kept"]


def test_classes_are_right_or_not_and_have_no_general_loss(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, task="sequence_classification")
    found, after = child(scored, recipe)
    assert set(found["items"]) <= {0, 1}
    assert sum(found["items"]) / len(found["items"]) == after["accuracy"]
    assert found["loss"] == pytest.approx(after["loss"], rel=1e-4)
    assert found["general"] is None


def test_free_answers_have_their_loss_as_score(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, data__labels=None)
    found, after = child(scored, recipe)
    assert found["metric"] == "loss"
    assert len(found["items"]) == 10
    assert sum(found["items"]) / 10 == pytest.approx(after["loss"], rel=0.1)  # there a mean over tokens


def test_general_text_is_eight_paragraphs():
    assert len(general_text()) == 8
    assert all(50 < len(text.split()) < 90 for text in general_text())


def test_task_without_items_is_refused():
    check_task("causal_lm")
    with pytest.raises(RecipeError, match="not compared on this task"):
        check_task("dpo")
