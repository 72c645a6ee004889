from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree

import pytest

from afina.compare.report import as_csv, as_markdown, write
from afina.compare.table import heads

from .made import NAMES, comparison


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


def test_every_form_is_written_and_the_plot_is_well_formed(tmp_path):
    paths = write(tmp_path, comparison())
    assert [path.name for path in paths] == [
        "comparison.json", "comparison.csv", "comparison.md", "comparison.html", "pareto.svg",
    ]  # fmt: skip
    assert json.loads(paths[0].read_text())["recommended"] == "lora"
    root = ElementTree.fromstring(paths[4].read_text())
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 3 * len(NAMES)
