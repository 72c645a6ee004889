"""Steps whose layers run again in the backward pass are recorded where nothing is drawn, and are the steps."""

from __future__ import annotations

import pytest
import torch

from afina.errors import AfinaWarning
from afina.kernels.cuda.replay import SEEN
from afina.kernels.speed import speed_up

from .test_replay import DEVICES, Again, assert_same, batch, llama, replayed, trained


class Strict(Again):
    """Refuses, while it records, what a recording on a GPU refuses: a look at random numbers."""

    def recorded(self, run):
        def refuses(*args, **kwargs):
            raise RuntimeError("Cannot call CUDAGeneratorImpl::current_seed during CUDA graph capture")

        def forbidden():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "get_rng_state", refuses)
                patch.setattr(torch, "set_rng_state", refuses)
                run()

        return super().recorded(forbidden)


def runs_again(model, **how):
    base = model.get_base_model()
    base.activation_checkpointing_enable({"use_reentrant": False, **how.pop("options", {})}, **how)
    base.enable_input_require_grads()
    return model


@pytest.mark.parametrize(("accumulated", "padded", "every"), [(1, 0, 1), (3, 3, 1), (1, 3, 2)])
@pytest.mark.parametrize("device", DEVICES)
def test_a_run_of_recorded_steps_is_the_run(device, accumulated, padded, every):
    batches = [batch(n, device, padded=padded) for n in range(5)]
    plain = runs_again(llama(device), every_n_layers=every)
    speed_up(plain, keep_logits=False)
    model, replays = replayed(device, machine=Strict() if device == "cpu" else None)
    found = trained(runs_again(model, every_n_layers=every), batches, accumulated, 0.5)
    assert replays.off == ""
    assert replays.machine.records >= 2
    assert replays.machine.repeats >= 2 * accumulated
    assert_same(found, trained(plain, batches, accumulated, 0.5), 1e-4)


def test_layers_run_again_in_the_recording_as_they_do_without_it():
    model, replays = replayed(machine=Strict())
    layers, counts = [], []
    for layer in runs_again(model).get_base_model().model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: layers.append(1))
    for n in range(SEEN + 1):
        layers.clear()
        model(**batch(n)).loss.backward()
        counts.append(len(layers))
    assert replays.machine.repeats
    assert counts[0] == counts[-1] == 4  # two layers, forward and again


def test_switched_on_and_off_it_is_another_step():
    (model, replays), plain = replayed(machine=Strict()), llama()
    gradients = []
    for again in (False, True, False):
        for one in (model, plain):
            runs_again(one) if again else one.get_base_model().activation_checkpointing_disable()
        before = replays.machine.repeats
        for n in range(SEEN + 1):
            loss = model(**batch(n)).loss
            found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
            loss = plain(**batch(n)).loss
            expected = torch.autograd.grad(loss, [p for p in plain.parameters() if p.requires_grad])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
        assert replays.machine.repeats > before
        gradients.append(len(replays.steps))
    assert gradients == [1, 2, 2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dropout", "options", "why"), [
    (0.2, {}, "draw random numbers"), (0.0, {"use_reentrant": True}, "in a way that cannot be recorded"),
])  # fmt: skip
def test_what_cannot_be_recorded_is_told_and_computed(dropout, options, why, device):
    model, replays = replayed(device, machine=Strict() if device == "cpu" else None, dropout=dropout)
    runs_again(model, options=options)
    model(**batch(0, device)).loss.backward()
    with pytest.warns(AfinaWarning, match=f"not replayed as CUDA graphs: .*{why}"):
        model(**batch(1, device)).loss.backward()
    model.zero_grad()
    torch.manual_seed(5)
    model(**batch(2, device)).loss.backward()
    assert not replays.steps
    plain = runs_again(llama(device, dropout=dropout), options=options)
    torch.manual_seed(5)
    plain(**batch(2, device)).loss.backward()
    grads = [[p.grad for p in m.parameters() if p.grad is not None] for m in (model, plain)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
    assert len(grads[0]) == 28


def test_a_stand_in_that_allowed_a_look_at_random_numbers_would_show_nothing():
    model, replays = replayed(machine=Strict())
    runs_again(model)
    replays.again.layers.clear()  # as if nobody knew of them
    model(**batch(0)).loss.backward()
    with pytest.warns(AfinaWarning, match="during CUDA graph capture"):
        model(**batch(1)).loss.backward()
