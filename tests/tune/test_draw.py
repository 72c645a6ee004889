from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from afina.tune.draw import Draw
from afina.tune.space import space

pytest.importorskip("optuna")


def told(choices, loss):
    return [
        SimpleNamespace(choice=c, record=SimpleNamespace(rungs={}, status="done", losses=[loss(c)])) for c in choices
    ]


def test_small_spaces_are_tried_whole_in_one_wave():
    draw = Draw(space(["rank=4,8", "rate=1e-3,1e-2"]), 4)
    assert draw.waves() == [4]
    assert len(draw.choices(4)) == 4
    draw.tell([])


def test_large_spaces_are_drawn_in_two_waves_without_repeats():
    draw = Draw(space(["rank=4,8,16", "rate=1e-3,1e-2"]), 5)
    assert draw.waves() == [3, 2]
    first = draw.choices(3)
    draw.tell(told(first, lambda c: 1.0))
    everything = [tuple(c.values()) for c in [*first, *draw.choices(2)]]
    assert len(set(everything)) == 5


def test_the_second_wave_knows_what_became_of_the_first():
    def distance(choice):
        return abs(math.log10(float(choice["rate"]) / 3e-3))

    def second(loss):
        draw = Draw(space(["rate=1e-6..1"]), 24)
        draw.tell(told(draw.choices(12), loss))
        return draw.choices(12)

    near, blind = second(distance), second(lambda c: 1.0)
    assert sum(map(distance, near)) < sum(map(distance, blind))
    assert second(distance) == near  # so a search that was cut off goes on as it would have


def test_what_was_left_or_failed_is_told_too():
    draw = Draw(space(["rate=1e-4..1e-2"]), 4)
    first, other = draw.choices(2)
    record = SimpleNamespace(rungs={0: (5, [1.0, 2.0])}, status="left", losses=[])
    failed = SimpleNamespace(rungs={}, status="failed", losses=[])
    draw.tell([SimpleNamespace(choice=first, record=record), SimpleNamespace(choice=other, record=failed)])
    assert [t.state.name for t in draw.study.trials] == ["PRUNED", "FAIL"]
    assert draw.study.trials[0].intermediate_values == {5: 1.5}


@pytest.mark.parametrize("text", ["rank=4..64", "alpha=1..8"])
def test_ranges_of_whole_numbers_have_whole_numbers(text):
    assert all(float(v).is_integer() for c in Draw(space([text]), 4).choices(4) for v in c.values())
