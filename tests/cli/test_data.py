from __future__ import annotations

import json

import pytest

from ..train import tiny
from ..train.child import command


def test_data_shows_what_a_file_holds(tmp_path):
    (tmp_path / "d.csv").write_text("text,label\na b,x\na b,x\nc,y\n")
    code, out, err = command("data", tmp_path / "d.csv")
    assert code == 0, err
    said = out + err
    for words in ("3 rows, form: labelled", "label 'x': 2 (66.7%)", "duplicate rows: 1", "2 words"):
        assert words in said, words


def test_mistakes_end_with_code_2(tmp_path):
    code, _, err = command("data", tmp_path / "none.csv")
    assert code == 2
    assert len(err.strip().splitlines()) <= 4


def test_schema_knows_every_section():
    code, out, _ = command("schema")
    assert code == 0
    schema = json.loads(out)
    assert {"task", "model", "data", "method", "training", "evaluation", "output"} <= schema["properties"].keys()


def test_data_maps_columns_and_says_the_task(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"q": "a", "good": "b", "bad": "c"}\n' * 2)
    words = ["--column", "prompt=q", "--column", "chosen=good", "--column", "rejected=bad"]
    code, out, err = command("data", tmp_path / "d.jsonl", *words)
    assert code == 0, err
    assert "2 rows, form: preference (a chosen and a rejected text), task: preference" in out + err
    code, _, err = command("data", tmp_path / "d.jsonl", "--column", "prompt=question")
    assert code == 2
    assert "no column 'question' to take as 'prompt'" in err
    code, _, err = command("data", tmp_path / "d.jsonl", "--column", "prompt")
    assert code == 2
    assert "NAME=COLUMN" in err


def test_data_names_what_nothing_reads(tmp_path, model_folder, child):
    row = {"messages": [{"role": "user", "content": "a", "mood": "x"}, {"role": "assistant", "content": "b"}], "id": 1}
    (tmp_path / "d.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    code, out, err = child(command, "data", tmp_path / "d.jsonl", "--model", model_folder)
    assert code == 0, err
    said = " ".join((out + err).split())
    assert "note: nothing reads: key 'mood' of messages (3), column 'id' (3)" in said


def test_a_recipe_says_what_its_data_are(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder)
    code, out, err = child(command, "data", recipe)
    assert code == 0, err
    said = out + err
    assert f"{tmp_path}/train.jsonl: 24 rows, 24 can be used, form: labelled (text and label), task: causal_lm" in said
    assert f"{tmp_path}/eval.jsonl: 10 rows, 10 can be used" in said
    assert "[[even<eos>]]" in said
    code, out, err = child(command, "data", recipe, "--task", "reward")
    assert code == 2
    assert "the recipe says this" in err


def test_one_row_is_shown_with_its_masks(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder)
    code, out, err = child(command, "data", recipe, "data.eval=null", "--row", "4", "--show", "masks")
    assert code == 0, err
    lines = [line.strip() for line in (out + err).splitlines()]
    assert any(line.endswith('train.jsonl:4: {"text": "n3", "label": "odd", "task": 0}') for line in lines)
    tokens = [line.split(maxsplit=2) for line in lines if " trained '" in line or " masked  '" in line]
    assert [text for _, part, text in tokens if part == "trained"] == ["'o'", "'d'", "'d'", "'<eos>'"]
    assert "".join(text[1:-1] for _, part, text in tokens if part == "masked") == r"<|user|>n3\n<|assistant|>"
    code, _, err = child(command, "data", recipe, "--row", "40")
    assert code == 2
    assert "expected: 1 to 24" in err
    code, _, err = child(command, "data", recipe, "--show", "all")
    assert code == 2
    assert "text or masks" in err


def test_problems_that_repeat_are_counted(tmp_path, model_folder, child):
    rows = [{"prompt": "a", "completion": "b"}, *[{"prompt": "a"}] * 7]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, out, err = child(command, "data", tmp_path / "d.jsonl", "--model", model_folder)
    assert code == 0, err
    assert "8 rows, 1 can be used" in out + err
    assert f"problem, 7 times: cannot tell prompt from answer; first {tmp_path}/d.jsonl:2" in out + err


@pytest.mark.parametrize("words", [[], ["--model"]])
def test_rows_that_cannot_be_used_at_all_end_with_code_2(tmp_path, model_folder, child, words):
    (tmp_path / "d.jsonl").write_text('{"question": "a"}\n' * 3)
    code, out, err = child(command, "data", tmp_path / "d.jsonl", *words, *([model_folder] if words else []))
    assert code == 2, out + err
    message = err[err.index("error: ") :]
    assert "no row can be used" in message
    assert "cannot tell prompt from answer" in message
    assert len(message.splitlines()) <= 4


def test_findings_are_json_too(tmp_path, model_folder, child):
    code, out, err = child(command, "data", tiny.write_recipe(tmp_path, model_folder), "--json")
    assert code == 0, err
    train, held_out = json.loads(out)
    assert (train["rows"], train["usable"], held_out["rows"]) == (24, 24, 10)
    assert train["labels"] == {"even": 12, "odd": 12}


def mixed(folder, third=None):
    """A recipe's list of an alpaca-style set and one of messages."""
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = {"alpaca": {"instruction": "say", "input": "it", "output": "so"}, "chat": {"messages": talk * 2}}
    rows |= {} if third is None else {"third": third}
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    return [{"path": str(folder / f"{name}.jsonl")} for name in rows]


def test_sets_of_a_list_are_said_to_be_what_each_is(tmp_path, model_folder, child):
    own = {"data__labels": None, "data__prompt": None, "data__completion": None, "data__eval": None}
    recipe = tiny.write_recipe(tmp_path, model_folder, data__train=mixed(tmp_path), **own)
    code, out, err = child(command, "data", recipe)
    assert code == 0, err
    said = " ".join((out + err).split())
    assert "3 can be used, form: alpaca (alpaca form, taken as prompts and completions), task: causal_lm" in said
    assert "3 can be used, form: chat (messages), task: causal_lm" in said
    assert "<|user|>say it <|assistant|>[[so<eos>]]" in said
    recipe = tiny.write_recipe(tmp_path, model_folder, data__train=mixed(tmp_path, {"text": "t", "label": "l"}), **own)
    code, _, err = child(command, "data", recipe)
    assert code == 2
    assert "data sets of different forms" in err


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ({"Text": "a", "Label": "x"}, "differ in case or blanks only: data.columns={text: Text, label: Label}"),
        ({"PROMPT": "a", "completion ": "x"}, "data.columns={prompt: PROMPT, completion: 'completion '}"),
        ({"text": "a", "label": "x"}, "task=sequence_classification learns labels; or data.prompt='{text}'"),
        ({"text": "a", "kind": "x"}, "task=sequence_classification data.label_column=kind learns labels"),
    ],
    ids=str,
)  # fmt: skip
def test_names_that_nearly_fit_are_told_with_the_mapping_that_reads_them(tmp_path, row, fix):
    (tmp_path / "d.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    code, _, err = command("data", tmp_path / "d.jsonl", "--task", "causal_lm")
    assert code == 2
    message = err[err.index("error: ") :]
    assert fix in message
    assert len(message.splitlines()) <= 4


def test_texts_alone_are_said_to_be_for_pretraining(tmp_path):
    (tmp_path / "d.txt").write_text("a b\nc\n")
    code, out, err = command("data", tmp_path / "d.txt")
    assert code == 0, err
    assert "2 rows, form: columns, task: pretraining" in out + err
    assert "note: task=pretraining learns texts alone" in out + err
    code, out, err = command("data", tmp_path / "d.txt", "--task", "causal_lm")
    assert code == 2
    assert "fix: task=pretraining learns texts alone" in err


def test_a_column_that_is_left_out_for_its_case_is_told(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"instruction": "a", "Input": "b", "output": "c"}))
    code, out, err = command("data", tmp_path / "d.jsonl")
    assert code == 0, err
    assert "data.columns={input: Input}" in " ".join((out + err).split())


@pytest.mark.parametrize("task", ["kto", "preference", "text_to_image", "extractive_qa", "seq2seq"])
def test_data_tells_columns_that_some_rows_have_no_value_in(tmp_path, task):
    rows = tiny.task_rows(task, 4)
    column = list(rows[0])[-1]
    del rows[1][column]
    rows[2][column] = None
    path = tmp_path / "gaps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, err = command("data", path, "--task", task)
    told = " ".join((out + err).split())
    assert f"column {column!r}: missing or null in 2 rows, first" in told
    assert told.count("missing or null") == 1
