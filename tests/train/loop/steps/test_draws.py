"""Dropout draws other numbers in each process, and what has to be equal in all stays equal."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from afina.devices.found import processor
from afina.devices.ranks import joined
from afina.train.loop.steps.draws import OwnDraws
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from ... import tiny
from ..test_together import written


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


class Dropped(Reporter):
    """What an adapter's dropout left out of the first numbers of every pass."""

    def __init__(self):
        self.masks = []

    def reached(self, stage, parts):
        if stage == "ready":
            drop = next(m for m in parts["trainer"].model.modules() if isinstance(m, nn.Dropout) and m.p == 0.5)
            drop.register_forward_hook(lambda module, args, out: self.masks.append((out.flatten()[:64] == 0).tolist()))


def dropped(recipe, **how):
    from afina.train.loop.run import run

    reporter = Dropped()
    return run(recipe, reporter, **how).folder, reporter.masks


@pytest.mark.whole
def test_two_processes_with_dropout_drop_out_others_and_go_on_to_the_bit(model_folder, together, tmp_path):
    file = tiny.write_recipe(tmp_path, model_folder, training__max_steps=2, training__save_steps=1,
                             method__lora_dropout=0.5, evaluation__enabled=False)  # fmt: skip
    (out, masks), (_, others) = together(dropped, load_recipe(str(file)))
    assert len(masks) == len(others) == 2
    assert all(any(mask) and not all(mask) and mask != other for mask, other in zip(masks, others, strict=True))
    steps, state = written(out)
    (out / "report.json").unlink()
    shutil.rmtree(out / "checkpoint-2")
    done = together(going_on, load_recipe(str(file)))
    assert [after for _, after in done] == [masks[1:], others[1:]]
    again, resumed = written(out)
    assert [step["loss"] for step in again] == [step["loss"] for step in steps]
    assert all(torch.equal(state[n], resumed[n]) for n in state)


def going_on(recipe):
    return dropped(recipe, resume=True)
