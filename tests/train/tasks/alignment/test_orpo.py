from __future__ import annotations

import pytest

from afina.errors import RecipeError
from afina.train.recipe.settings import load_recipe

from ... import tiny
from .test_preference import with_parts


def tokens_and_loss(parts):
    from afina.train.tasks.alignment.orpo import tokenised

    trainer, data = parts["trainer"], parts["data"]
    measured = trainer.evaluate(tokenised(data.held_out))
    rows = [(row["chosen_input_ids"], row["chosen_labels"]) for row in trainer.train_dataset]
    ours = [item["prompt_ids"] + item["chosen_ids"] for item in data.train.items]
    return measured["eval_loss"], measured["eval_log_odds_ratio"], rows, ours


@pytest.mark.parametrize("chat", [True, False])
def test_trains_on_our_tokens_with_trls_loss(chat, models, child, tmp_path):
    options = {"evaluation__batch_size": 10, "data__chat_template": chat, "training__max_steps": 20}
    file = tiny.write_task(tmp_path, "orpo", models, **options)
    result, (loss, ratio, rows, ours) = child(with_parts, load_recipe(str(file)), tokens_and_loss)
    assert [ids for ids, _ in rows] == ours
    assert all(labels.count(-100) < len(labels) and labels[0] == -100 for _, labels in rows)
    # TRL's mean is over the tokens of a batch, ours over pairs of nearly one length.
    assert result.after.loss == pytest.approx(loss, rel=0.02)
    assert ratio < 0


def test_weight_of_the_odds_reaches_the_loss(models, child, tmp_path):
    losses = []
    for beta in (0.1, 2.0):
        folder = tmp_path / str(beta)
        folder.mkdir()
        file = tiny.write_task(folder, "orpo", models, training__beta=beta, training__max_steps=5)
        losses.append(child(with_parts, load_recipe(str(file)), len)[0].before.loss)
    assert losses[1] > losses[0]


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning"])
def test_virtual_tokens_are_refused(name, models, child, tmp_path):
    own = {"type": name, "num_virtual_tokens": 2}
    file = tiny.write_task(tmp_path, "orpo", models, method=own, evaluation__enabled=False)
    with pytest.raises(RecipeError, match="cannot tell virtual tokens"):
        child(with_parts, load_recipe(str(file)), len)
