from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree

import pytest

from afina.compare.report import as_csv, as_markdown, cells, heads, notes, size, write

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


def test_row_that_misses_a_seed_says_so():
    made = comparison()
    made["rows"][1] |= {"complete": False, "seeds": [0, 2]}
    assert cells(made["rows"][1], made)[0][0] == "lora (2 of 3 seeds)"


def test_csv_has_a_line_a_method_and_errors_in_theirs():
    lines = list(csv.DictReader(io.StringIO(as_csv(comparison()))))
    assert [line["name"] for line in lines] == [*NAMES, "bitfit", "loha"]
    assert float(lines[1]["quality"]) == pytest.approx(0.92)
    assert float(lines[1]["forgetting"]) == pytest.approx(0.1)
    assert (lines[1]["significantly_worse"], lines[2]["significantly_worse"]) == ("False", "True")
    assert (lines[8]["status"], lines[8]["error"], lines[8]["quality"]) == ("refused", "no layer has a bias <b>", "")


def test_markdown_table_has_as_many_cells_in_every_line():
    made = comparison()
    made["rows"][8]["errors"]["0"] = "a | b"
    lines = [line for line in as_markdown(made).splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(heads(made)) + 1}
    assert len(lines) == 2 + 10


def test_search_is_described_with_the_rows_that_judged_it():
    text = " ".join(notes(comparison(tune={"trials": 4, "train_rows": 256, "held_out_rows": 64})))
    assert "4 trials" in text
    assert "64 training rows held out for it" in text


def test_every_form_is_written_and_the_plot_is_well_formed(tmp_path):
    paths = write(tmp_path, comparison())
    assert [path.name for path in paths] == [
        "comparison.json", "comparison.csv", "comparison.md", "comparison.html", "pareto.svg",
    ]  # fmt: skip
    assert json.loads(paths[0].read_text())["recommended"] == "lora"
    root = ElementTree.fromstring(paths[4].read_text())
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 3 * len(NAMES)


@pytest.mark.parametrize(("count", "text"), [(999, "999 B"), (36_700, "36.7 KB"), (5.4e8, "540 MB"), (2e9, "2 GB")])
def test_sizes_read_well(count, text):
    assert size(count) == text
