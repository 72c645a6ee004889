from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from afina.train.fleet.in_turn import Turn, drew, random_states, set_random_states, take_turns


def test_each_draws_what_it_draws_alone_however_they_take_turns():
    def job(number):
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)
        out = []
        for _ in range(3):
            turns[number].wait_for("next")
            out.append((float(torch.rand(())), float(np.random.rand()), random.random()))
        return out

    turns = [Turn(n, lambda n=n: job(n)) for n in range(2)]
    take_turns(turns, lambda waiting: dict.fromkeys(waiting, "go on"))
    for number in range(2):
        alone = [Turn(number, lambda n=number: job(n))]
        kept, turns[number] = turns[number], alone[0]
        take_turns(alone, lambda waiting: dict.fromkeys(waiting))
        assert kept.result == alone[0].result
    assert turns[0].result != turns[1].result


def test_what_fails_for_those_that_wait_ends_each_of_them():
    left = []

    def job(number):
        try:
            turns[number].wait_for("what cannot be")
        finally:
            left.append(number)

    def serve(waiting):
        raise MemoryError("too much")

    turns = [Turn(n, lambda n=n: job(n)) for n in range(3)]
    with pytest.raises(MemoryError, match="too much"):
        take_turns(turns, serve)
    assert left == [0, 1, 2]
    assert all(turn.ended and isinstance(turn.error, MemoryError) for turn in turns)


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
