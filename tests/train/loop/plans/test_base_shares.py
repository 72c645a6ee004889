"""How runs are counted that share a base."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from afina.plan.footprint import Peak
from afina.plan.trace import Event
from afina.train.loop.plans import base_shares
from afina.train.loop.plans.base_shares import MORE, OBJECTS, PARTS, THREADS, Share, at_once, groups, share, together


@pytest.mark.parametrize(
    ("owns", "free", "expected"),
    [
        ([3, 3, 3], 19, [[0, 1, 2]]),
        ([3, 3, 3], 18, [[0, 1], [2]]),
        ([9, 1, 1], 14, [[0], [1, 2]]),
        ([1, 9, 1], 14, [[0], [1], [2]]),
        ([5, 5], -1, [[0], [1]]),
    ],
)
def test_each_group_has_as_many_as_there_is_room_for_and_one_at_least(owns, free, expected):
    assert groups([Share(10 + own, 10, own) for own in owns], free) == expected


def found(libraries: int, beside: int = 0) -> Any:
    events = [Event(0, 900, 0), Event(1, 7, 1), Event(2, 5, 1), Event(1, -7, 1), Event(3, 40, 1)]
    kinds = {0: "activations", 1: "activations", 2: "activations", 3: "loss"}
    parts = {"weights": 100, "activations": 50, **({"libraries": libraries} if libraries else {})}
    peak = Peak(parts, 150)
    return SimpleNamespace(peak=peak, bytes=peak.bytes + beside, rehearsal=SimpleNamespace(events=events, parts=kinds))


def test_weights_libraries_and_what_reads_are_there_once_and_a_shared_pass_has_more_of_the_widest():
    one = share(found(30, beside=4))
    assert one == Share(184, 134 + MORE, 50 + PARTS * 7)
    assert together([one]) == 184
    assert together([one, one]) == 134 + MORE + 2 * (50 + PARTS * 7)
    assert share(found(30), whole=True).own == 150 + PARTS * 7
    assert share(found(0)).common == 100  # of a GPU


def test_what_takes_turns_has_the_activations_of_one_and_keeps_what_was_trained_of_all():
    given = found(30)
    given.peak.parts.update(adapters=4, optimizer=8, activations=38)
    one = share(given, in_turn=True)
    assert one == Share(180, 130 + THREADS, 12 + OBJECTS, 38)
    assert together([one, Share(0, 120, 1, 20), one]) == 130 + THREADS + 38 + 12 + 1 + 12 + 2 * OBJECTS
    assert share(given, whole=True, in_turn=True).own == 112 + OBJECTS


@pytest.mark.parametrize(("in_turn", "expected"), [(False, 12), (True, 22)])
def test_as_many_fit_as_groups_have(in_turn, expected, monkeypatch):
    given = found(0)
    given.peak.parts.update(adapters=14, optimizer=26, activations=10)
    monkeypatch.setattr(base_shares, "OBJECTS", 0)
    for free in (100, 150, 171, 242, 243, 1000):
        count = at_once(given, free, in_turn=in_turn)
        assert groups([share(given, in_turn=in_turn)] * (count + 1), free)[0] == [*range(count)]
    assert at_once(given, 1000, in_turn=in_turn) == expected
