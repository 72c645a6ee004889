from __future__ import annotations

import warnings

import pytest
import safetensors.torch
from safetensors.torch import load_file, save_file

from afina.devices.found import Device
from afina.errors import AfinaWarning, RecipeError
from afina.train.base import base_model
from afina.train.base.base_model import base_location, load_tokenizer, settled
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


@pytest.mark.parametrize("kind", ["cpu", "meta"])
def test_weights_are_read_straight_to_their_device(kind, tmp_path, model_folder, monkeypatch):
    """The device without data stands for a GPU: had they been read to the processor first, they would be there."""
    read = []
    real = safetensors.torch.load_file
    monkeypatch.setattr(safetensors.torch, "load_file", lambda *a, **k: read.append(a) or real(*a, **k))
    monkeypatch.setattr(base_model, "place", lambda wanted: Device(kind, "a device"))
    model = loaded(model_folder, tiny.write_recipe(tmp_path, model_folder))
    assert {p.device.type for p in model.parameters()} == {kind}
    assert not hasattr(model, "hf_device_map")  # the Trainer would take it for a model on several devices
    assert read == []


def test_a_model_that_is_to_be_sharded_is_placed_by_who_shards_it(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr(base_model, "place", lambda wanted: Device("meta", "a device"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    model = loaded(model_folder, tiny.write_recipe(tmp_path, model_folder))
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_weights_that_do_not_fit_a_gpu_go_to_the_processor_and_it_is_told(model_folder, monkeypatch):
    size = sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))
    there = (Device("cuda:0", "a GPU", 3 * size, 2 * size), Device("cpu", "a processor"))
    monkeypatch.setattr(base_model, "found", lambda: there)
    told = []

    class Listener(Reporter):
        def note(self, text):
            told.append(text)

    assert settled("auto", str(model_folder), Listener(), copies=2) == "cuda:0"
    assert settled("auto", str(model_folder), Listener(), copies=3) == "cpu"
    assert settled("cuda", str(model_folder), Listener(), copies=3) == "cuda:0"
    assert [t.startswith(f"device: {name}") for t, name in zip(told, ("cuda", "cpu", "cuda"), strict=True)] == [
        True
    ] * 3
    assert "cuda:0 (a GPU" in told[1]
