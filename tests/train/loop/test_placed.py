"""What a run settles on devices that are not here: `Device` is what one would answer."""

from __future__ import annotations

import pytest

from afina.devices.found import Device
from afina.train.loop import begin as module
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from .. import tiny

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


@pytest.mark.parametrize(
    ("device", "packing", "asked"), [(H100, False, True), (H100, True, False), (CPU, False, False)]
)
def test_flash_attention_is_tried_on_gpus_for_rows_that_are_not_packed(
    device, packing, asked, tmp_path, model_folder, monkeypatch
):
    recipe, _ = settled(device, tmp_path, model_folder, monkeypatch, training__packing=packing)
    told = Listener()
    monkeypatch.setattr(module, "use_flash", lambda model, device: f"flash attention: tried on {device.name}")
    monkeypatch.setattr(module, "speed_up", lambda model, **options: [])

    class Train:
        items = ({"input_ids": [1, 2]},)

        def __len__(self):
            return 1

    class Rows:
        train = Train()

    module._speed_up(recipe, None, Rows(), 1, told)
    assert told.told[1:] == (["fast path: flash attention: tried on cuda:0"] if asked else [])
