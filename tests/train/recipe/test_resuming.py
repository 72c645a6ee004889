from __future__ import annotations

import pytest

from afina.errors import RecipeError
from afina.train.recipe.resuming import check_resumable
from afina.train.recipe.sections import Recipe
from afina.train.report.events import Reporter


class Heard(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def recipe(**changes):
    sections = {"model": {"path": "m"}, "data": {"train": "t.jsonl"}, "output": {"dir": "o"}, "training": {}}
    for key, value in changes.items():
        section, _, inner = key.partition("__")
        sections.setdefault(section, {})[inner] = value
    return Recipe.model_validate(sections)


def test_same_recipe_says_nothing():
    heard = Heard()
    check_resumable(recipe(), recipe(output__dir="elsewhere"), heard)
    assert heard.notes == []


def test_what_changes_no_result_may_change_and_is_said():
    heard = Heard()
    check_resumable(recipe(), recipe(training__keep_checkpoints=5, evaluation__batch_size=3), heard)
    assert sorted(heard.notes) == [
        "resumed with another evaluation.batch_size: 3 instead of 16",
        "resumed with another training.keep_checkpoints: 5 instead of 2",
    ]


def test_all_differences_that_change_the_result_are_told_in_a_table():
    heard = Heard()
    now = recipe(training__batch_size=4, training__seed=7, method__r=4, evaluation__every=10)
    with pytest.raises(RecipeError, match="a resumed run has the settings that it began with") as caught:
        check_resumable(recipe(), now, heard)
    (table,) = heard.notes
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["setting", "began", "with", "now"]
    assert sorted(lines[1:]) == [
        ["evaluation.every", "None", "10"], ["method.r", "None", "4"],
        ["training.batch_size", "8", "4"], ["training.seed", "0", "7"],
    ]  # fmt: skip
    assert " and 3 more: " in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4
