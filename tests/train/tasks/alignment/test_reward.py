from __future__ import annotations

import pytest

from afina.train.data.rows import Rows
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from ... import tiny
from .test_preference import with_parts


def trl_loss(parts):
    from afina.train.tasks.alignment.reference import as_dataset

    measured = parts["trainer"].evaluate(as_dataset(parts["data"].held_out, ("chosen_ids", "rejected_ids")))
    return measured["eval_loss"], measured["eval_accuracy"]


def scored(folder, values):
    from pathlib import Path

    from afina.train.use.predictions import predict
    from afina.train.use.trained import load_trained

    rows = Rows(Path("d.jsonl"), values, list(range(1, len(values) + 1)))
    return predict(load_trained(folder, Reporter()), rows, Reporter(), batch_size=2).rows


def test_scores_are_those_of_trl_and_of_every_shape_of_a_text(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "reward", models, evaluation__batch_size=10, training__max_steps=20)
    result, (loss, accuracy) = child(with_parts, load_recipe(str(file)), trl_loss)
    assert loss == pytest.approx(result.after.loss, abs=1e-5)
    assert accuracy == pytest.approx(result.after.accuracy)
    pairs = child(scored, result.folder, [{"prompt": "n1", "chosen": "odd", "rejected": "even"}])
    alone = child(scored, result.folder, [{"prompt": "n1", "completion": "odd"}])
    turns = [{"role": "user", "content": "n1"}, {"role": "assistant", "content": "odd"}]
    chat = child(scored, result.folder, [{"messages": turns}])
    assert pairs[0]["score_chosen"] == pytest.approx(alone[0]["score"], abs=1e-5)
    assert chat[0]["score"] == pytest.approx(alone[0]["score"], abs=1e-5)


def test_encoder_is_a_reward_model_too(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "reward", models, model__path=str(models["encoder"]), training__max_steps=40)
    result, _ = child(with_parts, load_recipe(str(file)), len)
    assert result.after.loss < result.before.loss
