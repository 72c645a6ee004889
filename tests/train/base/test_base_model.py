from __future__ import annotations

import pytest

from afina.errors import RecipeError
from afina.train.base.base_model import base_location
from afina.train.recipe.sections import ModelSection
from afina.train.report.events import Reporter


@pytest.mark.parametrize("path", ["embedded:tweets/train.jsonl", "sdist:p/model", "package:p", "nowhere.gguf", "./no"])
def test_what_names_no_model_is_refused_before_anything_is_fetched(path):
    with pytest.raises(RecipeError):
        base_location(ModelSection(path=path), Reporter())


def test_hub_id_is_left_to_transformers():
    assert base_location(ModelSection(path="owner/name"), Reporter()) == "owner/name"
