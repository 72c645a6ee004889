from __future__ import annotations

import json

import pytest

from afina.errors import AfinaError
from afina.train.data.rows import Rows
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from .. import tiny


def used(recipe, rows, text):
    from pathlib import Path

    from afina.train.loop.run import run
    from afina.train.use.predictions import predict
    from afina.train.use.trained import load_trained

    result = run(recipe, Reporter())
    trained = load_trained(result.folder, Reporter())
    done = predict(trained, Rows(Path("x"), rows, list(range(len(rows)))), Reporter(), batch_size=2)
    return result, done, trained.task.told(trained, text, 4)


def test_answers_are_spans_and_questions_without_one_get_none(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "extractive_qa", models, training__max_steps=120)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    nothing = [{"question": "which?", "context": f"?? is n{i}", "answers": {"text": []}} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + nothing))
    asked = [{"question": "which?", "context": c} for c in ("odd is n3", "?? is n3")]
    _, done, told = child(used, load_recipe(str(file)), asked, "which? even is n4")
    assert [row["prediction"] for row in done.rows] == ["odd", ""]
    assert [row["prediction_start"] for row in done.rows] == [0, None]
    assert done.scores is None
    assert told == "even"


def test_text_without_a_passage_is_refused(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "extractive_qa", models, training__max_steps=1)
    with pytest.raises(AfinaError, match="followed by the text"):
        child(used, load_recipe(str(file)), [{"question": "q?", "context": "c"}], "which?")


def losses(recipe):
    from afina.train.loop.run import run

    found = {}

    class Looking(Reporter):
        def reached(self, stage, parts):
            if stage == "trained":
                from afina.train.tasks import named
                from afina.train.tasks.base import AFTER, Job

                job = Job(parts["recipe"], parts["trainer"], parts["data"], parts["prompter"], self, AFTER)
                found["items"] = named("extractive_qa").items(job)

    return run(recipe, Looking()).report["after"], found["items"]


def test_losses_of_windows_and_answers_of_questions_agree_with_the_report(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "extractive_qa", models, data__max_length=14, evaluation__batch_size=7)
    after, (each, right) = child(losses, load_recipe(str(file)))
    assert len(each) == len(right) == 10
    assert sum(right) / 10 == pytest.approx(after["f1"])
    assert sum(each) / 10 == pytest.approx(after["loss"], rel=0.2)  # of rows here, of windows there
