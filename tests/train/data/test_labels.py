from __future__ import annotations

from pathlib import Path

import pytest

from afina.errors import DataError
from afina.train.data.labels import found_labels, is_right, label_of, majority_share
from afina.train.data.rows import Rows


def rows(*values):
    return Rows(Path("d.jsonl"), [{"label": v} for v in values], list(range(1, len(values) + 1)))


def test_whole_numbers_are_positions():
    assert [label_of(rows(0, 1), i, "label", ["no", "yes"]) for i in (0, 1)] == ["no", "yes"]
    assert found_labels(rows(2, 0), "label") == ["0", "1", "2"]


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
