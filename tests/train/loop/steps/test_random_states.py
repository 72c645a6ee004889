from __future__ import annotations

import json
from types import SimpleNamespace

import torch

from afina.train.loop.steps.random_states import drew, random_states, set_random_states

from ... import tiny
from ..test_run import train


def test_numbers_drawn_on_a_device_are_noticed_and_taken_back(monkeypatch):
    device = SimpleNamespace(state=torch.tensor([7]))
    device.get_rng_state = lambda: device.state
    device.set_rng_state = lambda state: setattr(device, "state", state)
    monkeypatch.setattr(torch, "get_device_module", lambda: device)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    before = random_states()
    assert not drew(before)
    device.state = torch.tensor([8])
    assert drew(before)
    set_random_states(before)
    assert not drew(before)
    torch.rand(())
    assert drew(before)
    set_random_states(before)


def losses(folder, key="loss"):
    lines = map(json.loads, (folder / "out" / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[key]) for line in lines if key in line]


def test_how_often_a_run_is_measured_changes_no_step_of_it(tmp_path, model_folder, child):
    found = {}
    for every in (None, 1, 2):
        folder = tmp_path / str(every)
        folder.mkdir()
        child(train, tiny.write_recipe(folder, model_folder, evaluation__every=every, method__lora_dropout=0.3))
        found[every] = losses(folder)
        assert {step for step, _ in losses(folder, "eval_loss")} == {0, 6, *(range(every, 7, every) if every else ())}
    assert len(found[None]) == 6
    assert found[1] == found[2] == found[None]
