from __future__ import annotations

import json

import pytest

from afina.errors import AfinaError
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from ... import tiny
from ...child import command
from .test_preference import with_parts


def prompts_of_trl(parts):
    trainer = parts["trainer"]
    theirs = trainer._tokenize_prompts([row["prompt"] for row in trainer.train_dataset])
    return theirs[0] if isinstance(theirs, tuple) else theirs, [
        item["prompt_ids"] for item in parts["data"].train.items
    ]


@pytest.mark.parametrize("chat", [True, False])
def test_prompts_are_the_tokens_that_trl_generates_from(chat, models, child, tmp_path):
    file = tiny.write_task(tmp_path, "grpo", models, data__chat_template=chat, training__max_steps=1)
    _, (theirs, ours) = child(with_parts, load_recipe(str(file)), prompts_of_trl)
    assert [list(map(int, row)) for row in theirs] == ours


def test_epoch_is_counted_in_answers(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "grpo", models, training__max_steps=None, training__batch_size=8)
    result, _ = child(with_parts, load_recipe(str(file)), len)
    assert result.report["training"]["steps"] == 12  # 24 prompts, two a step with four answers each


def used_without_its_function(recipe, folder):
    from afina.train.data.split import rows_of
    from afina.train.loop.run import run
    from afina.train.use.predictions import predict
    from afina.train.use.trained import load_trained

    result = run(recipe, Reporter())
    (folder / "reward.py").write_text("raise RuntimeError('this file was run')\n")
    rows = rows_of(recipe.data.eval, Reporter())
    trained = load_trained(result.folder, Reporter())
    return predict(trained, rows, Reporter(), batch_size=4, max_new_tokens=2).rows, recipe


def test_loading_an_adapter_runs_no_code(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "grpo", models, training__max_steps=1)
    rows, recipe = child(used_without_its_function, load_recipe(str(file)), tmp_path)
    assert len(rows) == 10
    recipe.output.dir = str(tmp_path / "other")
    with pytest.raises(AfinaError, match="this file was run"):  # but a recipe does
        child(with_parts, recipe, len)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rewards": []}, "reward is needed"),
        ({"generations": 3, "rewards": ["json"]}, r"reinforcement\.generations: the answers of a step"),
        ({"rewards": ["json"], "generations": 1}, "greater than or equal to 2"),
        ({"rewards": [{"use": "json", "wait": 1}]}, "unknown key 'wait'"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(changes, told, models, child, tmp_path):
    file = tiny.write_task(tmp_path, "grpo", models, reinforcement=changes, training__max_steps=1)
    with pytest.raises(AfinaError, match=told):
        child(with_parts, load_recipe(str(file)), len)


def test_rows_of_messages_are_asked_up_to_the_answer(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "grpo", models, training__max_steps=1)
    rows = [{"messages": [{"role": "user", "content": f"n{i}"}], "answer": "x"} for i in range(8)]
    for name in ("rows", "held-out"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, (theirs, ours) = child(with_parts, load_recipe(str(file)), prompts_of_trl)
    assert [list(map(int, row)) for row in theirs] == ours
    assert result.after.rows == 8


def test_a_function_that_raises_while_training_ends_in_four_lines(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "grpo", models, training__max_steps=1, evaluation__enabled=False)
    (tmp_path / "reward.py").write_text("def letters(prompts, answers, rows):\n    return [r['gold'] for r in rows]\n")
    code, _, err = child(command, "train", file)
    assert code == 2
    message = err[err.index("error: ") :]
    assert "reward.py:letters: the reward function raises" in message
    assert "KeyError: 'gold' (line 2)" in message
    assert "rows.jsonl:" in message
    assert len(message.strip().splitlines()) <= 4
