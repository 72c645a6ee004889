from __future__ import annotations

import json

import pytest

from afina.errors import AfinaError
from afina.train.recipe.settings import load_recipe

from ... import tiny
from .test_preference import with_parts


def tokens_and_loss(parts):
    """TRL's tokens and loss of the held-out rows, ours of the same, and the order that it takes the rows in."""
    from datasets import Dataset
    from trl import KTOTrainer

    trainer, data = parts["trainer"], parts["data"]
    decode = trainer.processing_class.decode
    texts = [{"prompt": decode(item["prompt_ids"]), "completion": decode(item["completion_ids"]),
              "label": item["label"]} for item in data.held_out.items]  # fmt: skip
    # What TRL makes of our tokens as text: the same tokens, and the answers of neighbours that its loss takes.
    theirs = KTOTrainer._prepare_dataset(trainer, Dataset.from_list(texts), trainer.processing_class, trainer.args, "x")
    keys = ("prompt_ids", "completion_ids")
    return {
        "theirs": [[row[k] for k in keys] for row in theirs],
        "ours": [[item[k] for k in keys] for item in data.held_out.items],
        "loss": trainer.evaluate(theirs)["eval_loss"],
        "order": [row["prompt_ids"] for row in trainer.train_dataset],
        "file": [item["prompt_ids"] for item in data.train.items],
        "weights": (trainer.desirable_weight, trainer.undesirable_weight),
        "adapters": list(trainer.model.peft_config),
    }  # fmt: skip


@pytest.mark.parametrize("chat", [True, False])
def test_tokens_and_loss_are_those_of_trl_in_one_batch(chat, models, child, tmp_path):
    options = {"evaluation__batch_size": 10, "training__batch_size": 10, "data__chat_template": chat}
    file = tiny.write_task(tmp_path, "kto", models, **options, training__max_steps=20)
    result, found = child(with_parts, load_recipe(str(file)), tokens_and_loss)
    assert found["theirs"] == found["ours"]
    assert found["loss"] == pytest.approx(result.after.loss, abs=1e-5)
    assert found["adapters"] == ["default"]


def test_rows_are_shuffled_once_and_both_kinds_weigh_the_same(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "kto", models, training__max_steps=1)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    good = [row for row in rows if row["label"]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*good[:4], *rows]))
    _, found = child(with_parts, load_recipe(str(file)), tokens_and_loss)
    assert found["order"] != found["file"]
    assert sorted(found["order"]) == sorted(found["file"])
    assert found["weights"] == (1.0, pytest.approx(16 / 12))


SHAPES = {
    "text": {"prompt": "n1", "completion": "odd", "label": True},
    "messages": {"messages": [{"role": "user", "content": "n1"}, {"role": "assistant", "content": "odd"}], "label": 1},
    "both": {"prompt": [{"role": "user", "content": "n1"}], "completion": "odd", "label": "True"},
}


def test_shapes_of_a_row_are_the_same_row():
    from pathlib import Path

    from afina.train.data.prompts import Prompter
    from afina.train.data.rows import Rows
    from afina.train.recipe.sections import DataSection
    from afina.train.tasks import named

    prompter = Prompter(DataSection(train=""), tiny.tokenizer())
    made = [named("kto").encode(Rows(Path("x"), [row], [1]), prompter, None, 259).items for row in SHAPES.values()]
    assert made[0] == made[1] == made[2]


MISTAKES = {
    "no label": ({"prompt": "a", "completion": "b"}, "no column 'label'"),
    "a grade": ({"prompt": "a", "completion": "b", "label": 3}, "neither good nor bad"),
    "a word": ({"prompt": "a", "completion": "b", "label": "maybe"}, "neither good nor bad"),
    "a question": ({"messages": [{"role": "user", "content": "a"}], "label": True}, "last message is no answer"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_with_their_line(name, models, child, tmp_path):
    row, told = MISTAKES[name]
    file = tiny.write_task(tmp_path, "kto", models)
    with (tmp_path / "rows.jsonl").open("a") as out:
        out.write(json.dumps(row) + "\n")
    with pytest.raises(AfinaError, match=rf"(?s)rows\.jsonl:25.*{told}|{told}.*rows\.jsonl:25"):
        child(with_parts, load_recipe(str(file)), len)


def test_batch_of_one_row_is_refused(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "kto", models, training__batch_size=1)
    with pytest.raises(AfinaError, match="batch size must be > 1"):
        child(with_parts, load_recipe(str(file)), len)


def test_answers_called_bad_are_no_plain_answers(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "kto", models)
    with pytest.raises(AfinaError, match=r"(?s)rows\.jsonl:1: .*called bad.*task=kto"):
        child(with_parts, load_recipe(str(file), [("task", "causal_lm")]), len)


def told_of_one_kind(recipe):
    from afina.train.loop.run import run
    from afina.train.report.events import Reporter

    warned = []

    class Heard(Reporter):
        def warn(self, text):
            warned.append(text)

    return run(recipe, Heard()).after, warned


@pytest.mark.parametrize(("good", "word"), [(True, "good"), (False, "bad")])
def test_held_out_answers_of_one_kind_are_said_to_leave_no_auc(models, child, tmp_path, good, word):
    file = tiny.write_task(tmp_path, "kto", models, training__max_steps=1)
    rows = [json.loads(line) for line in (tmp_path / "held-out.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["label"] is good]
    (tmp_path / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    after, warned = child(told_of_one_kind, load_recipe(str(file)))
    assert after.accuracy is None
    assert [line for line in warned if f"all {len(kept)} held-out answers are {word}" in line and "AUC" in line]
