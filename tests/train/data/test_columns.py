from __future__ import annotations

import json

import pytest

from afina.errors import DataError, RecipeError
from afina.train.data.columns import check_columns, renamed
from afina.train.data.split import rows_of
from afina.train.recipe.sections import DataSection
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from .. import tiny
from ..loop.test_run import train
from .test_encode import rows


def test_columns_are_renamed_before_the_format_is_recognised(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"question": "q", "context": "c", "answer": "a", "id": 1}) + "\n")
    columns = {"instruction": "question", "input": "context", "output": "answer"}
    (row,) = rows_of(str(tmp_path / "d.jsonl"), Reporter(), columns).values
    assert row == {"instruction": "q", "input": "c", "output": "a", "id": 1, "prompt": "q\n\nc", "completion": "a"}


def test_names_may_be_exchanged_and_replaced():
    given = rows({"prompt": "a", "completion": "p", "label": "old", "gold": "new"})
    columns = {"prompt": "completion", "completion": "prompt", "label": "gold"}
    assert renamed(given, columns).values == [{"prompt": "p", "completion": "a", "label": "new"}]


def test_rows_that_have_the_names_already_stay():
    given = rows({"prompt": "p", "completion": "c"})
    assert renamed(given, {"prompt": "question"}).values == given.values


def test_rows_without_renamed_columns_are_the_same():
    given = rows({"prompt": "p"})
    assert renamed(given, None) is renamed(given, {}) is given
    moved = renamed(given, {"text": "prompt"})
    assert (moved.values, moved.lines, moved.path) == ([{"text": "p"}], given.lines, given.path)
    moved.get(0, "text")
    assert "text" in given.read


def test_missing_column_is_told_with_its_line_and_the_nearest():
    with pytest.raises(DataError, match=r"(?s)d\.jsonl:2.*'question'.*did you mean 'questions'"):
        renamed(rows({"question": "a"}, {"questions": "a"}), {"prompt": "question"})
    assert renamed(rows({"x": "a"}), {"prompt": "question"}, whole=False).values == [{"x": "a"}]


def test_names_that_nothing_reads_are_refused_and_those_of_templates_are_not():
    with pytest.raises(RecipeError, match="did you mean 'prompt'"):
        check_columns(DataSection(train="d", columns={"promt": "question"}))
    check_columns(DataSection(train="d"))
    check_columns(DataSection(train="d", columns={"a": "b", "c": "d"}, text_column="a", completion="{c}"))
    check_columns(DataSection(train="d", columns={"topic": "a", "task": "b"}, prompt="{topic}", task_column="task"))


def test_recipe_with_columns_trains_and_predicts_on_the_files_own_names(tmp_path, model_folder, child):
    from ..child import command

    for name in ("train", "eval"):
        path = tmp_path / f"{name}.csv"
        path.write_text("question,answer\n" + "".join(f"n{i},{'odd' if i % 2 else 'even'}\n" for i in range(8)))
    options = {"data": {"train": str(tmp_path / "train.csv"), "eval": str(tmp_path / "eval.csv"), "max_length": 64,
                        "columns": {"prompt": "question", "completion": "answer"}}}  # fmt: skip
    file = tiny.write_recipe(tmp_path, model_folder, training__max_steps=2, **options)
    result, heard = child(train, file)
    assert heard.shown[0][0].text == "<|user|>n0\n<|assistant|>"
    assert load_recipe(str(result.folder)).data.columns == {"prompt": "question", "completion": "answer"}
    (tmp_path / "ask.csv").write_text("question\nn5\n")
    code, _, err = child(command, "predict", result.folder, tmp_path / "ask.csv", "--max-new-tokens", "2")
    assert code == 0, err
    (row,) = map(json.loads, (tmp_path / "ask.predictions.jsonl").read_text().splitlines())
    assert sorted(row) == ["prediction", "question"]


def test_number_behind_the_path_draws_rows_by_the_seed_and_says_so(tmp_path):
    from ..loop.test_run import Heard

    path, heard = tiny.write_rows(tmp_path / "d.jsonl", 100), Heard()

    def drawn(seed):
        return [row["text"] for row in rows_of(f"{path}#10", heard, seed=seed).values]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1) != [f"n{i}" for i in range(10)]
    assert drawn(1) == sorted(drawn(1), key=lambda text: int(text[1:]))
    assert len(set(drawn(1))) == 10
    assert heard.notes[0] == f"{path}: 10 of 100 rows, drawn with seed 1"
    assert len(rows_of(f"{path}#500", heard)) == 100
    assert heard.notes[-2] == f"{path}: 500 rows wanted, all 100 taken"
    with pytest.raises(DataError, match="at least one"):
        rows_of(f"{path}#0", heard)


def test_drawn_rows_keep_their_lines(tmp_path):
    path = tiny.write_rows(tmp_path / "d.jsonl", 50)
    found = rows_of(f"{path}#5", Reporter(), seed=3)
    assert [found.where(i) for i in range(5)] == [f"{path}:{int(r['text'][1:]) + 1}" for r in found.values]


def test_templates_take_column_names_with_blanks():
    from afina.train.data.prompts import columns_of

    assert columns_of("{Lexical Category}: {text}", "data.prompt") == ["Lexical Category", "text"]
    for template in ("{}", "{0}", "{a.b}", "{a[0]}"):
        with pytest.raises(RecipeError, match=r"names columns as \{column\}"):
            columns_of(template, "data.prompt")
