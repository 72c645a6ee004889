from __future__ import annotations

from pathlib import Path

import pytest

from afina.errors import DataError
from afina.train.data.labels import (
    checked_labels,
    found_labels,
    found_tags,
    is_right,
    label_of,
    majority_share,
    tags_of,
    task_numbers,
    words_of,
)  # fmt: skip
from afina.train.data.rows import Rows


def rows(*values):
    return Rows(Path("d.jsonl"), [{"label": v} for v in values], list(range(1, len(values) + 1)))


def test_whole_numbers_are_positions():
    assert [label_of(rows(0, 1), i, "label", ["no", "yes"]) for i in (0, 1)] == ["no", "yes"]
    assert found_labels(rows(2, 0), "label") == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("values", "told"),
    [((True, False), "a label is text or a whole number"), ((0.5, 1.0), "a label is text or a whole number"),
     ((1, "1"), "labels of different types"), ((1, 1.0), "labels of different types")],
)  # fmt: skip
def test_labels_of_another_type_are_not_called_different_ones(values, told):
    with pytest.raises(DataError, match=f": {told}"):
        found_labels(rows(*values), "label")


def test_text_labels_are_sorted():
    assert found_labels(rows("b", "a", "b"), "label") == ["a", "b"]


@pytest.mark.parametrize("value", [2, -1, "maybe", "Yes", None, 1.0, True, ["no"]])
def test_label_out_of_range_is_told_with_its_line(value):
    with pytest.raises(DataError, match=r"^d\.jsonl:2: .*label"):
        label_of(rows("no", value), 1, "label", ["no", "yes"])


@pytest.mark.parametrize("values", [("a", "a"), (0, 0), ("a", 1), (0, -1), (0, None)])
def test_unusable_sets_of_labels_are_refused(values):
    with pytest.raises(DataError):
        found_labels(rows(*values), "label")


def test_majority_share():
    assert majority_share(["a", "b", "a", "a"]) == 0.75


@pytest.mark.parametrize("answer", ["positive", "Positive", " POSITIVE.", "positive.\n"])
def test_case_and_a_full_stop_do_not_count(answer):
    assert is_right(answer, "positive", ["negative", "positive"])


@pytest.mark.parametrize("answer", ["", "negative", "positive!", "positive, I think", "The tweet is positive", "pos"])
def test_anything_else_is_wrong(answer):
    assert not is_right(answer, "positive", ["negative", "positive"])


def test_case_counts_where_labels_differ_by_it():
    assert is_right("A", "A", ["A", "a"])
    assert not is_right("a", "A", ["A", "a"])


@pytest.mark.parametrize("value", ["", " ", "nan", "NaN", "null"])
def test_no_label_is_no_class(value):
    with pytest.raises(DataError, match=r"^d\.jsonl:2: a row has no label"):
        found_labels(rows("a", value, "b"), "label")


def test_a_label_called_nan_can_be_named():
    assert label_of(rows("nan"), 0, "label", ["nan", "x"]) == "nan"


def test_labels_that_differ_in_blanks_only_are_refused():
    with pytest.raises(DataError, match="differ in blanks only"):
        found_labels(rows("a", "b", " a"), "label")


def test_number_that_is_a_labels_text_is_that_label():
    assert label_of(rows(7), 0, "label", ["5", "7"]) == "7"


def test_unknown_label_is_told_with_those_there_are_and_the_nearest():
    labels = [f"label{i}" for i in range(9)]
    with pytest.raises(DataError, match="did you mean 'label3'") as caught:
        label_of(rows("label3x"), 0, "label", labels)
    assert "label7, ..." in str(caught.value)
    assert "label8" not in str(caught.value)
    with pytest.raises(DataError) as caught:
        label_of(rows("zzz"), 0, "label", labels[:8])
    assert "label7" in str(caught.value)
    assert "..." not in str(caught.value)
    with pytest.raises(DataError, match="0 to 8"):
        label_of(rows(9), 0, "label", labels)


def test_labels_of_every_part_are_checked():
    labels = ["a", "b"]
    assert checked_labels([rows("a"), rows("b")], "label", labels) is labels
    with pytest.raises(DataError, match=r"d\.jsonl:2"):
        checked_labels([rows("a"), rows("b", "c")], "label", labels)


def test_fault_in_labels_is_told_with_its_row():
    with pytest.raises(DataError, match=r"d\.jsonl:2: .*range"):
        found_labels(rows(0, -1), "label")
    with pytest.raises(DataError, match=r"d\.jsonl:2: .*types"):
        found_labels(rows("a", 1), "label")
    with pytest.raises(DataError, match="differ") as caught:
        found_labels(rows("a", "b", " a"), "label")
    assert "d.jsonl:3" in str(caught.value)
    assert "expected: 'a'" in str(caught.value)
    with pytest.raises(DataError, match="no label") as caught:
        found_labels(rows("a", " "), "label")
    assert "data.labels" not in str(caught.value)
    with pytest.raises(DataError, match=r"data\.labels"):
        found_labels(rows("a", "<NA>"), "label")


def tagged(*values):
    return Rows(Path("d.jsonl"), list(values), list(range(1, len(values) + 1)))


def test_tags_are_found_and_read_word_by_word():
    given = tagged({"tokens": ["x", "y"], "tags": ["O", "B-A"]}, {"tokens": ["z"], "tags": ["O"]})
    assert found_tags(given, "tags") == ["B-A", "O"]
    assert words_of(given, 0) == ["x", "y"]
    assert tags_of(given, 0, "tags", ["B-A", "O"]) == ["O", "B-A"]
    assert tags_of(tagged({"tokens": ["x", "y"], "tags": [1, 0]}), 0, "tags", ["B-A", "O"]) == ["O", "B-A"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"tokens": ["x"], "tags": ["O", "O"]}, "2 tags"), ({"tokens": ["x"], "tags": ["N"]}, "range"),
        ({"tokens": ["x"], "tags": []}, "no list, or empty"), ({"tokens": ["x"], "tags": "O"}, "no list"),
        ({"tokens": ["x", 3], "tags": ["O", "O"]}, "int 3"), ({"tokens": "x", "tags": ["O"]}, "'tokens' is no list"),
    ],
)  # fmt: skip
def test_tags_that_do_not_fit_the_words_are_refused(row, told):
    with pytest.raises(DataError, match=told) as caught:
        tags_of(tagged(row), 0, "tags", ["O", "B-A"])
    assert "d.jsonl:1" in str(caught.value)


def test_tasks_are_numbered_from_zero_on():
    assert task_numbers(rows(0, 3), "label") == [0, 3]
    assert task_numbers(rows(0, 3), None) is None
    for bad in (-1, True, "1", 1.0, None):
        with pytest.raises(DataError, match=r"d\.jsonl:2: a task"):
            task_numbers(rows(0, bad), "label")
