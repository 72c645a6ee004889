"""Dropout draws other numbers in each process, and what has to be equal in all stays equal."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from afina.devices.found import processor
from afina.devices.ranks import joined
from afina.train.loop.steps.draws import OwnDraws
from afina.train.recipe.settings import load_recipe

from ... import tiny
from ..test_together import ran, ran_on, written


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x, fail=False):
        if fail:
            raise ValueError("asked for")
        return checkpoint(self.drop, x, use_reentrant=False) if x.requires_grad else self.drop(x)


def drawn():
    """Two passes of training, the state after each, a pass that fails, and the state after measuring."""
    with joined(processor()):
        torch.manual_seed(0)
        model = Dropping()
        OwnDraws(model, torch.device("cpu"))
        out, states = [], []
        for _ in range(2):
            out.append(model(torch.ones(64)))
            states.append(torch.get_rng_state())
        with pytest.raises(ValueError, match="asked for"):
            model(torch.ones(64), fail=True)
        states.append(torch.get_rng_state())
        model.eval()(torch.ones(64))
        states.append(torch.get_rng_state())
        x = torch.ones(64, requires_grad=True)
        again = model.train()(x)
        again.sum().backward()
        return out, states, torch.equal(again, x.grad)


def test_each_process_drops_out_others_and_all_have_one_state_between_passes(together):
    (first, states, right), (second, others, right_too) = together(drawn)
    assert right
    assert right_too
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(*first)
    assert all(torch.equal(a, b) for a, b in zip(states, others, strict=True))
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[2], states[3])


def test_two_processes_with_dropout_go_on_to_the_bit(model_folder, together, tmp_path):
    found = {}
    for name, rate in (("whole", 0.5), ("cut", 0.5), ("dry", 0.0)):
        folder = tmp_path / name
        folder.mkdir()
        file = tiny.write_recipe(folder, model_folder, training__max_steps=2, training__save_steps=1,
                                 method__lora_dropout=rate, evaluation__enabled=False)  # fmt: skip
        recipe = load_recipe(str(file))
        done = together(ran, recipe)
        assert not [d for d in done if isinstance(d, Exception)], done
        out = done[0][0]
        if name == "cut":
            (out / "report.json").unlink()
            (out / "adapter_model.safetensors").unlink()
            shutil.rmtree(out / "checkpoint-2")
            together(ran_on, recipe)
        found[name] = written(out)[0], load_file(out / "adapter_model.safetensors")
    (steps, state), (again, resumed), (dry, _) = found.values()
    assert all(torch.equal(state[n], resumed[n]) for n in state)
    assert [step["loss"] for step in again] == [step["loss"] for step in steps] != [step["loss"] for step in dry]
