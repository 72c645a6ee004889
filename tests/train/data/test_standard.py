from __future__ import annotations

from pathlib import Path

import pytest

from afina.errors import DataError
from afina.train.data.rows import Rows
from afina.train.data.standard import STANDARD, mapping, nearly


def test_only_names_that_differ_in_case_or_blanks_are_near():
    assert nearly(["Text", " label", "prompts", "chosen"]) == {"text": "Text", "label": " label"}
    assert nearly(STANDARD) == {}
    assert nearly(["text", "Text"]) == nearly(["TEXT", "Text"]) == {}


def test_mapping_can_be_read_back_as_yaml():
    import yaml

    near = {"text": "My Text", "label": "label ", "prompt": "PROMPT_1"}
    assert yaml.safe_load(mapping(near).partition("=")[2]) == near


@pytest.mark.parametrize(
    ("column", "fix"),
    [
        ("text", "data.columns={text: Text}"),
        ("texts", "did you mean 'Text'"),
        ("context", "data.columns={context: Text}"),
    ],
)
def test_column_that_is_missing_is_told_with_what_reads_its_like(column, fix):
    with pytest.raises(DataError, match="no column") as caught:
        Rows(Path("x"), [{"Text": "a"}], [1]).value(0, column)
    assert fix in str(caught.value)
