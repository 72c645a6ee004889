from __future__ import annotations

import json

import pytest

from afina.errors import DataError
from afina.train.data.rows import read_rows


def refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        read_rows(path)
    text = str(caught.value)
    assert len(text.splitlines()) <= 4
    assert name in text
    return text


GOOD = '{"text": "a", "label": "x"}\n'


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (GOOD * 2 + '{"text": "b"', 3),
        (GOOD + "\n" + "{'text': 1}\n", 3),
        (GOOD + '["a"]\n', 2),
        (GOOD + "{}\n", 2),
        (GOOD + '{"text": "a", "text": "b"}\n', 2),
        (GOOD + "3\n", 2),
        (GOOD + "\x00\n", 2),
        (GOOD + "[" * 100_000 + "\n", 2),
    ],
)
def test_faulty_jsonl_line_is_told_with_its_number(tmp_path, content, line):
    assert f"d.jsonl:{line}" in refused(tmp_path, "d.jsonl", content)


def test_latin1_is_told_with_line_and_offset(tmp_path):
    text = refused(tmp_path, "d.jsonl", GOOD.encode() + '{"text": "é"}\n'.encode("latin-1"))
    assert "d.jsonl:2" in text
    assert "0xe9" in text


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_empty_file_is_refused(tmp_path, content):
    assert "no rows" in refused(tmp_path, "d.jsonl", content)


@pytest.mark.parametrize("content", ["{}", "[1]", "[{}]", "[", '{"a": 1}\n{"a": 2}', ""])
def test_faulty_json_is_refused(tmp_path, content):
    refused(tmp_path, "d.json", content)


def test_faulty_csv_is_told_with_its_line(tmp_path):
    assert "d.csv:3" in refused(tmp_path, "d.csv", "text,label\na,b\nc\n")
    assert "twice" in refused(tmp_path, "e.csv", "text,text\na,b\n")
    assert "no rows" in refused(tmp_path, "f.csv", "text,label\n")


def test_unknown_kind_of_file_is_refused(tmp_path):
    assert ".jsonl" in refused(tmp_path, "d.xls", "x")


def test_three_formats_give_the_same_rows(tmp_path):
    rows = [{"text": 'a, "b"\n c', "label": "x"}, {"text": "é", "label": "y"}]
    (tmp_path / "d.jsonl").write_text("\ufeff" + "\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    (tmp_path / "d.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "d.csv").write_text('text,label\n"a, ""b""\n c",x\né,y\n', encoding="utf-8")
    for name in ("d.jsonl", "d.json", "d.csv"):
        assert read_rows(tmp_path / name).values == rows


def test_missing_column_names_the_columns_and_the_nearest(tmp_path):
    (tmp_path / "d.jsonl").write_text(GOOD + '{"txt": "a", "label": "x"}\n')
    rows = read_rows(tmp_path / "d.jsonl")
    with pytest.raises(DataError, match=r"d\.jsonl:2: no column 'text'") as caught:
        rows.text(1, "text")
    assert "did you mean 'txt'" in str(caught.value)


def test_column_of_another_type_is_refused(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(DataError, match=r"d\.jsonl:1: column 'text' is not text"):
        read_rows(tmp_path / "d.jsonl").text(0, "text")


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(path)


TWO = [{"text": "a", "label": "x"}, {"text": "b, c", "label": "y"}]


@pytest.mark.parametrize(
    ("content", "remark"),
    [
        ("text;label\na;x\nb, c;y\n", "separated by ';'"),
        ("text; label\na; x\nb, c; y\n", "separated by ';', blanks before cells left out"),
        ('text, label\n"a", "x"\n"b, c", "y"\n', "blanks before cells left out"),
        ('text ,label\na,x\n"b, c",y\n', "blanks around column names left out"),
        ("text\tlabel\na\tx\nb, c\ty\n", "separated by '\\t'"),
        ("text|label\na|x\nb, c|y\n", "separated by '|'"),
    ],
)
def test_other_separators_and_blanks_are_read_and_said(tmp_path, content, remark):
    rows = read(tmp_path, "d.csv", content)
    assert rows.values == TWO
    assert rows.remarks == (remark,)


def test_plain_csv_is_nothing_to_speak_of(tmp_path):
    rows = read(tmp_path, "d.csv", "text;more,label\na; b,x\n")
    assert rows.values == [{"text;more": "a; b", "label": "x"}]
    assert rows.remarks == ()


def test_fields_may_be_longer_than_the_csv_module_likes(tmp_path):
    import csv

    usual = csv.field_size_limit()
    assert len(read(tmp_path, "d.csv", f"text\n{'a' * 300_000}\n").values[0]["text"]) == 300_000
    assert csv.field_size_limit() == usual


@pytest.mark.parametrize("kind", ["utf-16", "utf-32"])
def test_wide_characters_are_read(tmp_path, kind):
    assert read(tmp_path, "d.csv", "text,label\né,x\n".encode(kind)).values == [{"text": "é", "label": "x"}]


def test_wide_characters_without_their_mark_get_a_hint(tmp_path):
    assert "utf-16le" in refused(tmp_path, "d.csv", "text,label\na,x\n".encode("utf-16-le"))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_in_jsonl_is_read_and_said(tmp_path, indent):
    rows = read(tmp_path, "d.jsonl", json.dumps(TWO, indent=indent))
    assert rows.values == TWO
    assert "one JSON list" in rows.remarks[0]


def test_rows_over_several_lines_are_read_with_the_line_that_each_begins_on(tmp_path):
    rows = read(tmp_path, "d.jsonl", "\n".join(json.dumps(row, indent=1) for row in TWO) + "\n")
    assert (rows.values, rows.lines) == (TWO, [1, 5])
    assert rows.remarks == ("rows of several lines each",)


def test_rows_below_another_key_are_named(tmp_path):
    assert "save the list under 'data' by itself" in refused(tmp_path, "d.json", json.dumps({"data": TWO}))
