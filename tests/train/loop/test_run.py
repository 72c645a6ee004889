from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from afina import LoraConfig
from afina.errors import NumericError, RecipeError
from afina.train.base.rates import own_rate
from afina.train.recipe.settings import load_recipe
from afina.train.report.checkpoints import is_complete, newest_complete
from afina.train.report.events import Reporter

from .. import tiny


class Heard(Reporter):
    def __init__(self):
        self.notes, self.warnings, self.shown, self.stages, self.reached_stages, self.details = [], [], [], [], [], []

    def note(self, text):
        self.notes.append(text)

    def detail(self, text):
        self.details.append(text)

    def warn(self, text):
        self.warnings.append(text)

    def examples(self, examples):
        self.shown += examples

    def progress(self, state):
        self.stages.append((state.stage, state.done, state.total))

    def reached(self, stage, parts):
        self.reached_stages.append((stage, sum(p.requires_grad for p in parts["model"].parameters()), sorted(parts)))


def train(recipe, **flags):
    from afina.train.loop.run import run

    heard = Heard()
    result = run(load_recipe(str(recipe)), heard, **flags)
    return result, heard


def train_with(recipe, flags):
    return train(recipe, **flags)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folder, child):
    """A finished run, and what it said."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        result, heard = child(train, tiny.write_recipe(folder, model_folder, training__max_steps=80))
    return result, heard


def tree(folder: Path):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_run_leaves_everything_in_its_folder(finished):
    folder = finished[0].folder
    for name in (
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "recipe.yaml", "metrics.jsonl",
        "loss.png", "report.json", "README.md", "checkpoint-80/adapter_model.safetensors",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".") or p.name == "before.json"]


def test_run_proves_that_it_helps(finished):
    report = json.loads((finished[0].folder / "report.json").read_text())
    assert report["after"]["loss"] < 0.5 * report["before"]["loss"]
    assert report["before"]["accuracy"] == 0
    assert report["after"]["accuracy"] >= 0.3
    assert report["after"]["low"] < report["after"]["accuracy"] < report["after"]["high"] + 1e-9
    assert report["after"]["majority"] == 0.5
    widths = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]  # q k v o gate up down
    assert report["parameters"]["trainable"] == 2 * 8 * sum(a + b for a, b in widths)  # layers * r * (in + out)


def test_trained_run_has_the_fall_of_its_loss_in_the_report(finished):
    found = json.loads((finished[0].folder / "report.json").read_text())["training"]["descent"]
    assert (found["verdict"], found["window"], found["rate_to_try"]) == ("fell", 20, None)
    assert found["first"] - found["last"] > found["noise"]
    assert not [text for text in finished[1].warnings if "not trained" in text]


def test_run_whose_rate_does_nothing_says_so_with_a_rate_to_try(tmp_path, model_folder, child):
    changes = {"training__max_steps": 12, "training__learning_rate": 1e-9}
    result, heard = child(train, tiny.write_recipe(tmp_path, model_folder, **changes))
    (said,) = [text for text in heard.warnings if "not trained" in text]
    assert said.endswith(f"try training.learning_rate={own_rate(LoraConfig, 32, 12):g}")
    assert result.report["training"]["descent"]["verdict"] == "flat"


def test_run_warns_of_batches_too_large_for_lora_before_it_trains(tmp_path, model_folder, child):
    changes = {"training__max_steps": 1, "training__batch_size": 40}
    _, heard = child(train, tiny.write_recipe(tmp_path, model_folder, **changes))
    assert [text for text in heard.warnings if text.startswith("batches of 40 sequences")]


def test_run_shows_two_examples_with_the_masked_part_marked(finished):
    first, second = finished[1].shown
    assert [(s.text, s.trained) for s in first] == [("<|user|>n0\n<|assistant|>", False), ("even<eos>", True)]
    assert second[-1].text == "odd<eos>"


def test_run_reports_progress_to_the_end(finished):
    assert ("training", 80, 80) in finished[1].stages
    assert ("answering (after)", 10, 10) in finished[1].stages


def test_run_shows_its_living_parts_at_every_stage(finished):
    stages = finished[1].reached_stages
    assert [stage for stage, _, _ in stages] == ["base", "ready", "trained"]
    assert stages[0][2] == ["model"]
    assert stages[1][2] == stages[2][2] == ["data", "model", "prompter", "recipe", "trainer"]
    assert stages[0][1] == 20  # the base as it was loaded, every parameter of it trainable
    assert stages[1][1] == stages[2][1] == 28  # LoRA's A and B of 14 layers


def test_metrics_have_one_line_a_step(finished):
    lines = [json.loads(line) for line in (finished[0].folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 81))


def test_checkpoints_are_kept_and_complete(finished):
    found = sorted(finished[0].folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    assert [p.name for p in found] == ["checkpoint-75", "checkpoint-78", "checkpoint-80"]
    assert all(is_complete(p) for p in found)


def test_saved_recipe_runs_again_to_the_same_bits(finished, tmp_path, child):
    again = tmp_path / "again.yaml"
    again.write_text(
        (finished[0].folder / "recipe.yaml").read_text().replace(str(finished[0].folder), str(tmp_path / "o"))
    )
    result, _ = child(train, again)
    assert same_tensors(result.folder, finished[0].folder)


def test_measuring_changes_no_bit_of_the_training(finished, tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, training__max_steps=80, evaluation={"enabled": False})
    result, _ = child(train, recipe)
    assert same_tensors(result.folder, finished[0].folder)


def test_resumed_run_ends_as_the_uninterrupted_one(finished, tmp_path, child):
    folder = tmp_path / "out"
    shutil.copytree(finished[0].folder, folder)
    shutil.rmtree(folder / "checkpoint-80")
    (folder / "report.json").unlink()  # as if it had been cut off after step 78
    recipe = tmp_path / "r.yaml"
    recipe.write_text((folder / "recipe.yaml").read_text().replace(str(finished[0].folder), str(folder)))
    result, heard = child(train_with, recipe, {"resume": True})
    assert "resuming from checkpoint-78" in heard.notes
    assert same_tensors(result.folder, finished[0].folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 81))


def test_torn_newest_checkpoint_falls_back_to_the_one_before(finished, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(finished[0].folder, folder)
    for name in ("optimizer.pt", "complete.json"):
        assert newest_complete(folder).name == "checkpoint-80"
        torn = folder / "checkpoint-80" / name
        whole = torn.read_bytes()
        torn.write_bytes(whole[: len(whole) // 2])
        assert newest_complete(folder).name == "checkpoint-78"
        torn.write_bytes(whole)


def test_resume_with_other_settings_is_refused(finished, tmp_path, child):
    folder = tmp_path / "out"
    shutil.copytree(finished[0].folder, folder)
    (folder / "report.json").unlink()
    recipe = tmp_path / "r.yaml"
    text = (folder / "recipe.yaml").read_text().replace(str(finished[0].folder), str(folder))
    recipe.write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.02"))
    before = tree(folder)
    with pytest.raises(RecipeError, match=r"training\.learning_rate"):
        child(train_with, recipe, {"resume": True})
    assert tree(folder) == before


def same_tensors(one: Path, other: Path) -> bool:
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(bool((a[name] == b[name]).all()) for name in a)


@pytest.mark.parametrize("flags", [{}, {"resume": True}])
def test_finished_run_is_never_touched_without_overwrite(finished, tmp_path, flags, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, output__dir=str(finished[0].folder))
    before = tree(finished[0].folder)
    with pytest.raises(RecipeError, match=r"output\.dir"):
        child(train_with, recipe, flags)
    assert tree(finished[0].folder) == before


def test_failed_overwrite_keeps_the_former_run(finished, tmp_path, model_folder, child):
    folder = tmp_path / "out"
    shutil.copytree(finished[0].folder, folder)
    before = tree(folder)
    recipe = tiny.write_recipe(tmp_path, model_folder, training__learning_rate=1e30, training__max_grad_norm=0.0)
    with pytest.raises(NumericError, match="not finite"):
        child(train_with, recipe, {"overwrite": True})
    assert tree(folder) == before


def test_finished_overwrite_replaces_the_former_run(finished, tmp_path, model_folder, child):
    folder = tmp_path / "out"
    shutil.copytree(finished[0].folder, folder)
    child(train_with, tiny.write_recipe(tmp_path, model_folder), {"overwrite": True})
    assert json.loads((folder / "report.json").read_text())["training"]["steps"] == 6
    assert not (folder / "checkpoint-80").exists()
    assert sorted(p.name for p in tmp_path.iterdir() if "out" in p.name) == ["out"]


def test_folder_that_is_no_run_is_never_replaced(tmp_path, model_folder, child):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match="not a run of afina"):
        child(train_with, tiny.write_recipe(tmp_path, model_folder), {"overwrite": True})
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_run_that_fails_at_once_leaves_nothing(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, method={"type": "lora", "target_modules": ["no_such"]})
    with pytest.raises(ValueError, match="no_such"):
        child(train, recipe)
    assert not (tmp_path / "out").exists()


def train_poisoned(recipe, step):
    """Training whose third batch makes the loss not finite, and the weights as they are then."""
    from afina.train.loop.steps import callbacks

    seen = {}
    plain = callbacks.FiniteGuard.on_step_begin

    def poison(self, args, state, control, **kw):
        plain(self, args, state, control, **kw)
        weights = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if state.global_step + 1 == step:
            seen["at"] = state.global_step
            seen["weights"] = {n: p.detach().clone() for n, p in weights.items()}
            next(self.model.parameters()).data[:] = float("nan")
            seen["live"] = weights

    callbacks.FiniteGuard.on_step_begin = poison
    try:
        train(recipe)
    except NumericError as error:
        same = all(bool((seen["live"][n] == w).all()) for n, w in seen["weights"].items() if "lora" in n)
        return str(error), same
    finally:
        callbacks.FiniteGuard.on_step_begin = plain
    return "no error", False


def test_loss_that_is_not_finite_stops_before_the_update_and_names_the_step(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, training__save_steps=2)
    text, same = child(train_poisoned, recipe, 5)
    first = re.match(r"step 5, rows ((?:\S+train.jsonl:\d+(?:, )?){4}): the loss is not finite", text)
    assert first
    assert len(set(first[1].split(", "))) == 4
    assert "the parameter base_model.model.model.embed_tokens.weight" in text
    assert len(text.splitlines()) <= 4
    assert same
    assert newest_complete(tmp_path / "out").name == "checkpoint-4"
    assert not (tmp_path / "out" / "report.json").exists()


def test_classifier_learns_and_saves_its_head(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, task="sequence_classification", training__max_steps=30)
    result, heard = child(train, recipe)
    assert result.after.loss < result.before.loss
    assert any("score" in name for name in load_file(result.folder / "adapter_model.safetensors"))
    assert heard.shown[0][-1].text == " -> even"


def test_held_out_rows_are_set_aside_where_none_are_given(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, data__eval=None, data__eval_split=0.25, training__max_steps=1)
    result, heard = child(train, recipe)
    assert result.after.rows == 6
    assert any(note.startswith("training rows: 18 ") for note in heard.notes)


def test_shared_rows_are_told(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, data__eval=str(tmp_path / "train.jsonl"), training__max_steps=1)
    _, heard = child(train, recipe)
    assert heard.warnings == ["24 of 24 held-out rows are also in the training rows: the proof is weaker"]


def test_default_learning_rate_is_the_methods_own(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, training__learning_rate=None, training__max_steps=1)
    result, _ = child(train, recipe)
    assert load_recipe(str(result.folder)).training.learning_rate == own_rate(LoraConfig, 32, 1)


def test_recomputed_activations_give_the_same_adapter(tmp_path, model_folder, child):
    folders = []
    for switch in (False, True):
        (tmp_path / str(switch)).mkdir()
        recipe = tiny.write_recipe(tmp_path / str(switch), model_folder, training__gradient_checkpointing=switch)
        folders.append(child(train, recipe)[0].folder)
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-6)


def test_base_in_bfloat16_keeps_its_adapter_in_float32(tmp_path, model_folder, child):
    result, _ = child(train, tiny.write_recipe(tmp_path, model_folder, model__dtype="bfloat16"))
    assert {t.dtype for t in load_file(result.folder / "adapter_model.safetensors").values()} == {torch.float32}


def test_dtype_auto_is_measured_said_and_kept_on_resume(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(
        tmp_path, model_folder, training__max_steps=4, training__save_steps=2, model__dtype="auto"
    )
    result, heard = child(train, recipe)
    said = [n for n in heard.notes if n.startswith("dtype: ")]
    assert len(said) == 1
    assert "times as fast as in float32 here" in said[0]
    chosen = load_recipe(str(result.folder)).model.dtype
    assert chosen in ("float32", "bfloat16")
    assert f"dtype: {chosen} for the frozen base" in said[0]


def test_outputs_of_frozen_layers_are_kept_on_request_to_the_same_result(tmp_path, model_folder, child):
    found = {}
    for cached in (False, True):
        folder = tmp_path / str(cached)
        folder.mkdir()
        own = {"type": "lora", "r": 4, "target_modules": "all-linear", "layers_to_transform": [1]}
        recipe = tiny.write_recipe(folder, model_folder, method=own, training__cache_frozen=cached,
                                   training__max_steps=18)  # fmt: skip
        found[cached] = child(train, recipe)
    # 24 rows make 6 batches, so that the second and third epoch find all of theirs.
    assert "outputs of 1 frozen layers kept: 12 of 18 batches" in found[True][1].notes
    a, b = (load_file(found[c][0].folder / "adapter_model.safetensors") for c in (False, True))
    assert all(torch.allclose(a[n], b[n], atol=1e-4) for n in a)


def test_fast_paths_say_what_is_on(finished):
    said = [line for line in finished[1].details if line.startswith("fast path: ")]
    assert "fast path: loss without logits: supervised positions only, in chunks" in said
    (line,) = [n for n in finished[1].notes if n.startswith("fast paths: ")]
    on, off = map(int, re.findall(r"\d+", line))
    assert on + off == len(said)
    assert off == sum(": off, because" in s or "torch's own" in s or "one by one" in s for s in said)


def test_without_fast_paths_the_result_is_the_same(tmp_path, model_folder, child, finished):
    recipe = tiny.write_recipe(tmp_path, model_folder, training__max_steps=80, training__fast=False)
    plain, heard = child(train, recipe)
    assert not [n for n in heard.notes if n.startswith("fast path")]
    assert not heard.details
    fast = [json.loads(line) for line in (finished[0].folder / "metrics.jsonl").read_text().splitlines()]
    slow = [json.loads(line) for line in (plain.folder / "metrics.jsonl").read_text().splitlines()]
    pairs = [(a["loss"], b["loss"]) for a, b in zip(fast, slow, strict=True) if "loss" in a][:40]
    assert len(pairs) == 40
    # Float32 rounding grows from step to step.
    assert all(abs(a - b) < 1e-3 * max(1, b) for a, b in pairs)
