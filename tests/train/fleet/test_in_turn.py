from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from afina.train.fleet.in_turn import Turn, take_turns


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
