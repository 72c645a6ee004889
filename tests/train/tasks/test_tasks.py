"""Every task by the same questions: it trains, proves itself, resumes, and answers from its files."""

from __future__ import annotations

import json
import shutil
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from afina.core.config import TaskType
from afina.train.recipe.settings import load_recipe, method_config
from afina.train.recipe.task_types import TASK_TYPES, TaskName
from afina.train.report.events import Reporter
from afina.train.tasks import TASKS

from .. import tiny
from ..loop.test_run import Heard

# What tiny models reach in 60 steps; each starts at chance or below. Of a loss, what it must fall below.
REACHED = {
    "causal_lm": ("accuracy", 0.4),
    "sequence_classification": ("accuracy", 0.9),
    "seq2seq": ("accuracy", 0.7),
    "token_classification": ("f1", 0.9),
    "preference": ("accuracy", 0.6),
    "reward": ("accuracy", 0.6),
    "pretraining": ("loss", 3.0),
    "kto": ("accuracy", 0.6),
    "extractive_qa": ("f1", 0.9),
    "grpo": ("accuracy", 0.5),
    "orpo": ("loss", 3.0),  # most of its loss is that of prompts and good answers
    "embeddings": ("accuracy", 0.5),
    "image_text_to_text": ("accuracy", 0.9),
    "image_classification": ("accuracy", 0.9),
    "audio_classification": ("accuracy", 0.9),
    "speech_recognition": ("accuracy", 0.9),
    "text_to_image": ("loss", 0.9),
}


_AS_IMAGES = pytest.mark.whole("what files with labels share is shown by images")
KINDS = [pytest.param(t, marks=_AS_IMAGES) if t == "audio_classification" else t for t in TASKS]


def test_recipes_and_the_registry_name_the_same_tasks():
    assert set(get_args(TaskName)) == set(TASK_TYPES) == set(TASKS)
    assert set(REACHED) == set(TASKS)


def test_every_task_is_of_a_type_that_methods_know():
    assert {task.task_type for task in TASKS.values()} - {None} <= {t.value for t in TaskType}


def train_and_use(recipe):
    """Train, then load what was written and predict the held-out rows."""
    from afina.train.data.split import rows_of
    from afina.train.loop.run import run
    from afina.train.use.predictions import predict
    from afina.train.use.trained import load_trained

    heard = Heard()
    result = run(recipe, heard)
    rows = rows_of(recipe.data.eval, Reporter())
    done = predict(load_trained(result.folder, Reporter()), rows, Reporter(), batch_size=4, max_new_tokens=4)
    return result, heard, done


@pytest.fixture(scope="module", params=KINDS)
def trained(request, models, child, tmp_path_factory):
    """A task, and what came of 60 steps of it."""
    folder = tmp_path_factory.mktemp(request.param)
    file = tiny.write_task(folder, request.param, models, training__max_steps=60, training__save_steps=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        return request.param, *child(train_and_use, load_recipe(str(file)))


def test_task_learns_and_its_report_says_so(trained):
    task, result, heard, _ = trained
    key, least = REACHED[task]
    before, after = result.report["before"], result.report["after"]
    assert after[key] < least < before[key] if key == "loss" else after[key] >= least > before[key]
    assert after["rows"] == 10
    assert f"before: {result.before}" in heard.notes
    card = (result.folder / "README.md").read_text()
    word, value = (key, key) if key == "loss" else (after["metric"], "accuracy")
    assert f"| {word} | {before[value]:.3f} | {after[value]:.3f} |" in card
    assert "TRL" not in card
    assert (result.folder / "loss.png").stat().st_size > 0


def test_task_shows_two_examples_with_a_trained_part(trained):
    shown = trained[2].shown
    assert len(shown) == 2
    assert all(any(s.trained for s in spans) and any(not s.trained for s in spans) for spans in shown)


def test_loaded_adapter_scores_as_the_trained_one_did(trained):
    task, result, _, done = trained
    assert len(done.rows) == 10
    if task in ("preference", "kto", "grpo", "orpo"):  # it writes answers; how good they are was trained, not asked
        assert done.scores is None
        assert all(isinstance(row["prediction"], str) for row in done.rows)
        return
    after = result.report["after"]
    if REACHED[task][0] == "loss":
        assert done.scores.loss == pytest.approx(after["loss"], rel=1e-5)
        return
    assert done.scores.accuracy == pytest.approx(after["accuracy"])
    assert done.scores.word_errors == after["word_errors"]
    assert done.scores.f1 == (pytest.approx(after["f1"]) if after["f1"] is not None else None)


def resumed(recipe):
    """The adapter of a run, and of the same run cut off in the middle and resumed."""
    from afina.train.loop.run import run

    folder = run(recipe, Reporter()).folder
    whole, report = load_file(folder / "adapter_model.safetensors"), json.loads((folder / "report.json").read_text())
    (folder / "report.json").unlink()
    shutil.rmtree(max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])))
    again = run(recipe, Reporter(), resume=True)
    return whole, load_file(folder / "adapter_model.safetensors"), report, again.report


@pytest.mark.sampled(3, "tasks differ in what they learn, above; trainer and checkpoints are the same")
@pytest.mark.parametrize("task", KINDS)
def test_resumed_task_ends_as_the_uninterrupted_one(task, models, child, tmp_path):
    method = {"type": "lora", "r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}
    file = tiny.write_task(tmp_path, task, models, method=method)
    whole, again, report, report_again = child(resumed, load_recipe(str(file)))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[n], again[n]) for n in whole)
    assert report["after"] == report_again["after"]
    assert report["before"] == report_again["before"]


# Embeddings are told from their neighbours in the batch, GRPO and pipelines draw, and documents come in an order by the
# batch.
@pytest.mark.sampled(3, "tasks differ in what they learn, above; trainer and checkpoints are the same")
@pytest.mark.parametrize("task", [t for t in KINDS if t not in ("embeddings", "grpo", "pretraining", "text_to_image")])
def test_accumulated_batches_weigh_as_one(task, models, child, tmp_path):
    losses = {}
    for size, times in ((4, 1), (2, 2)):
        folder = tmp_path / str(size)
        folder.mkdir()
        file = tiny.write_task(folder, task, models, training__max_steps=2, training__batch_size=size,
                               training__gradient_accumulation=times, evaluation__enabled=False)  # fmt: skip
        out = child(train_only, load_recipe(str(file)))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[size] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses[4]) == 2
    # Where the mean is taken over the tokens of a batch, short ones weigh more.
    assert losses[2] == pytest.approx(losses[4], rel=0.1)


def train_only(recipe):
    from afina.train.loop.run import run

    return run(recipe, Reporter()).folder


@pytest.mark.sampled(3, "tasks differ in what they learn, above; trainer and checkpoints are the same")
@pytest.mark.parametrize("task", KINDS)
def test_held_out_loss_while_training_keeps_the_best_checkpoint(task, models, child, tmp_path):
    file = tiny.write_task(tmp_path, task, models, evaluation__every=2, training__max_steps=4)
    result, _, _ = child(train_and_use, load_recipe(str(file)))
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    key = "eval_reward" if task == "grpo" else "eval_loss"
    held = {line["step"]: line[key] for line in lines if key in line}
    assert {2, 4} <= set(held)
    best = max((2, 4), key=held.get) if task == "grpo" else min((2, 4), key=held.get)
    kept = load_file(result.folder / "adapter_model.safetensors")
    of_best = load_file(result.folder / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert all(torch.equal(kept[n], of_best[n]) for n in kept)


@pytest.mark.parametrize("task", ["preference", "reward"])
def test_pairs_train_with_layerwise_decay_and_in_full(task, models, child, tmp_path):
    file = tiny.write_task(tmp_path, task, models, training__layerwise_decay=0.5, training__max_steps=3)
    recipe = load_recipe(str(file), [("method.type", "full"), ("lr", "0.01")])
    result, _, _ = child(train_and_use, recipe)
    assert result.report["parameters"]["share"] == 1
    assert result.after.loss != result.before.loss


@pytest.mark.parametrize("task", KINDS)
def test_methods_are_told_the_tasks_type(task, models, tmp_path):
    recipe = load_recipe(str(tiny.write_task(tmp_path, task, models)))
    assert method_config(recipe).task_type == TASKS[task].task_type
