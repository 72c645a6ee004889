from __future__ import annotations

import json

import pytest

from afina.errors import DataError
from afina.train.data.formats import recognise
from afina.train.data.rows import Rows, read_rows
from afina.train.recipe.sections import DataSection
from afina.train.report.events import Reporter
from afina.train.use.examine import examine

from .. import tiny


def rows(tmp_path, *values):
    return Rows(tmp_path / "d.jsonl", list(values), list(range(1, len(values) + 1)))


@pytest.mark.parametrize(("row", "shape", "adds"), [
    ({"instruction": "Add", "input": "1 2", "output": "3"}, "alpaca", {"prompt": "Add\n\n1 2", "completion": "3"}),
    ({"instruction": "Hi", "output": "Ho"}, "alpaca", {"prompt": "Hi", "completion": "Ho"}),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "sharegpt",
     {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
    ({"messages": []}, "chat", {}), ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", {}),
    ({"prompt": "a", "completion": "b"}, "prompt_completion", {}), ({"text": "a", "label": "b"}, "labelled", {}),
    ({"question": "a"}, "columns", {}), ({"tokens": ["a"], "tags": ["O"]}, "tagged", {}),
    ({"question": "a", "context": "b"}, "asked", {}), ({"anchor": "a", "positive": "b"}, "near", {}),
    ({"prompt": "a", "completion": "b", "label": True}, "judged", {}),
    ({"prompt": "a", "completion": "b", "label": False, "id": 1}, "judged", {}),
    ({"prompt": "a", "completion": "b", "label": "x"}, "prompt_completion", {}),
    ({"instruction": "a", "input": " ", "output": "b"}, "alpaca", {"prompt": "a", "completion": "b"}),
    ({"instruction": "a", "input": None, "output": "b"}, "alpaca", {"prompt": "a", "completion": "b"}),
    ({"instruction": "a", "chosen": "b", "rejected": "c"}, "preference", {"prompt": "a"}),
    ({"messages": [], "conversations": 3}, "sharegpt", {}),
    ({"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}, "rejected": "c"},
     "preference", {"messages": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistant", "content": "b"}]}),
])  # fmt: skip
def test_shape_is_recognised_by_columns(tmp_path, row, shape, adds):
    found, name = recognise(rows(tmp_path, row))
    assert name == shape
    assert found.values[0] == {**row, **adds}


@pytest.mark.parametrize("second", [{"instruction": "a"}, {"instruction": "a", "output": 3},
                                    {"instruction": "a", "output": "b", "input": 4}])  # fmt: skip
def test_row_of_another_shape_is_told_with_its_line(tmp_path, second):
    with pytest.raises(DataError, match=r"d\.jsonl:2"):
        recognise(rows(tmp_path, {"instruction": "a", "output": "b"}, second))
    with pytest.raises(DataError, match="unknown role"):
        recognise(rows(tmp_path, {"conversations": [{"from": "alien", "value": "a"}]}))


def test_parquet_tsv_text_and_folders_are_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    values = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "a.parquet")
    (tmp_path / "b.tsv").write_text("text\tlabel\na\tx\nb\ty\n")
    (tmp_path / "c.txt").write_text("one\n\ntwo\r\n")
    assert read_rows(tmp_path / "a.parquet").values == read_rows(tmp_path / "b.tsv").values == values
    text = read_rows(tmp_path / "c.txt")
    assert (text.values, text.lines) == ([{"text": "one"}, {"text": "two"}], [1, 3])
    assert len(read_rows(tmp_path)) == 6
    (tmp_path / "a.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match="cannot read the Parquet file"):
        read_rows(tmp_path / "a.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data files"):
        read_rows(tmp_path / "empty")


def test_examination_goes_by_the_task_that_the_columns_speak_for(tmp_path):
    def found(row, **options):
        return examine(rows(tmp_path, row, row), DataSection(train="d"), tiny.tokenizer(), **options)

    tagged = found({"tokens": ["a", "b"], "tags": ["O", "B-X"]})
    assert (tagged.task, tagged.labels, tagged.problems) == ("token_classification", {"O": 2, "B-X": 2}, {})
    pairs = found({"prompt": "a", "chosen": "b", "rejected": "c"})
    assert (pairs.task, pairs.problems) == ("preference", {})
    assert [s.trained for s in pairs.examples[0]] == [False, True, False, True]
    assert found({"chosen": "b", "rejected": "c"}, task="reward").problems == {}
    assert found({"prompt": "a", "completion": "c"}, task="seq2seq").task == "seq2seq"
    bad = found({"prompt": "a", "chosen": "b", "rejected": "b"})
    (times,) = bad.problems.values()
    assert len(times) == 2
    assert "d.jsonl:2" in times[1]
    assert (bad.usable, pairs.usable) == (0, 2)


def test_examination_counts_measures_and_finds_problems(tmp_path):
    values = [{"prompt": "a b c", "completion": "d", "label": "x"}] * 3 + [
        {"prompt": "", "completion": "e", "label": "y"}
    ]
    values.append({"prompt": "f", "label": "x"})
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(v) + "\n" for v in values))
    found = examine(read_rows(tmp_path / "d.jsonl"), DataSection(train="d"), tiny.tokenizer(chat=False))
    assert (found.rows, found.shape, found.duplicates) == (5, "prompt_completion", 2)
    assert found.columns["completion"] == (4, "str")
    assert found.lengths["prompt"] == (3, 3, 3)
    assert found.labels == {"x": 4, "y": 1}
    assert len(found.empty) == 1
    assert "d.jsonl:4" in found.empty[0]
    (times,) = found.problems.values()
    assert len(times) == 1
    assert "d.jsonl:5" in times[0]
    assert found.usable == 4
    assert found.lengths["tokens of an example"][2] == 7
    assert [s.trained for s in found.examples[0]] == [False, True]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "a", "output": "b"}, "alpaca form, taken as prompts and completions"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "ShareGPT form, taken as messages"),
        ({"prompt": "a", "completion": "b"}, "prompt and completion"),
        ({"tokens": ["a"], "tags": ["O"]}, "tokens and tags"),
        ({"question": "a", "answer": "b"}, "columns question, answer"),
    ],
)
def test_form_of_a_file_is_said(tmp_path, row, words):
    from afina.train.data.split import rows_of

    class Heard(Reporter):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    heard, file = Heard(), tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    rows_of(str(file), heard)
    assert heard.notes == [f"{file}: 1 rows of {words}"]
