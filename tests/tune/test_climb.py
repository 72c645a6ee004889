"""Who is the last one left of a group, and is taken without being trained to the end."""

from __future__ import annotations

import pytest

from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter
from afina.tune.climb import Climb
from afina.tune.halving import Leaves
from afina.tune.outcome import ALONE

from .made import contender, ended

RUNGS = {0: (20, [1.0 + (i % 7) / 10 for i in range(70)])}


@pytest.mark.parametrize(
    ("former", "expected"),
    [
        ({"status": "left", "reason": "worse", "rungs": RUNGS}, Leaves(ALONE)),
        ({"status": "failed", "reason": "the loss is not finite"}, Leaves(ALONE)),
        (ended(0.5), None),
        ({}, None),
    ],
    ids=["one left", "one failed", "one was trained to the end", "one waits"],
)
def test_the_last_one_is_taken_at_once_only_where_none_was_trained_to_the_end_in_a_former_wave(former, expected):
    recipe = load_recipe("tweets")
    other, last = contender(recipe, "other", 0.1, **former), contender(recipe, "last", 0.2, rungs=dict(RUNGS))
    climb = Climb([last], [other] if former else [], 2, Reporter(), lambda: (0, 1))
    climb.everyone = [other, last]
    assert climb.judge(last, 0) == expected
