from __future__ import annotations

import warnings

import pytest
from safetensors.torch import load_file, save_file

from afina.errors import AfinaWarning, RecipeError
from afina.train.base.base_model import base_location, load_tokenizer
from afina.train.recipe.sections import ModelSection
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter
from afina.train.tasks import named

from .. import tiny


@pytest.mark.parametrize("path", ["embedded:tweets/train.jsonl", "sdist:p/model", "package:p", "nowhere.gguf", "./no"])
def test_what_names_no_model_is_refused_before_anything_is_fetched(path):
    with pytest.raises(RecipeError):
        base_location(ModelSection(path=path), Reporter())


def test_hub_id_is_left_to_transformers():
    assert base_location(ModelSection(path="owner/name"), Reporter()) == "owner/name"


def loaded(folder, recipe):
    recipe = load_recipe(str(recipe))
    task, tokenizer = named(recipe.task), load_tokenizer(str(folder), recipe.model, Reporter())
    return task.load(recipe.model, str(folder), None, tokenizer)


def test_weights_that_the_files_lack_are_told(tmp_path):
    folder = tiny.write_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    lost = [name for name in tensors if ".mlp." in name]
    save_file({n: t for n, t in tensors.items() if n not in lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.warns(AfinaWarning, match=rf"random now: {sorted(lost)[0]}, .* and {len(lost) - 3} more"):
        loaded(folder, tiny.write_recipe(tmp_path, folder))


@pytest.mark.parametrize("task", ["causal_lm", "sequence_classification"])
def test_a_fresh_head_is_nothing_to_warn_of(task, tmp_path, model_folder):
    recipe = tiny.write_recipe(tmp_path, model_folder, task=task)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AfinaWarning)
        loaded(model_folder, recipe)
