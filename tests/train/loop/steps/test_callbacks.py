from __future__ import annotations

import pytest

from afina.errors import NumericError


class Rows:
    """A data set of two rows."""

    items = ({"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]})

    def where(self, index):
        return f"a.jsonl:{10 + index}"


def guarded_step(poison, fp16=False, times=1):
    """What the guard says to one step of a small model."""
    from types import SimpleNamespace

    import torch

    from afina.compat import stand_in

    stand_in()
    from afina.train.loop.steps.callbacks import FiniteGuard

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(1, 2, bias=False)
            self.second = torch.nn.Linear(2, 1, bias=False)

        def forward(self, input_ids, attention_mask, scale):
            hidden = self.first(input_ids.float().sum(1, keepdim=True)) * scale
            return SimpleNamespace(loss=self.second(hidden).sum())

    model = Model()
    guard = FiniteGuard(model)
    guard.on_train_begin(None, None, None, train_dataloader=SimpleNamespace(dataset=Rows()))
    guard.on_step_begin(None, SimpleNamespace(global_step=0), None)
    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    scale = float("inf") if poison == "loss" else 1.0
    model(input_ids=ids, attention_mask=mask, scale=scale).loss.backward()
    if poison == "gradient":
        model.first.weight.grad[1] = float("nan")
    if poison == "nothing":
        model.zero_grad(set_to_none=False)
    for _ in range(times):
        guard.on_pre_optimizer_step(SimpleNamespace(fp16=fp16), None, None)
    return "passed"


def test_finite_step_passes(child):
    assert child(guarded_step, None) == "passed"


def test_a_scaled_loss_may_overflow_as_often_as_its_scale_can_be_halved(child):
    assert child(guarded_step, "gradient", True, 24) == "passed"
    with pytest.raises(NumericError, match="the gradient is not finite"):
        child(guarded_step, "gradient", True, 25)


@pytest.mark.parametrize(
    ("poison", "words"),
    [
        ("loss", r"step 1, rows a.jsonl:10, a.jsonl:11: the loss is not finite(.|\n)*the output of second"),
        ("gradient", r"step 1, rows a.jsonl:10, a.jsonl:11, first.weight: the grad"),
        ("nothing", "step 1: no gradient reaches"),
    ],
)
def test_faulty_step_is_stopped_and_named(child, poison, words):
    with pytest.raises(NumericError, match=words) as caught:
        child(guarded_step, poison)
    assert len(str(caught.value).splitlines()) <= 4


def memory_told_on(device):
    """What progress says of the memory, where only that device is asked."""
    from types import SimpleNamespace

    from afina.compat import stand_in

    stand_in()
    from afina.train.loop.steps import callbacks
    from afina.train.report.events import Reporter

    told = []

    class Listener(Reporter):
        def progress(self, state):
            told.append(state.memory)

    state = SimpleNamespace(num_input_tokens_seen=0, global_step=1, max_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "used_bytes", lambda device: {"cuda:1": 77}[str(device)])
        callbacks.ProgressReport(Listener()).on_step_end(SimpleNamespace(device=device), state, None)
    return told


def test_progress_tells_the_memory_of_the_device_that_trains(child):
    assert child(memory_told_on, "cuda:1") == [77]
