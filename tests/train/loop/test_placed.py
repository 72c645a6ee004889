"""What a run settles on devices that are not here: `Device` is what one would answer."""

from __future__ import annotations

import pytest

from afina.devices.found import Device
from afina.train.loop import begin as module
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from .. import tiny
from ..child import command
from .test_run import train

CPU, H100 = Device("cpu", "a processor"), Device("cuda:0", "NVIDIA H100", 80 * 2**30, 78 * 2**30, True, (9, 0))
T4 = Device("cuda:0", "Tesla T4", 15 * 2**30, 14 * 2**30, False, (7, 5))


class Listener(Reporter):
    def __init__(self):
        self.told = []

    def note(self, text):
        self.told.append(text)

    detail = note


def settled(device, tmp_path, model_folder, monkeypatch, **changes):
    """The recipe of a run on that device, and what was said."""
    monkeypatch.setattr(module, "place", lambda wanted: device)
    monkeypatch.setattr(module, "found", lambda: (device, CPU))
    listener = Listener()
    recipe = load_recipe(str(tiny.write_recipe(tmp_path, model_folder, model__dtype="auto", **changes)))
    return module.prepared(recipe, listener)[0], listener.told


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize(("device", "dtype"), [(H100, "bfloat16"), (T4, "float16")])
def test_a_base_computes_in_what_the_gpu_does(device, dtype, quantize, tmp_path, model_folder, monkeypatch):
    recipe, told = settled(device, tmp_path, model_folder, monkeypatch, model__quantize=quantize)
    assert recipe.model.dtype == dtype
    assert [t for t in told if t.startswith(f"device: cuda:0 ({device.title}, {device.free // 2**30}.0 GiB free")]
    assert [t for t in told if t.startswith(f"dtype: {dtype} for the frozen base, because {device.title}")]


def test_full_fine_tuning_stays_in_float32_on_every_device(tmp_path, model_folder, monkeypatch):
    recipe, _ = settled(T4, tmp_path, model_folder, monkeypatch, method={"type": "full"})
    assert recipe.model.dtype == "float32"


@pytest.mark.parametrize(("device", "changes"), [
    ("cpu", {}),
    *(pytest.param("cuda", c, marks=pytest.mark.gpu)
      for c in ({}, {"training__packing": True}, {"training__offload": "activations"})),
])  # fmt: skip
def test_a_run_on_a_device_helps_and_its_adapter_answers_there(device, changes, tmp_path, model_folder, child):
    more = {"model__dtype": "bfloat16", "model__device": device, "training__max_steps": 20, **changes}
    result, _ = child(train, tiny.write_recipe(tmp_path, model_folder, **more))
    assert result.report["device"].startswith(device)
    assert result.after.loss < 0.9 * result.before.loss
    rows, out = tmp_path / "eval.jsonl", tmp_path / "answers.jsonl"
    code, _, told = child(command, "predict", result.folder, rows, "--device", device, "--out", out)
    assert code == 0, told
    assert len(out.read_text().splitlines()) == 10
