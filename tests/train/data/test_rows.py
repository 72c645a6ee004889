from __future__ import annotations

import json
from pathlib import Path

import pytest

from afina.errors import DataError
from afina.train.data.rows import Rows, read_rows


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


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_file_that_was_cut_off_is_told_of_in_whole_words(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    path.write_text('{"text": "a"}\n{"te' if kind == "jsonl" else '[{"text": "a"},\n{"te')
    with pytest.raises(DataError) as error:
        read_rows(path)
    assert error.value.what == "not valid JSON (Unterminated string starting at column 2)"
    assert str(error.value.where) == f"{path}:2"


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
    assert "data.columns={text: txt}" in str(caught.value)
    with pytest.raises(DataError, match="did you mean 'txt'"):  # a name that the recipe gave
        rows.text(1, "tx")


@pytest.mark.parametrize("first", ["5,great film", "+1.5,so", "great film,good", f"label,{'so ' * 30}"])
def test_first_line_that_is_hardly_one_of_names_is_spoken_of(tmp_path, first):
    rows = read(tmp_path, "d.csv", f"{first}\n3,good\n4,bad\n")
    assert len(rows) == 2
    assert f"names of its columns ({first[:10]}"[:30] in rows.remarks[0].replace(", ", ",")


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


@pytest.mark.parametrize("columns", [{"text": ["a", "b"], "label": ["x", "y"]},
                                     {"text": {"0": "a"}, "label": {"0": "x"}}])  # fmt: skip
def test_columns_in_place_of_rows_are_told_as_such(tmp_path, columns):
    assert "these are columns: write rows" in refused(tmp_path, "d.json", json.dumps(columns))


def test_a_row_in_place_of_a_list_is_told_what_is_missing(tmp_path):
    assert "put [ ] around the row" in refused(tmp_path, "d.json", json.dumps(TWO[0]))


# -- rows in memory ----------------------------------------------------------------------------------------------------


def held(*values):
    return Rows(Path("d.jsonl"), list(values), [2 * i + 1 for i in range(len(values))])


def test_parts_of_rows_keep_their_lines_and_share_what_was_read():
    rows = held({"n": 0}, {"n": 1}, {"n": 2}, {"n": 3})
    part, picked = rows.take(1, 3), rows.pick([3, 0])
    assert ([r["n"] for r in part.values], part.lines, part.where(0)) == ([1, 2], [3, 5], "d.jsonl:3")
    assert ([r["n"] for r in picked.values], picked.lines) == ([3, 0], [7, 1])
    assert len(rows.take(2, None)) == 2
    assert rows.paths == [Path("d.jsonl")]
    picked.get(0, "n")
    assert rows.unread() == part.unread() == {}


def test_columns_that_nothing_read_are_counted_with_their_rows():
    rows = held({"a": 1, "b": 2}, {"b": 3}, {"c": 4})
    assert rows.unread() == {"a": 1, "b": 2, "c": 1}
    assert rows.get(0, "c") is None
    assert rows.value(1, "b") == 3
    assert rows.unread() == {"a": 1}
    assert repr(rows) == repr(held({"a": 1, "b": 2}, {"b": 3}, {"c": 4}))
    assert rows == held({"a": 1, "b": 2}, {"b": 3}, {"c": 4})  # whatever was read


def test_column_that_is_no_text_is_told_with_its_type():
    rows = held({"a": 1}, {"a": "x" * 70}, {"a": ["y" * 90]})
    assert rows.text(1, "a") == "x" * 70
    with pytest.raises(DataError, match=r"d\.jsonl:1: column 'a' is not text") as caught:
        rows.text(0, "a")
    assert "int 1" in str(caught.value)
    with pytest.raises(DataError) as caught:
        rows.text(2, "a")
    assert "y" * 58 in str(caught.value)
    assert "y" * 59 not in str(caught.value)


def test_digest_is_that_of_the_file_or_of_the_rows(tmp_path):
    import hashlib

    path = tmp_path / "d.jsonl"
    path.write_text(GOOD)
    assert read_rows(path).digest() == hashlib.sha256(GOOD.encode()).hexdigest()
    one, other = held({"a": 1, "b": 2}), held({"b": 2, "a": 1})
    assert one.digest() == other.digest() == hashlib.sha256(b'{"a": 1, "b": 2}').hexdigest()
    assert held({"a": 1}, {"a": Path("x")}).digest() != held({"a": 1}).digest()


def test_kind_of_a_file_is_told_by_its_ending_in_any_case(tmp_path):
    (tmp_path / "d.JSONL").write_text(GOOD)
    (tmp_path / "e.ndjson").write_text(GOOD)
    assert read_rows(tmp_path / "d.JSONL").values == read_rows(tmp_path / "e.ndjson").values
    text = refused(tmp_path, "d.xls", "x")
    assert ".parquet" in text
    assert "got: .xls" in text
    assert "cannot read the Parquet file" in refused(tmp_path, "d.parquet", "x")


def test_lines_of_a_text_file_are_rows_but_for_blank_ones(tmp_path):
    (tmp_path / "d.txt").write_bytes(b"a \r\n\n \nb")
    rows = read_rows(tmp_path / "d.txt")
    assert (rows.values, rows.lines) == ([{"text": "a "}, {"text": "b"}], [1, 4])


def test_folder_is_its_data_files_in_the_order_of_their_names(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "b.jsonl").write_text(GOOD)
    (tmp_path / "a.csv").write_text("text;label\nc;d\n")
    (tmp_path / "notes.md").write_text("no data")
    (tmp_path / "sub.jsonl").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["e", "f"], "label": ["g", "h"]}), tmp_path / "c.PARQUET")
    rows = read_rows(tmp_path)
    assert [row["text"] for row in rows.values] == ["c", "a", "e", "f"]
    assert rows.lines == [2, 1, 1, 2]
    assert rows.path == tmp_path
    assert len(rows.remarks) == 1
    assert read_rows(tmp_path / "a.csv").remarks == rows.remarks
    assert read_rows(tmp_path / "b.jsonl").remarks == ()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no data files"):
        read_rows(tmp_path / "empty")
