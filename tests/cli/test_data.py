from __future__ import annotations

import json

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
    assert "2 rows, form: preference, task: preference" in out + err
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
