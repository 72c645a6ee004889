"""Scores of items are those that the training's own evaluation gives."""

from __future__ import annotations

import pytest

from afina.evidence.items import general_text
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from ..train import tiny


def scored(path):
    """What the comparison's scores are after training, and what `afina train` reports of the same model."""
    from afina.evidence.items import general_loss, quality
    from afina.train.loop.run import run
    from afina.train.tasks import answering

    asked, decode = [], answering.answers
    answering.answers = lambda model, p, prompts, **how: asked.append(len(prompts)) or decode(model, p, prompts, **how)

    class Scores(Reporter):
        def __init__(self):
            self.found = {}

        def reached(self, stage, parts):
            if stage == "trained":
                mode = parts["trainer"].model.training
                asked.clear()
                self.found = {**quality(parts), "general": general_loss(parts), "decoded": sum(asked)}
                self.found["mode kept"] = parts["trainer"].model.training is mode

    scores = Scores()
    report = run(load_recipe(str(path)), scores).report
    return scores.found, report["after"]


OTHERS = pytest.mark.whole("one way of scoring for all methods")


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(m, marks=OTHERS) for m in ("prompt_tuning", "prefix_tuning"))]
)
def test_answers_and_losses_are_those_of_the_evaluation(tmp_path, model_folder, child, method):
    own = {"type": "lora", "r": 8, "target_modules": "all-linear"} if method == "lora" else {"type": method}
    recipe = tiny.write_recipe(tmp_path, model_folder, method=own, training__max_steps=40, evaluation__batch_size=5)
    found, after = child(scored, recipe)
    assert found["metric"] == "accuracy"
    assert sum(found["items"]) / len(found["items"]) == after["accuracy"]
    assert found["loss"] == pytest.approx(after["loss"], rel=1e-4)
    assert 3 < found["general"] < 9
    assert found["mode kept"]
    assert found["decoded"] == 10 - max(0, sum(found["items"]) - 5)  # of the right answers a batch is decoded too


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


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {"llama": tiny.write_model, "t5": tiny.write_t5, "encoder": tiny.write_encoder}
    return {name: write(folder / name) for name, write in made.items()}


@pytest.mark.parametrize("task", ["seq2seq", "token_classification", "preference", "reward"])
def test_every_task_has_items_that_agree_with_its_evaluation(tmp_path, models, child, task):
    found, after = child(scored, tiny.write_task(tmp_path, task, models, training__max_steps=20))
    assert found["metric"] == "accuracy"
    assert all(0 <= item <= 1 for item in found["items"])
    # Rows of several lengths: a mean over rows is near the mean over words or tokens, and equal where rows are items.
    near = 1e-6 if task in ("preference", "reward", "seq2seq") else 0.1
    assert sum(found["items"]) / len(found["items"]) == pytest.approx(after["accuracy"], abs=near)
    assert found["loss"] == pytest.approx(
        after["loss"], rel=0.2 if task in ("seq2seq", "token_classification") else 1e-4
    )
    assert (found["general"] is not None) == (task == "preference")
