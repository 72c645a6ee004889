"""The recipes that come with afina, and those that it writes for every method: each one runs on a tiny model."""

from __future__ import annotations

import json

import pytest

from afina.core.config import methods
from afina.errors import AfinaError
from afina.train.recipe.ready import embedded_for, ready_recipe
from afina.train.recipe.sections import MethodSection
from afina.train.recipe.settings import embedded_recipes, load_recipe, method_config
from afina.train.tasks import TASKS, named

from .. import tiny
from ..loop.test_adapt import OPTIONS

COLUMNS = {"translate": {"text": "english", "label": "french"}, "french": {"text": "french"},
           "translations": {"anchor": "english", "positive": "french"},
           "shapes": {"prompt": "question", "completion": "answer", "image": "image"},
           "tweets-grpo": {"prompt": "text", "answer": "label"}}  # fmt: skip


def rows_for(name, folder):
    """Rows with the columns that an embedded recipe's own data have."""
    recipe = load_recipe(name)
    rows = tiny.task_rows(recipe.task, 12)
    if name in COLUMNS:
        new = COLUMNS[name]
        rows = [{new[key]: value for key, value in row.items()} for row in rows]
    for row in rows:
        if recipe.data.labels and row.get("label"):
            row["label"] = dict(zip(("odd", "even"), recipe.data.labels, strict=False))[row["label"]]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def on_a_tiny_model(name, models, folder):
    """Overrides that let an embedded recipe run in seconds."""
    recipe = load_recipe(name)
    loader, targets = named(recipe.task).loader, recipe.method.fields.get("target_modules", [])
    family = "t5" if "Seq2Seq" in loader else "llama" if "Causal" in loader or "q_proj" in targets else "encoder"
    family = "idefics3" if "Image" in loader else family
    family = "mobilenet_v2" if loader.endswith("ImageClassification") else family
    family = "whisper" if named(recipe.task).medium == "sounds" else family
    family = "sd" if recipe.task == "text_to_image" else family
    rows = rows_for(name, folder)
    given = {"model.path": str(models[family]), "data.train": rows, "data.eval": rows, "max_steps": "3",
             "batch_size": "2", "evaluation.batch_size": "4", "output.dir": str(folder / "out"),
             "data.max_length": "200"}  # fmt: skip
    task = named(recipe.task)
    given |= {"evaluation.max_new_tokens": "3"} if task.writes and not task.judges else {}
    if family == "whisper":
        given |= {"model.audio_seconds": "2"} | ({"language": "cy"} if recipe.task == "speech_recognition" else {})
    if family == "sd":
        given |= {"samples": "[a wall]", "sample_every": "2", "sample_steps": "2", "class_count": "2"}
    if recipe.task == "grpo":
        given |= {"batch_size": "4", "generations": "4", "reinforcement.answer_tokens": "4", "rewards": "[json]"}
    return list(given.items())


@pytest.mark.sampled(2, "each task learns in tests/train/tasks")
@pytest.mark.parametrize("name", embedded_recipes())
def test_embedded_recipe_runs(name, models, child, tmp_path):
    result = child(run_named, name, on_a_tiny_model(name, models, tmp_path))
    assert result.report["training"]["steps"] == 3
    assert result.after != result.before or result.report["task"] == "grpo"  # no answer of a tiny model is JSON


def run_named(name, overrides):
    from afina.train.loop.run import run

    from ..loop.test_run import Heard

    return run(load_recipe(name, overrides), Heard())


def test_every_task_has_an_embedded_recipe():
    assert {load_recipe(name).task for name in embedded_recipes()} == set(TASKS)
    assert {load_recipe(embedded_for(task)).task for task in TASKS} == set(TASKS)


@pytest.mark.parametrize("name", methods())
def test_ready_recipe_of_every_method_is_read_back_with_the_methods_own_settings(name, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(ready_recipe(name))
    recipe = load_recipe(str(file))
    assert recipe.training.learning_rate is None
    assert recipe.method.type == name.lower()
    config = method_config(recipe, total_steps=1000)
    needed = {key: recipe.method.fields[key] for key in REQUIRED.get(name, ())}
    recipe.method = MethodSection(type=name.lower(), **needed)
    assert config.to_dict() == method_config(recipe, total_steps=1000).to_dict()


LACKING = ("BITFIT", "XLORA")
"""Methods for which the tiny model lacks biases, or adapters to choose from."""
REQUIRED = {
    "ADAPTION_PROMPT": ("adapter_len", "adapter_layers"), "CPT": ("cpt_token_ids",), "POLY": ("n_tasks",),
    "MULTITASK_PROMPT_TUNING": ("num_tasks",), "TRAINABLE_TOKENS": ("token_indices",), "XLORA": ("adapters",),
}  # fmt: skip


@pytest.mark.sampled(3, "what is written for every method is read back")
@pytest.mark.parametrize("task", TASKS)
def test_ready_recipe_of_every_task_runs(task, models, child, tmp_path):
    text = ready_recipe("lora", [("task", task)])
    assert f"lora on the task {task}" in text
    file = tmp_path / "r.yaml"
    file.write_text(text)
    result = child(run_named, str(file), on_a_tiny_model(embedded_for(task), models, tmp_path))
    assert result.report["training"]["steps"] == 3


# Those that are not here are trained by name in test_adapt; a recipe written out must not change what a method does.
@pytest.mark.product("training by name", strength=1)
@pytest.mark.parametrize("name", [n for n in methods() if n not in LACKING])
def test_ready_recipe_of_every_method_runs(name, models, child, tmp_path):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 12)
    file = tmp_path / "r.yaml"
    file.write_text(ready_recipe(name))
    options = [(f"method.{key}", json.dumps(value)) for key, value in OPTIONS.get(name, {}).items()]
    given = {"model.path": str(models["llama"]), "data.train": str(rows), "data.eval": str(rows), "max_steps": "3",
             "batch_size": "2", "labels": "[even, odd]", "output.dir": str(tmp_path / "out")}  # fmt: skip
    result = child(run_named, str(file), [*given.items(), *options])
    assert result.report["training"]["steps"] == 3
    assert result.after.loss != result.before.loss


def test_ready_recipe_takes_settings_and_refuses_what_it_cannot_know(tmp_path):
    text = ready_recipe("LoRA", [("r", "2"), ("task", "reward"), ("lr", "0.5")])
    file = tmp_path / "r.yaml"
    file.write_text(text)
    recipe = load_recipe(str(file))
    assert (recipe.task, recipe.method.fields["r"], recipe.training.learning_rate) == ("reward", 2, 0.5)
    for method, overrides in (("lorra", []), ("lora", [("task", "rewards")]), ("lora", [("rr", "3")])):
        with pytest.raises(AfinaError):
            ready_recipe(method, overrides)
