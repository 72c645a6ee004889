from __future__ import annotations

import pytest
from pydantic import ValidationError

from afina.errors import RecipeError
from afina.train.recipe.sections import Recipe
from afina.train.recipe.task_types import TASK_TYPES, known_task, of_task_type


def test_type_of_several_tasks_is_the_first_ones():
    assert of_task_type("TOKEN_CLS") == "token_classification"
    assert of_task_type("SEQ_CLS") == "sequence_classification"
    assert of_task_type(None) == of_task_type("CAUSAL_LM") == "causal_lm"


def test_unknown_task_names_the_nearest():
    with pytest.raises(RecipeError, match="token_classification"):
        known_task("token_classifcation")


def test_recipes_take_the_tables_tasks_alone():
    sections = {"model": {"path": "m"}, "data": {"train": "t"}, "output": {"dir": "o"}}
    assert [Recipe.model_validate({**sections, "task": task}).task for task in TASK_TYPES] == list(TASK_TYPES)
    assert Recipe.model_json_schema()["properties"]["task"]["enum"] == list(TASK_TYPES)
    with pytest.raises(ValidationError, match="'causal_lm', 'sequence_classification'"):
        Recipe.model_validate({**sections, "task": "nope"})
