from __future__ import annotations

import pytest

from afina.compare.table import cells, heads, notes, size

from .made import NAMES, comparison


def test_every_finished_row_has_a_cell_for_every_column():
    made = comparison()
    assert {len(cells(row, made)) for row in made["rows"] if row["status"] == "done"} == {len(heads(made))}


def test_columns_that_nothing_was_measured_for_are_left_out():
    made = comparison()
    for row in made["rows"]:
        row["forgetting"] = row["to_full"] = None
    assert not {"forgetting", "against full"} & {name for name, _ in heads(made)}
    assert {len(cells(row, made)) for row in made["rows"] if row["status"] == "done"} == {len(heads(made))}
    assert any("no language-model head" in note for note in notes(made))


def test_no_significant_difference_is_said_where_it_is_so_and_only_there():
    made = comparison()
    said = {row["name"]: "no significant difference" in cells(row, made)[2][0] for row in made["rows"][:8]}
    assert said == {name: name == "lora" for name in NAMES}
    assert cells(made["rows"][0], made)[2][0] == "the best"


def test_method_that_was_not_trained_is_called_so():
    made = comparison()
    made["rows"][1]["trained"], made["rows"][2]["trained"] = False, None
    assert cells(made["rows"][1], made)[2][0] == "not trained"
    assert cells(made["rows"][2], made)[2][0] != "not trained"
    text = " ".join(notes(made))
    assert "Not trained: in half of its runs" in text
    assert f"Too short to tell whether the training loss fell: {NAMES[2]}." in text


def test_row_that_misses_a_seed_says_so():
    made = comparison()
    made["rows"][1] |= {"complete": False, "seeds": [0, 2]}
    assert cells(made["rows"][1], made)[0][0] == "lora (2 of 3 seeds)"


def test_search_is_described_with_the_rows_that_judged_it():
    text = " ".join(notes(comparison(tune={"trials": 4, "train_rows": 256, "held_out_rows": 64})))
    assert "4 a method around its own" in text
    assert "64 training rows held out for it" in text


@pytest.mark.parametrize(("count", "text"), [(999, "999 B"), (36_700, "36.7 KB"), (5.4e8, "540 MB"), (2e9, "2 GB")])
def test_sizes_read_well(count, text):
    assert size(count) == text
