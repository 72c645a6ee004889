from __future__ import annotations

import math

import pytest

from afina.errors import AfinaError
from afina.train.recipe.settings import load_recipe

from ... import tiny
from ...loop.test_run import Heard


def with_parts(recipe, look):
    """What `look(parts)` finds once training is done."""
    from afina.train.loop.run import run

    found = {}

    class Looking(Heard):
        def reached(self, stage, parts):
            if stage == "trained":
                found["it"] = look(parts)

    result = run(recipe, Looking())
    return result, found["it"]


KEYS = ("prompt_ids", "chosen_ids", "rejected_ids")


def tokens_and_loss(parts):
    """TRL's tokens of the held-out pairs as text, ours, TRL's loss of ours, and the adapters."""
    from datasets import Dataset
    from trl import DPOTrainer

    from afina.train.tasks.alignment.reference import as_dataset

    trainer, held_out = parts["trainer"], parts["data"].held_out
    decode = trainer.processing_class.decode
    texts = [{"prompt": decode(item["prompt_ids"]), "chosen": decode(item["chosen_ids"]),
              "rejected": decode(item["rejected_ids"])} for item in held_out.items]  # fmt: skip
    theirs = DPOTrainer._prepare_dataset(trainer, Dataset.from_list(texts), trainer.processing_class, trainer.args, "x")
    measured = trainer.evaluate(as_dataset(held_out, KEYS))
    return {
        "theirs": [[row[k] for k in KEYS] for row in theirs],
        "ours": [[item[k] for k in KEYS] for item in held_out.items],
        "loss": measured["eval_loss"], "accuracy": measured["eval_rewards/accuracies"],
        "adapters": list(trainer.model.peft_config),
    }  # fmt: skip


@pytest.mark.parametrize("chat", [True, False])
def test_tokens_and_scores_are_those_of_trl(chat, models, child, tmp_path):
    options = {"evaluation__batch_size": 10, "data__chat_template": chat, "training__max_steps": 20}
    file = tiny.write_task(tmp_path, "preference", models, **options)
    result, found = child(with_parts, load_recipe(str(file)), tokens_and_loss)
    assert found["theirs"] == found["ours"]
    assert found["loss"] == pytest.approx(result.after.loss, abs=1e-5)
    assert found["accuracy"] == pytest.approx(result.after.accuracy)


def test_reference_is_the_base_and_not_a_copy_of_the_adapter(models, child, tmp_path):
    method = {"type": "prompt_tuning", "num_virtual_tokens": 4}
    file = tiny.write_task(tmp_path, "preference", models, method=method, training__max_steps=1,
                           training__learning_rate=1e-9, evaluation__batch_size=10)  # fmt: skip
    result, found = child(with_parts, load_recipe(str(file)), tokens_and_loss)
    assert found["adapters"] == ["default"]
    # Random virtual tokens move the policy away from the base before any training.
    assert abs(result.after.loss - math.log(2)) > 1e-3
    assert found["loss"] == pytest.approx(result.after.loss, abs=1e-5)


def test_before_training_a_model_is_its_own_reference(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "preference", models, training__max_steps=1)
    result, _ = child(with_parts, load_recipe(str(file)), len)
    assert (result.before.loss, result.before.accuracy) == (pytest.approx(math.log(2)), 0.5)


def test_beta_reaches_the_loss(models, child, tmp_path):
    losses = []
    for beta in (0.1, 0.5):
        folder = tmp_path / str(beta)
        folder.mkdir()
        file = tiny.write_task(folder, "preference", models, training__beta=beta, training__max_steps=5)
        losses.append(child(with_parts, load_recipe(str(file)), len)[0].after.loss)
    assert losses[0] != losses[1]


MISTAKES = {
    "no rejected": ({"prompt": "a", "chosen": "b"}, "rejected"),
    "no prompt": ({"chosen": "b", "rejected": "c"}, "no prompt"),
    "same answers": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen answer is the rejected one"),
    "malformed": ({"prompt": "a", "chosen": [{"role": "user"}], "rejected": "b"}, "malformed message"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_with_their_line(name, models, child, tmp_path):
    import json

    row, told = MISTAKES[name]
    file = tiny.write_task(tmp_path, "preference", models)
    with (tmp_path / "rows.jsonl").open("a") as out:
        out.write(json.dumps(row) + "\n")
    with pytest.raises(AfinaError, match=rf"(?s)rows\.jsonl:25.*{told}|{told}.*rows\.jsonl:25"):
        child(with_parts, load_recipe(str(file)), len)


def test_adapter_on_the_head_is_refused_where_trl_reads_its_weight(models, child, tmp_path):
    method = {"type": "lora", "target_modules": ["lm_head"]}
    file = tiny.write_task(tmp_path, "preference", models, method=method)
    with pytest.raises(AfinaError, match="lm_head"):
        child(with_parts, load_recipe(str(file)), len)


def test_method_whose_adapter_trl_cannot_copy_is_told(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "preference", models, method={"type": "shadow"})
    with pytest.raises(AfinaError, match="cannot copy this method"):
        child(with_parts, load_recipe(str(file)), len)
