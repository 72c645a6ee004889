"""The trainer runs on the device that was chosen, and scales its loss where float16 needs it."""

from __future__ import annotations

import pytest
import torch

from afina.devices.found import Device
from afina.train.recipe.settings import load_recipe
from afina.train.tasks import arguments as module
from afina.train.tasks.arguments import keep_to, training_arguments

from .. import tiny


def recipe(tmp_path, model_folder, **settings):
    return load_recipe(str(tiny.write_recipe(tmp_path, model_folder, **settings)))


def test_a_processor_is_used_where_it_is_asked_for(tmp_path, model_folder):
    made = training_arguments(recipe(tmp_path, model_folder, model__device="cpu"), tmp_path / "out", 1e-3)
    assert (str(made.device), made.use_cpu, made.fp16, made.dataloader_pin_memory) == ("cpu", True, False, False)


@pytest.mark.parametrize(
    ("dtype", "bf16", "scaled"),
    [("float16", False, True), ("float16", True, False), ("bfloat16", False, False), ("float32", False, False)],
)
def test_float16_on_a_gpu_trains_with_a_scaled_loss(dtype, bf16, scaled, tmp_path, model_folder, monkeypatch):
    given = []

    class Arguments:
        def __init__(self, **settings):
            given.append(settings)
            self.device, self._n_gpu = torch.device("cuda:0"), 2

    monkeypatch.setattr(module, "place", lambda wanted: Device("cuda:1", "a GPU"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: given.append(device))
    made = training_arguments(
        recipe(tmp_path, model_folder, model__dtype=dtype, training__bf16=bf16), tmp_path, 1e-3, Arguments
    )
    assert given[0]["fp16"] is scaled
    assert (given[0]["use_cpu"], given[0]["dataloader_pin_memory"]) == (False, True)
    assert given[1] == torch.device("cuda:1")
    assert made._n_gpu == 1


def test_transformers_arguments_are_kept_to_one_device(tmp_path, model_folder, monkeypatch):
    made = training_arguments(recipe(tmp_path, model_folder), tmp_path / "out", 1e-3)
    made.__dict__["_setup_devices"], made._n_gpu = torch.device("cuda:0"), 4
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    keep_to(made, Device("cuda:2", "a GPU"))
    assert (str(made.device), made.n_gpu) == ("cuda:2", 1)
